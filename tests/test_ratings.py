"""Ratings of checkpoints against anchors: by hand, against Bradley-Terry over everybody, and over a run of the tiny
model that plays itself."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from rlreason import ratings, train
from rlreason.analysis.load import read_metrics, read_traces
from rlreason.analysis.ratings import rated_against, standings
from rlreason.config import CONF, ConfigError, register
from rlreason.ratings import entrants_of, of_runs, score_of


def config(name: str, overrides: list[str]) -> DictConfig:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, overrides=overrides)


# --- by hand


def test_one_anchor_by_hand() -> None:
    """Three wins, a draw and a loss, and one draw more: 4 points to 2, so 400 log10 2 above the anchor."""
    found = rated_against([[1], [1], [1], [0.5], [0]], [100.0])
    assert found.rating == pytest.approx(100 + 400 * math.log10(4 / 2), abs=1e-6)
    assert (found.wins, found.ties, found.losses, found.win_rate) == (3, 1, 1, 0.7)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.rating < found.high


def test_who_always_wins_or_loses_is_rated_by_the_prior() -> None:
    """Four games and a draw: 4.5 points to 0.5."""
    for score, sign in ((1.0, 1), (0.0, -1)):
        found = rated_against([[score]] * 4, [0.0])
        assert found.rating == pytest.approx(sign * 400 * math.log10(9), abs=1e-6)
        assert found.low is None
    far = rated_against([[1.0, 1.0]] * 4, [0.0, 2000.0])
    assert far.rating > 2000 + 400 * math.log10(3.9)  # the prior's draw with the far one alone holds it


def test_several_anchors_are_bradley_terry_with_their_ratings_fixed() -> None:
    """At the maximum of the likelihood the points are those to be expected; and the rating out of everybody's games,
    in which the anchors' own are by far the most, is nearly the same."""
    chance = np.random.default_rng(3)
    anchors = np.array([0.0, 150.0, 400.0])
    scores = chance.choice([0.0, 0.5, 1.0], size=(40, 3), p=[0.5, 0.2, 0.3])
    found = rated_against(scores, anchors.tolist(), prior_draws=2.0)
    expected = (42 / (1 + 10 ** ((anchors - found.rating) / 400))).sum()
    assert scores.sum() + 3 == pytest.approx(expected, abs=1e-9)
    games = np.full((40, 2, 2), np.nan)
    games[:, 1, 0], games[:, 0, 1] = scores[:, 0], 1 - scores[:, 0]
    both = standings(games, prior_draws=2.0)
    assert rated_against(scores[:, :1], [1000.0], prior_draws=2.0).rating == pytest.approx(both[1].rating, abs=1e-4)


def test_intervals_cover() -> None:
    """Of players whose strength is known, 90 % intervals over 100 openings hold it in about nine of ten."""
    chance = np.random.default_rng(0)
    truth, anchors = 200.0, [0.0, 300.0]
    wins = [1 / (1 + 10 ** ((a - truth) / 400)) for a in anchors]
    held = 0
    for seed in range(60):
        scores = (chance.random((100, 2)) < wins).astype(float)
        found = rated_against(scores, anchors, prior_draws=0.1, resamples=200, confidence=0.9, seed=seed)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= truth <= found.high
    assert 45 <= held <= 60  # 54 expected, 2.3 the standard deviation


def test_scores_that_make_no_sense_are_refused() -> None:
    for scores, anchors, message in (
        ([[0.3]], [0.0], "a score must be"),
        ([[1.0]], [0.0, 1.0], "shape"),
        ([], [0.0], "shape"),
        ([1.0], [0.0], "shape"),
    ):
        with pytest.raises(ValueError, match=message):
            rated_against(scores, anchors)
    for key, value in (("prior_draws", 0.0), ("resamples", 0)):
        with pytest.raises(ValueError, match=f"{key} is 0"):
            rated_against([[1.0]], [0.0], **{key: value})  # type: ignore[arg-type]
    assert [score_of({"won": w, "drawn": d}) for w, d in ((1, 0), (0, 1), (0, 0))] == [1, 0.5, 0]
    with pytest.raises(ConfigError, match="no parts won and drawn, but accuracy"):
        score_of({"accuracy": 1.0})


# --- a run that plays itself


@dataclass(frozen=True)
class Loose:
    """A move out of any text: so that a model that knows nothing plays."""

    instruction: str = ""

    def extract(self, text: str) -> str | None:
        if text in [*"123456789"]:
            return text
        return None if "\n" in text else str(sum(text.encode("utf-8", "replace")) % 9 + 1)

    def score(self, text: str) -> float | None:
        return None

    def gold(self, reasoning: str, answer: str) -> str:
        return answer


GAME = [
    "model=tiny", "env=games", "env.format._target_=test_ratings.Loose", "env.retries=6",
    "sampling.max_completion_length=24", "++sampling.max_turns=12", "sampling.stop=[a,e,i,o,u,t,n,s]",
]  # fmt: skip


def play_itself(out: Path, *more: str) -> DictConfig:
    overrides = [
        *GAME, "opponent@env.opponent=past_self", "env.opponent.writer.paths=[tiny]",
        f"env.opponent.writer.run={out}", "env.opponent.writer.dtype=float32", "max_steps=3", "save_every=1",
        "keep_checkpoints=3", "eval_every=3", "eval_limit=4", "algo.num_prompts=3", "algo.num_generations=4",
        "algo.learning_rate=1e-3", "logger.mode=disabled", "console.quiet=true", *more,
    ]  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    return config("train", overrides)


@pytest.fixture(scope="module")
def itself(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("itself") / "run"
    train.run(play_itself(out), out)
    return out


def test_self_play_trains_and_is_recorded(itself: Path) -> None:
    metrics = read_metrics(itself)
    steps = metrics[metrics["step"] > 0]
    assert (steps["rewards/plies/mean"] > 0).all()  # games are played
    assert (steps["rewards/opponent_illegal/mean"] > 0).any()
    assert steps["rewards/won/mean"].add(steps["rewards/drawn/mean"]).add(steps["rewards/lost/mean"]).eq(1).all()
    frame = read_traces(itself, ("step", "split", "reward", "messages", "correct"))
    frame = frame[frame["split"] == "train"]
    assert frame["correct"].astype(bool).eq(frame["reward"] == 1).all()
    assert frame["messages"].map(lambda m: len(json.loads(m))).max() > 3


def test_self_play_goes_on_where_it_was(itself: Path, tmp_path: Path) -> None:
    """Stopped after step 2 and resumed: the same games, against the same pool, as in one go."""
    out = tmp_path / "run"
    train.run(play_itself(out, "max_steps=2"), out)
    train.run(play_itself(out, f"resume={out}"), out)

    def games(folder: Path) -> list[Any]:
        frame = read_traces(folder, ("step", "split", "messages", "reward"))
        return frame[(frame["split"] == "train")][["step", "messages", "reward"]].to_numpy().tolist()

    assert games(out) == games(itself)


def test_checkpoints_are_rated(itself: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "ratings"
    overrides = [
        f"runs={{itself: {itself}}}", "sampling.stop=[a,e,i,o,u,t,n,s]", "sampling.temperature=1",
        "model.dtype=float32", "games=6", "anchor_games=60", "chunk=4", "resamples=50", "split=test",
    ]  # fmt: skip
    ratings.run(config("ratings", overrides), out)
    played = OmegaConf.load(out / "config.yaml")  # as the run was asked
    assert (played.env.format["_target_"], played.env.retries) == ("test_ratings.Loose", 6)
    assert (played.sampling.max_completion_length, played.sampling.max_turns) == (24, 12)
    found = json.loads((out / "ratings.json").read_text())
    assert list(found["anchors"]) == ["random", "minimax_1", "minimax_2", "optimal"]
    levels = list(found["anchors"].values())
    assert levels[0] == 0
    assert levels == sorted(levels)
    assert [r["step"] for r in found["rated"]] == [0, 1, 2, 3]
    for rated in found["rated"]:
        scores = []
        for anchor, score in rated["scores"].items():
            frame = read_traces(out / "games" / f"00-step-{rated['step']:06d}" / anchor, ("group", "segment", "parts"))
            own = frame[frame["segment"] == 0].sort_values("group")["parts"].map(json.loads)
            assert len(own) == 6
            scores.append([p["won"] + p["drawn"] / 2 for p in own])
            assert score == pytest.approx(np.mean(scores[-1]))
        expected = rated_against(np.array(scores).T, levels, resamples=50, seed=0)
        assert rated["standing"]["rating"] == pytest.approx(expected.rating)
        assert rated["standing"]["low"] == pytest.approx(expected.low)
    assert max(r["standing"]["win_rate"] for r in found["rated"]) > 0  # not all the same
    assert (out / "ratings.png").read_bytes().startswith(b"\x89PNG")
    before = (out / "ratings.json").read_bytes()

    def nobody(path: str, **settings: Any) -> Any:
        raise AssertionError("loaded again")

    monkeypatch.setattr("rlreason.models.load", nobody)
    ratings.run(config("ratings", [*overrides, f"resume={out}"]), out)
    assert (out / "ratings.json").read_bytes() == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["runs=x"], "runs is 'x'; give a list"),
        (["runs=[]"], "runs is"),
        (["runs=[nowhere]"], "nowhere is no run folder"),
        (["runs=[RUN,RUN]"], "names one twice"),
        (["runs=[RUN]", "~env"], "env is null, and none of the runs has one"),
        (["runs=[RUN]", "sampling.max_completion_length=null"], "max_completion_length is null, and none"),
        (["runs=[RUN]", "games=0"], "games is 0"),
        (["runs=[RUN]", "~anchors.random", "~anchors.optimal", "~anchors.minimax_2"], "anchors has fewer than two"),
        (["runs=[RUN]", "env.game=connect_four"], r"anchors\.optimal: .*too large to be solved"),
        (["runs=[RUN]", "env=arithmetic"], "arithmetic is no environment of games|opponent"),
        (["runs=[RUN]", "split=dev"], "there is no split 'dev'"),
        (["runs=[RUN]", "prior_draws=0"], "prior_draws is 0"),
        (["runs=[RUN]", "confidence=1"], "confidence is 1"),
    ],
)
def test_what_cannot_be_rated_is_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    run = tmp_path / "run"
    (run / "checkpoints" / "step-000001").mkdir(parents=True)
    (run / "config.yaml").write_text("model: {path: tiny}")
    own = [o.replace("RUN", str(run)) for o in overrides]
    if not any(override.startswith(("env=", "~env")) for override in overrides):
        own.append("env=games")
    cfg = config("ratings", ["sampling.max_completion_length=8", *(o for o in own if o != "~env")])
    with pytest.raises(ConfigError, match=message):
        ratings.run(cfg, tmp_path / "out")


def test_an_imitating_run_says_how_it_was_asked(tmp_path: Path) -> None:
    for name, own in (("sft", {"data": {"env": {"rules": "a"}}}), ("rl", {"env": {"rules": "b"}})):
        (tmp_path / name).mkdir()
        limits = {"sampling": {"max_completion_length": 5, "max_turns": 3}} if name == "rl" else {}
        OmegaConf.save({**own, **limits}, tmp_path / name / "config.yaml")
    found = of_runs(config("ratings", [f"runs=[{tmp_path}/sft,{tmp_path}/rl]", "sampling.max_turns=4"]))
    assert found.env.rules == "a"
    assert (found.sampling.max_completion_length, found.sampling.max_turns) == (5, 4)


def test_entrants(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    OmegaConf.save({"model": {"path": "embedded"}}, run / "config.yaml")
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        entrants_of([str(run)], with_start=True)
    for step in (20, 3):
        (run / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    found = entrants_of({"rl": str(run)}, with_start=True)
    assert [(e.run, e.number, e.step) for e in found] == [("rl", 0, 0), ("rl", 0, 3), ("rl", 0, 20)]
    assert found[0].path == "embedded"
    assert [e.step for e in entrants_of([str(run)], with_start=False)] == [3, 20]
    OmegaConf.save({"model": {"path": "./gone"}}, run / "config.yaml")
    with pytest.raises(ConfigError, match=r"started from \(start=false leaves it out\)"):
        entrants_of([str(run)], with_start=True)
