"""Controls change the reward and nothing else."""

from __future__ import annotations

from statistics import fmean

import pytest

from envs.arithmetic import Arithmetic
from envs.controls import Controlled, Flipped, FormatOnly, Random
from envs.formats import R1
from rlreason.types import Env, Episode, Grade


def grades(env: Env, texts: list[str], seeds: list[int] | None = None) -> list[Grade]:
    problem = env.split("train")[0]
    seeds = list(range(len(texts))) if seeds is None else seeds
    return env.grade(
        [Episode(problem, env.start(problem, seed), [], text, "stop") for text, seed in zip(texts, seeds, strict=True)]
    )


PLAIN = Arithmetic()
RIGHT = PLAIN.gold(PLAIN.split("train")[0])
TEXTS = [RIGHT, "It is 1000.", "no idea", ""]


def test_flipped_rewards_wrong_answers_that_were_given() -> None:
    found = grades(Controlled(PLAIN, Flipped()), TEXTS)
    assert [g.reward for g in found] == [0, 1, 0, 0]
    assert [g.correct for g in found] == [True, False, False, False]  # the verdict stays


def test_random_is_fair_repeatable_and_blind() -> None:
    env = Controlled(PLAIN, Random(probability=0.3))
    seeds = list(range(2000))
    right, wrong = (grades(env, [text] * len(seeds), seeds) for text in (RIGHT, "1000"))
    rewards = [g.reward for g in right]
    assert set(rewards) == {0, 1}
    assert abs(fmean(rewards) - 0.3) < 0.04  # four standard errors
    assert rewards == [g.reward for g in wrong] == [g.reward for g in grades(env, [RIGHT] * len(seeds), seeds)]
    other = grades(Controlled(PLAIN, Random(probability=0.3, seed=1)), [RIGHT] * len(seeds), seeds)
    assert rewards != [g.reward for g in other]


def test_format_only_is_the_formats_part() -> None:
    env = Controlled(Arithmetic(format=R1()), FormatOnly())
    texts = ["<think>So be it.</think><answer>1000</answer>", RIGHT]
    plain = grades(env.env, texts)
    found = grades(env, texts)
    assert [g.reward for g in found] == [g.parts["format"] for g in plain] == [1, 0]
    assert [g.parts["as_graded"] for g in found] == [g.reward for g in plain]


def test_what_a_rule_needs_is_asked_for_before_any_work() -> None:
    with pytest.raises(ValueError, match=r"no format to keep to.*envs.formats.R1"):
        Controlled(PLAIN, FormatOnly())
    with pytest.raises(ValueError, match="between 0 and 1"):
        Random(probability=1.5)


def test_problems_name_and_verifier_stay_and_the_manifest_tells() -> None:
    env = Controlled(PLAIN, Flipped())
    assert isinstance(env, Env)
    env.validate()
    assert env.name == PLAIN.name
    assert [env.split("test")[i] for i in range(5)] == [PLAIN.split("test")[i] for i in range(5)]
    assert env.manifest() == {**PLAIN.manifest(), "reward": "Flipped()"}
