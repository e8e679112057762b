"""The arena: ratings by hand and against known strengths, judges, and two models that play and answer nothing twice."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny_folder
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from test_train import CAPITALS

from rlreason import arena
from rlreason.analysis.load import read_traces
from rlreason.analysis.ratings import standings
from rlreason.arena import main, paths_of, play, run
from rlreason.config import CONF, ConfigError, register, start
from rlreason.judges import Answer, ByReward, ByScore
from rlreason.remembered import Ledger
from rlreason.types import Message

# Ratings


def games(*results: dict[tuple[int, int], float], players: int = 2) -> Any:
    """Outcomes from what the first of each two had against the second, prompt by prompt."""
    outcomes = np.full((len(results), players, players), np.nan)
    for p, result in enumerate(results):
        for (i, j), value in result.items():
            outcomes[p, i, j], outcomes[p, j, i] = value, 1 - value
    return outcomes


def versus(values: Sequence[float]) -> Any:
    return games(*({(0, 1): value} for value in values))


def test_two_players_by_hand() -> None:
    # Three wins, two ties and a loss, and one draw besides: 4.5 points to 2.5, so s1 / s2 = 4.5 / 2.5.
    first, second = standings(versus([1, 1, 1, 0.5, 0.5, 0]))
    assert first.rating == first.low == first.high == 1000
    assert second.rating == pytest.approx(1000 - 400 * math.log10(4.5 / 2.5), abs=1e-5)
    assert second.low is not None
    assert second.high is not None
    assert second.low < second.rating < second.high
    assert (first.wins, first.ties, first.losses, first.win_rate) == (3, 2, 1, 4 / 6)
    assert (second.wins, second.ties, second.losses, second.win_rate) == (1, 2, 3, 2 / 6)
    mean = standings(versus([1, 1, 1, 0.5, 0.5, 0]), anchor="mean")
    assert mean[0].rating + mean[1].rating == pytest.approx(2000)
    assert mean[0].rating - mean[1].rating == pytest.approx(400 * math.log10(4.5 / 2.5), abs=1e-5)
    assert mean[0].low is not None
    assert mean[0].low < mean[0].rating


def test_a_cycle_has_three_equals() -> None:
    cycle = {(0, 1): 1.0, (1, 2): 1.0, (2, 0): 1.0}
    reverse = {pair: 1 - value for pair, value in cycle.items()}
    for found in standings(games(cycle, cycle, reverse, players=3), prior_draws=0.1):
        assert found.rating == pytest.approx(1000, abs=1e-4)
        assert (found.wins, found.losses) == (3, 3)


def test_three_players_are_where_the_likelihood_is_highest() -> None:
    """There every player's points are the sum of the chances of winning (Bradley and Terry 1952), draws added."""
    chance = np.random.default_rng(5)
    pairs = ((0, 1), (0, 2), (1, 2))
    outcomes = games(*({pair: chance.choice([0, 0.5, 1]) for pair in pairs} for _ in range(9)), players=3)
    ratings = np.array([found.rating for found in standings(outcomes, prior_draws=2.0)])
    chances = 1 / (1 + 10 ** ((ratings[None, :] - ratings[:, None]) / 400))
    for i in range(3):
        others = [j for j in range(3) if j != i]
        points = np.nansum(outcomes[:, i]) + 2.0 * 0.5 * 2
        assert points == pytest.approx(sum((9 + 2.0) * chances[i, j] for j in others), abs=1e-5)


def test_who_always_wins_has_a_finite_rating() -> None:
    first, second = standings(versus([1] * 9), prior_draws=2.0)  # 9 wins and 2 draws: 10 points to 1
    assert second.rating == pytest.approx(1000 - 400, abs=1e-4)
    assert second.low is second.high is first.low is None  # nothing to resample
    assert standings(versus([0.5]))[1].rating == pytest.approx(1000)


def test_known_strengths_are_recovered() -> None:
    truth = np.array([1000.0, 1080.0, 1200.0, 1150.0])
    chances = 1 / (1 + 10 ** ((truth[None, :] - truth[:, None]) / 400))
    chance = np.random.default_rng(11)
    held, widths = [], []
    for trial in range(40):
        won = np.triu(chance.random((150, 4, 4)) < chances, k=1)
        lost = np.triu(~won, k=1).transpose(0, 2, 1)
        found = standings(won + lost, resamples=100, seed=trial, prior_draws=0.1)
        for player, rating in zip(found[1:], truth[1:], strict=True):
            assert player.low is not None
            assert player.high is not None
            held.append(player.low <= rating <= player.high)
            widths.append(player.high - player.low)
    assert 0.88 < np.mean(held) < 1  # 95 % is said; three standard errors of 120, some of them not independent
    assert np.mean(widths) < 120


def test_games_on_one_prompt_are_not_independent() -> None:
    """Three opponents who are alike tell no more than one: the interval is over prompts, not games."""
    chance = np.random.default_rng(0)
    won = chance.random(60) < 0.6
    alike = [{**{(0, j): float(w) for j in (1, 2, 3)}, (1, 2): 0.5, (1, 3): 0.5, (2, 3): 0.5} for w in won]
    several = standings(games(*alike, players=4), anchor="mean", prior_draws=1e-6, resamples=300)
    one = standings(versus(won.astype(float)), anchor="mean", prior_draws=1e-6, resamples=300)
    assert one[0].low is not None
    assert one[0].high is not None
    assert several[0].low is not None
    assert several[0].high is not None
    # the gap of one to the mean of two is half the gap, to the mean of four three quarters
    gap, gaps = (one[0].high - one[0].low) / 0.5, (several[0].high - several[0].low) / 0.75
    assert gaps == pytest.approx(gap, rel=1e-3)


def test_ratings_refuse() -> None:
    for bad, message in (
        ({"anchor": "last"}, "anchor is 'last'; choose first or mean"),
        ({"prior_draws": 0}, "above 0"),
        ({"resamples": 0}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            standings(versus([1, 0]), **bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must be 1, 0\.5 or 0"):
        standings(versus([0.7]))
    lopsided = versus([1, 0])
    lopsided[0, 1, 0] = 1
    with pytest.raises(ValueError, match="the opponent's the rest to 1"):
        standings(lopsided)
    with pytest.raises(ValueError, match="2 players or more"):
        standings(np.zeros((3, 1, 1)))
    with pytest.raises(ValueError, match=r"must be 1, 0\.5 or 0"):
        standings(games({(0, 1): 1.0}, players=3))  # two pairs that never met


# Judges


def answer(text: str, reward: float = 0.0) -> Answer:
    return Answer([{"role": "user", "content": "?"}, {"role": "assistant", "content": text}], text, reward)


def test_the_higher_reward_wins() -> None:
    low, high = answer("a", 0.25), answer("b", 0.5)
    judge = ByReward()
    assert [judge.compare([], high, low), judge.compare([], low, high), judge.compare([], low, low)] == [1, 0, 0.5]
    assert ByReward(tie_margin=0.25).compare([], high, low) == 0.5
    assert ByReward(tie_margin=0.2).compare([], high, low) == 1
    with pytest.raises(ValueError, match="tie_margin is -1"):
        ByReward(tie_margin=-1)


@dataclass(frozen=True)
class Lengths:
    """Scores by length, and a second member that sees nothing."""

    paths: Sequence[str] = ()
    asked: tuple[list[str], ...] = ([],)

    def __call__(self, conversations: Sequence[list[Message]]) -> list[tuple[float, ...]]:
        self.asked[0].extend(conversation[-1]["content"] for conversation in conversations)
        return [(float(len(c[-1]["content"])) if c[-1]["content"] else math.nan, 0.0) for c in conversations]


def test_the_higher_score_wins_and_is_asked_for_once() -> None:
    scorer = Lengths(asked=([],))
    judge = ByScore(scorer, max, tie_margin=1.0)
    a, b, c = (answer(text) for text in ("aaaa", "bb", "ccc"))
    assert [judge.compare([], *pair) for pair in ((a, b), (b, a), (a, c), (b, c))] == [1, 0, 0.5, 0.5]
    assert scorer.asked[0] == ["aaaa", "bb", "ccc"]
    assert ByScore(scorer, min).compare([], a, b) == 0.5
    with pytest.raises(ValueError, match="nan is the score of ''"):
        judge.compare([], answer(""), a)


@dataclass
class Asked:
    """Prefers the longer text, or whichever comes first of two that are as long; notes what it was asked."""

    asked: list[tuple[str, str]]
    always: float | None = None

    def compare(self, prompt: list[Message], a: Answer, b: Answer) -> float:
        self.asked.append((a.text, b.text))
        return self.always if self.always is not None else float(len(a.text) >= len(b.text))


def played(judge: Any, texts: Sequence[Sequence[str]], ledger: Ledger, chunk: int = 2) -> tuple[Any, Any]:
    players = [{number: answer(text) for number, text in enumerate(own)} for own in texts]
    prompts: dict[int, list[Message]] = {number: [] for number in range(len(texts[0]))}
    return play(judge, players, prompts, ledger, chunk=chunk, unless_stopped=lambda: None)


def test_both_orders_are_asked_and_a_verdict_that_turns_is_a_tie(tmp_path: Path) -> None:
    texts = (["aaa", "aa", "a"], ["b", "bb", "bbb"], ["cc", "cc", "cc"])
    judge = Asked([])
    outcomes, inconsistent = played(judge, texts, Ledger(tmp_path / "v.jsonl", "game", "verdict"))
    np.testing.assert_array_equal(outcomes[:, 0, 1], [1, 0.5, 0])
    np.testing.assert_array_equal(outcomes[:, 1, 0], [0, 0.5, 1])
    np.testing.assert_array_equal(outcomes[:, 0, 2], [1, 0.5, 0])
    np.testing.assert_array_equal(inconsistent[:, 0, 1], [0, 1, 0])
    np.testing.assert_array_equal(inconsistent, inconsistent.transpose(0, 2, 1))
    assert np.isnan(outcomes[:, [0, 1, 2], [0, 1, 2]]).all()
    assert sorted(judge.asked) == sorted(
        (one[number], other[number]) for number in range(3) for one in texts for other in texts if one is not other
    )


def test_verdicts_are_asked_for_once(tmp_path: Path) -> None:
    texts, path = (["aaa", "aa", "a"], ["b", "bb", "bbb"]), tmp_path / "v.jsonl"
    first = played(Asked([]), texts, Ledger(path, "game", "verdict"))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]) + lines[4][:7])
    judge = Asked([])
    again = played(judge, texts, Ledger(path, "game", "verdict"))
    np.testing.assert_array_equal(first, again)
    assert sorted(judge.asked) == [("a", "bbb"), ("bbb", "a")]  # the second chunk
    with pytest.raises(ValueError, match=r"said 0.7; a verdict must be 1"):
        played(Asked([], always=0.7), texts, Ledger(tmp_path / "other.jsonl", "game", "verdict"))


# The entry point


def config(*overrides: str, models: tuple[str, ...] = ("plain", "sharp")) -> DictConfig:
    register()
    small = ("model.dtype=float32", "sampling.max_completion_length=12", "sampling.temperature=1.0")
    paths = {"plain": "tiny", "sharp": f"'{tiny_folder()}'"}
    playing = "models={%s}" % ", ".join(f"{name}: {paths[name]}" for name in models)  # noqa: UP031  braces
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("arena", overrides=[*CAPITALS, playing, *small, "chunk=3", "resamples=100", *overrides])


def board_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "arena.json").read_text())
    return found


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models on the eight prompts of ``Capitals``."""
    out = tmp_path_factory.mktemp("arena") / "run"
    out.mkdir()
    run(config(), out)
    return out


def test_two_models_play(done: Path) -> None:
    board = board_of(done)
    players = {player["name"]: player for player in board["players"]}
    assert players.keys() == {"plain", "sharp"}
    rows = [read_traces(done / "players" / number) for number in ("00", "01")]
    for name, own in zip(("plain", "sharp"), rows, strict=True):
        assert list(own["group"]) == list(range(8))
        assert list(own["step"]) == [0, 0, 0, 1, 1, 1, 2, 2]
        assert players[name]["reward"] == pytest.approx(own["reward"].mean())
        assert players[name]["mean_length"] == pytest.approx(own["completion_tokens"].mean())
    assert list(rows[0]["prompt"]) == list(rows[1]["prompt"])
    assert list(rows[0]["text"]) != list(rows[1]["text"])
    won = int((rows[0]["reward"] > rows[1]["reward"]).sum())
    lost = int((rows[0]["reward"] < rows[1]["reward"]).sum())
    assert won > 0
    assert lost > 0
    (pair,) = board["pairs"]
    assert pair == {"a": "plain", "b": "sharp", "wins": won, "ties": 8 - won - lost, "losses": lost, "inconsistent": 0}
    points = won + (8 - won - lost) / 2 + 0.5
    gap = 400 * math.log10(points / (9 - points))
    assert players["plain"]["standing"]["rating"] == 1000
    assert players["sharp"]["standing"]["rating"] == pytest.approx(1000 - gap, abs=1e-4)
    ratings = [player["standing"]["rating"] for player in board["players"]]
    assert ratings == sorted(ratings, reverse=True)
    assert (board["prompts"], board["left_out"], board["inconsistent"]) == (8, 0, 0)


def test_the_folder_is_complete(done: Path) -> None:
    assert {path.name for path in done.iterdir()} == {
        "config.yaml", "manifest.json", "summary.json", "traces", "players", "verdicts.jsonl", "arena.json",
        "leaderboard.md", "leaderboard.png",
    }  # fmt: skip
    assert (done / "leaderboard.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    page = (done / "leaderboard.md").read_text()
    assert page.startswith("# capitals, validation, judged by ByReward\n")
    assert "| plain | 1000 |  | " in page  # the anchor has no interval
    assert re.search(r"\| sharp \| \d+ \| \d+ to \d+ \| \d+% \| ", page)
    assert json.loads((done / "players" / "01" / "model.json").read_text())["path"] == tiny_folder()
    assert json.loads((done / "manifest.json").read_text())["model"] == {"plain": "tiny", "sharp": tiny_folder()}
    summary = json.loads((done / "summary.json").read_text())
    assert summary["rating/plain"] == 1000


def test_a_restart_generates_nothing_twice(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(name: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((done / name).read_bytes())

    loaded, answered = [], []
    load, roll_out = arena.build, arena.roll_out
    monkeypatch.setattr(arena, "build", lambda cfg, key: loaded.append(key) or load(cfg, key))  # type: ignore[func-returns-value]
    monkeypatch.setattr(
        arena, "roll_out", lambda *a, **k: answered.append(list(k["groups"])) or roll_out(*a, **k)  # type: ignore[func-returns-value]
    )  # fmt: skip
    # Killed when the second model had written its last chunk, but not its second.
    for name in ("config.yaml", "manifest.json", "players/00/model.json"):
        copy(name)
    for number, chunks in (("00", (0, 1, 2)), ("01", (0, 2))):
        for chunk in chunks:
            copy(f"players/{number}/traces/eval-validation-{chunk:06d}.parquet")
    run(config(f"resume={tmp_path}"), tmp_path)
    assert answered == [[3, 4, 5]]
    assert loaded.count("model") == 1
    assert board_of(tmp_path) == board_of(done)  # the same draws as without the interruption
    run(config(f"resume={tmp_path}"), tmp_path)
    assert answered == [[3, 4, 5]]
    assert loaded.count("model") == 1
    with pytest.raises(ConfigError, match="was started with another configuration:\n  limit: 100 then, 4 now"):
        run(config(f"resume={tmp_path}", "limit=4"), tmp_path)


def Interrupted(path: str) -> Any:
    """A judge during whose first verdict somebody presses Ctrl-C."""

    class Judge:
        def compare(self, prompt: list[Message], a: Answer, b: Answer) -> float:
            if not Path(path).exists():
                Path(path).touch()
                os.kill(os.getpid(), signal.SIGINT)
            return 0.5

    return Judge()


def test_ctrl_c_keeps_what_was_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    out.mkdir()
    judge = ("~judge", f"+judge={{_target_: test_arena.Interrupted, path: '{tmp_path / 'pressed'}'}}")
    with pytest.raises(SystemExit) as stopped:
        run(config(*judge), out)
    assert stopped.value.code == 130
    assert f"the same command with resume={out} goes on" in capsys.readouterr().out
    verdicts = (out / "verdicts.jsonl").read_text()
    assert verdicts.count("\n") == 6  # a chunk of three prompts, both ways
    assert not (out / "arena.json").exists()
    run(config(*judge, f"resume={out}"), out)
    assert (out / "verdicts.jsonl").read_text().startswith(verdicts)
    assert board_of(out)["pairs"][0]["ties"] == 8


def test_a_reward_model_judges(tmp_path: Path) -> None:
    scorer = ("judge.scorer._target_=test_arena.Lengths", "judge.scorer.paths=[]")
    run(config("judge=reward_model", *scorer, "judge.tie_margin=0.5", "anchor=mean"), tmp_path)
    rows = [read_traces(tmp_path / "players" / number)["text"].str.len() for number in ("00", "01")]
    (pair,) = board_of(tmp_path)["pairs"]
    # halved by the member that sees nothing, so lengths tie that differ by one
    assert pair["wins"] == int((rows[0] > rows[1] + 1).sum())
    assert pair["losses"] == int((rows[1] > rows[0] + 1).sum())
    ratings = [player["standing"]["rating"] for player in board_of(tmp_path)["players"]]
    assert sum(ratings) == pytest.approx(2000)
    assert "judged by ByScore" in (tmp_path / "leaderboard.md").read_text()


def test_models_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for step in (1, 2):
        checkpoint = tmp_path / "runs" / "sft" / "checkpoints" / f"step-{step:06d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "trainer.pt").touch()
    (tmp_path / "runs" / "empty").mkdir()
    for name in ("sft", "empty"):
        (tmp_path / "runs" / name / "config.yaml").touch()
    found = paths_of(["tiny", "smollm2_135m", "owner/model", "runs/sft", "runs/sft/checkpoints/step-000001"])
    assert found == {
        "tiny": "tiny",
        "smollm2_135m": "embedded",
        "owner/model": "owner/model",
        "runs/sft": "runs/sft/checkpoints/step-000002",
        "runs/sft/checkpoints/step-000001": "runs/sft/checkpoints/step-000001",
    }
    assert paths_of({"a": "tiny", "b": "tiny"}) == {"a": "tiny", "b": "tiny"}
    for models, message in (
        (["tiny"], "it takes two"),
        (["tiny", "tiny"], "names one twice"),
        ("tiny", "give a list"),
        (["tiny", "runs/empty"], "models: .*no checkpoint"),
        (["tiny", "./stf"], r"models: there is no folder ./stf \(looked in"),
    ):
        with pytest.raises(ConfigError, match=message):
            paths_of(models)


def test_models_keep_their_places(done: Path) -> None:
    """Answers and verdicts lie under them."""
    with pytest.raises(ConfigError, match=f"{done} was started with the models in this order: plain, sharp"):
        run(config(f"resume={done}", models=("sharp", "plain")), done)


def test_mistakes_are_told_before_anything_is_generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def roll_out(*arguments: Any, **options: Any) -> None:
        pytest.fail("a model was asked")

    monkeypatch.setattr(arena, "roll_out", roll_out)
    for overrides, message in (
        (("limit=0",), "limit is 0"),
        (("anchor=last",), "anchor is 'last'; choose first or mean"),
        (("prior_draws=0",), "prior_draws is 0"),
        (("confidence=95",), "confidence is 95"),
        (("split=dev",), "split: there is no split 'dev'"),
        (("judge.tie_margin=-1",), "judge.*: tie_margin is -1"),
        (("+models.third=runs/sft/mispelled",), "models: there is no folder runs/sft/mispelled"),
        ((f"resume={tmp_path / 'none'}",), "is no run folder"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(config(*overrides), tmp_path / "out")


def test_without_matplotlib_the_rest_is_there(
    done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run(config(f"resume={done}"), done)
    assert "no leaderboard.png: pip install matplotlib" in capsys.readouterr().out


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    register()

    def command(*arguments: str) -> None:
        quiet = ("hydra/job_logging=none", "hydra/hydra_logging=none")
        monkeypatch.setattr(sys, "argv", ["rlreason/arena.py", *arguments, *quiet])
        start(main)

    command("models=[tiny," + tiny_folder() + "]", "model=tiny", "env=arithmetic", "limit=2",
            "sampling.max_completion_length=4")  # fmt: skip
    (out,) = (tmp_path / "runs" / "arena").iterdir()
    printed = capsys.readouterr().out
    assert "arithmetic, validation, judged by ByReward" in printed
    assert str(out.relative_to(tmp_path)) in printed
    before = board_of(out)
    assert before["prompts"] == 2
    command(f"resume={out}")  # its own configuration
    assert board_of(out) == before
    with pytest.raises(SystemExit):
        command("env=arithmetic")
    assert "models" in capsys.readouterr().err
