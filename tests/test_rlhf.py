"""RLHF: the scorer's reward on another environment's problems, with that environment's reward kept beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from test_train import tiny_config

from envs.arithmetic import Arithmetic
from envs.base import GeneratedSplit
from envs.rlhf import Combine, Mean, Rlhf, VariancePenalised, Worst
from rlreason.analysis.load import read_metrics, read_traces
from rlreason.config import CONF, register
from rlreason.train import run
from rlreason.types import Env, Episode, Grade, Message, Problem, Split

PLAIN = Arithmetic()
PROBLEM = PLAIN.split("train")[0]
RIGHT = PLAIN.gold(PROBLEM)


@dataclass(frozen=True)
class Lengths:
    """An ensemble that loves length: each member scores the last message's characters times its own factor. An
    infinite factor makes a score that is no number of an empty text, 0 * inf."""

    factors: tuple[float, ...] = (1.0,)
    calls: list[list[list[Message]]] = field(default_factory=list, compare=False, repr=False)

    def __call__(self, conversations: Sequence[list[Message]]) -> list[tuple[float, ...]]:
        self.calls.append([list(conversation) for conversation in conversations])
        return [tuple(factor * len(c[-1]["content"]) for factor in self.factors) for c in conversations]


@dataclass(frozen=True)
class TwoTurns:
    """Asks "Sure?" after the first turn. Fails to grade what says "crash"; has a part that is called as one of ours."""

    name: str = "two-turns"

    def split(self, name: str) -> Split:
        return GeneratedSplit(2, lambda i: Problem(f"{name}/{i}", [{"role": "user", "content": f"{i}?"}], None))

    def start(self, problem: Problem, seed: int) -> dict[str, int]:
        return {"seed": seed}

    def replies(self, states: Sequence[Any], conversations: Sequence[list[Message]]) -> list[list[Message] | None]:
        return [[{"role": "user", "content": "Sure?"}] if len(c) == 2 else None for c in conversations]

    def grade(self, episodes: Sequence[Episode]) -> list[Grade]:
        return [
            Grade(0.0, None, "error")
            if episode.text == "crash"
            else Grade(float(episode.state["seed"]), None, parts={"proxy": 7.0, "own": 5.0})
            for episode in episodes
        ]

    def validate(self) -> None:
        raise ValueError("this environment is never right")

    def manifest(self) -> Mapping[str, Any]:
        return {"name": self.name, "source": "made up"}


def episode(env: Env, text: str, seed: int = 0, finish: Any = "stop") -> Episode:
    problem = env.split("train")[0]
    messages: list[Message] = [*problem.prompt, {"role": "assistant", "content": text}]
    return Episode(problem, env.start(problem, seed), messages, text, finish)


def test_combinations_by_hand() -> None:
    # members 1, 2 and 6: mean 3, variance (4 + 1 + 9) / 3, least 1
    scores = (1.0, 2.0, 6.0)
    assert Mean()(scores) == 3
    assert Worst()(scores) == 1
    assert VariancePenalised(0.5)(scores) == pytest.approx(3 - 0.5 * 14 / 3)
    assert VariancePenalised(0.0)(scores) == 3
    for combine in (Mean(), Worst(), VariancePenalised(10.0)):
        assert combine((2.5,)) == 2.5  # one member agrees with itself
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="coefficient"):
            VariancePenalised(bad)


@pytest.mark.parametrize(
    ("combine", "proxy"), [(Mean(), 3.0 * 4), (Worst(), 1.0 * 4), (VariancePenalised(1.0), 3.0 * 4 - 14 / 3 * 16)]
)
def test_a_grade_by_hand(combine: Combine, proxy: float) -> None:
    inner = Arithmetic(weights={"accuracy": 2.0, "lenient": 0.5})
    env = Rlhf(inner, Lengths((1.0, 2.0, 6.0)), combine, {"proxy": 0.5, "gold": 10.0})
    text = (RIGHT + "    ")[:4]  # four characters, and right
    (grade,) = env.grade([episode(env, text)])
    assert grade.correct is True
    assert grade.answer == PROBLEM.answer
    assert grade.parts == pytest.approx(
        {"accuracy": 1.0, "lenient": 1.0, "proxy": proxy, "proxy_std": math.sqrt(14 / 3) * 4, "gold": 2.5}
    )
    assert grade.reward == pytest.approx(0.5 * proxy + 10 * 2.5)


def test_the_scorer_alone_is_the_reward_by_default() -> None:
    env = Rlhf(PLAIN, Lengths())
    grades = env.grade([episode(env, text) for text in (RIGHT, "no idea", "")])
    assert [g.reward for g in grades] == [len(RIGHT), 7, 0]  # an empty completion is scored like any other
    assert [g.parts["proxy_std"] for g in grades] == [0, 0, 0]
    own = PLAIN.grade([episode(PLAIN, text) for text in (RIGHT, "no idea", "")])
    assert [(g.correct, g.status, g.answer, g.parts["gold"]) for g in grades] == [
        (g.correct, g.status, g.answer, g.reward) for g in own
    ]
    assert env.grade([]) == []


def test_whole_conversations_in_one_call_without_what_could_not_be_graded() -> None:
    scorer, inner = Lengths(), TwoTurns()
    env = Rlhf(inner, scorer)
    problem = env.split("train")[1]
    talk: list[Message] = [
        *problem.prompt,
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "quite"},
    ]
    states = [env.start(problem, seed) for seed in (3, 4, 5)]
    assert env.replies(states[:2], [talk[:2], talk]) == [[talk[2]], None]
    texts = ("quite", "crash", "no")
    grades = env.grade(
        [
            Episode(problem, state, [*talk[:-1], {"role": "assistant", "content": text}], text, "stop")
            for state, text in zip(states, texts, strict=True)
        ]
    )
    assert [g.status for g in grades] == ["ok", "error", "ok"]
    assert grades[1] == Grade(0.0, None, "error")
    assert [g.reward for g in (grades[0], grades[2])] == [5, 2]  # each has its own score
    assert grades[0].parts == {"proxy": 5, "proxy_std": 0, "gold": 3, "own": 5}  # the inner `proxy` gives way
    assert scorer.calls == [[talk, [*talk[:-1], {"role": "assistant", "content": "no"}]]]
    crashed = [episode(env, "crash")]
    assert env.grade(crashed)[0].status == "error"
    assert len(scorer.calls) == 1  # nothing to score


@pytest.mark.parametrize("factors", [(math.nan,), (1.0, math.inf), (-math.inf,)])
def test_a_score_that_is_no_number_is_the_harnesss_failure(factors: tuple[float, ...]) -> None:
    env = Rlhf(PLAIN, Lengths(factors), Worst())
    assert env.grade([episode(env, RIGHT)]) == [Grade(0.0, None, "error")]


def test_a_scorer_that_loses_a_conversation_is_found_out() -> None:
    env = Rlhf(PLAIN, lambda conversations: [(1.0,)])
    with pytest.raises(ValueError, match="zip"):
        env.grade([episode(env, "1"), episode(env, "2")])


def test_weights_are_checked() -> None:
    with pytest.raises(ValueError, match="no reward part 'golden'; the parts are proxy, gold"):
        Rlhf(PLAIN, Lengths(), weights={"golden": 1.0})
    with pytest.raises(ValueError, match="gold is -1"):
        Rlhf(PLAIN, Lengths(), weights={"proxy": 1.0, "gold": -1.0})


def test_problems_and_verifier_stay_and_the_manifest_tells() -> None:
    env = Rlhf(PLAIN, Lengths((1.0, 2.0)), Worst())
    assert isinstance(env, Env)
    env.validate()
    with pytest.raises(ValueError, match="never right"):
        Rlhf(TwoTurns(), Lengths()).validate()
    assert [env.split("test")[i] for i in range(5)] == [PLAIN.split("test")[i] for i in range(5)]
    assert env.name == "arithmetic-rlhf"  # its rewards are not to be taken for the inner ones
    assert Rlhf(PLAIN, Lengths(), name="mine").name == "mine"
    manifest = env.manifest()
    assert manifest == {
        **PLAIN.manifest(),
        "name": "arithmetic-rlhf",
        "reward": {
            "scorer": "Lengths(factors=(1.0, 2.0))",
            "combine": "Worst()",
            "weights": {"proxy": 1.0, "gold": 0.0},
        },
    }


# Configuration

OTHER_SCORER = ("~env.scorer", "+env.scorer={_target_: test_rlhf.Lengths}")


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(overrides=["+env=rlhf", *overrides])


def test_notes_are_the_inner_environment_unless_another_is_chosen() -> None:
    assert composed().env.env._target_ == "envs.notes.Notes"


def test_the_inner_environment_is_chosen_by_its_own_group() -> None:
    config = composed("env@env.env=arithmetic", "env.env.digits=2", *OTHER_SCORER)
    assert instantiate(config.env) == Rlhf(Arithmetic(digits=2), Lengths())


def test_everything_else_is_chosen_by_its_key() -> None:
    config = composed(
        "env@env.env=arithmetic",
        "env.combine._target_=envs.rlhf.VariancePenalised",
        "+env.combine.coefficient=2.0",
        "env.weights.gold=0.25",
        "env.name=mine",
        *OTHER_SCORER,
        "+env.scorer.factors=[1.0,3.0]",
    )
    env = instantiate(config.env)
    assert (env.combine, env.weights, env.name) == (VariancePenalised(2.0), {"proxy": 1.0, "gold": 0.25}, "mine")
    assert [list(env.scorer.factors), type(env.weights)] == [[1.0, 3.0], dict]


def test_an_experiment_file_chooses_both(tmp_path: Path) -> None:
    lines = ("# @package _global_", "defaults:", "  - override /env: rlhf", "  - override /env@env.env: arithmetic")
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("\n".join(lines), encoding="utf-8")
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        added = ["+experiment=mine", f"hydra.searchpath=[file://{tmp_path}]", "env.scorer.paths=[rm]"]
        config = compose("train", overrides=added)
    assert config.env._target_ == "envs.rlhf.Rlhf"
    assert config.env.env._target_ == "envs.arithmetic.Arithmetic"
    assert config.env.env.terms == 2


def test_the_reward_models_are_named_by_path() -> None:
    config = composed("env@env.env=arithmetic", "env.scorer.paths=[runs/a,runs/b]")
    assert config.env.scorer == {
        "_target_": "rlreason.scorer.load_scorer",
        "_convert_": "all",
        "paths": ["runs/a", "runs/b"],
    }


def test_training_logs_proxy_and_gold_of_the_same_samples(tmp_path: Path) -> None:
    config = tiny_config(
        "env=rlhf", "env@env.env=arithmetic", *OTHER_SCORER, "max_steps=2", "eval_every=2", "eval_limit=3"
    )
    run(config, tmp_path)
    metrics = read_metrics(tmp_path)
    rows = read_traces(tmp_path, ["split", "step", "text", "reward", "correct"])
    assert (rows["reward"] == rows["text"].str.len()).all()
    for step, of_step in rows[rows["split"] == "train"].groupby("step"):
        line = metrics[metrics["step"] == step].iloc[0]
        assert line["rewards/proxy/mean"] == line["reward"] == pytest.approx(of_step["text"].str.len().mean())
        assert line["rewards/gold/mean"] == pytest.approx(of_step["correct"].astype(float).mean())
    last = metrics.iloc[-1]
    assert last["eval/arithmetic-rlhf/proxy"] == last["eval/arithmetic-rlhf/reward"]
    assert last["eval/arithmetic-rlhf/gold"] == last["eval/arithmetic-rlhf/accuracy"]
