"""Stored traces under another verifier, reward and estimator: the rollouts come back whole, and are judged anew."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import make_rollout
from trace_frames import frame, row

from envs.arithmetic import Arithmetic
from envs.formats import Hash
from rlreason.advantages import GAE, RLOO, Estimator, GroupRelative, MaxRL, ReinforcePlusPlus
from rlreason.analysis.compare import compare
from rlreason.analysis.load import read_traces
from rlreason.analysis.replay import problems_of, rebuilt, regrade, with_advantage, with_reward
from rlreason.batch import collate
from rlreason.traces import notes_on, write_traces
from rlreason.types import Episode, Grade, Message, Problem, Rollout, Segment

# Rollouts back out of traces


def several(step: int = 1) -> list[Rollout]:
    """Two groups of three: two segments, an error, a cut-off one, parts, and tokens that the environment wrote."""
    made = [
        make_rollout(0, [4, 5], [6, 7, 8], 1.0, correct=True, sampler_logp=[-0.5, -0.25, -0.125]),
        make_rollout(0, [4, 5], [9], 0.25, correct=False, finish="length"),
        make_rollout(0, [4, 5], [6], 0.0, status="error"),
        make_rollout(1, [4], [5, 6], 0.5 * step, correct=None),
        make_rollout(1, [4], [5, 7, 8, 9], 0.0, correct=False, status="unparseable"),
        make_rollout(1, [4], [5], 0.0, correct=False, status="timeout"),
    ]
    second = Segment([4, 5, 6], [7, 8], [-1.0, -2.0], [False, True])
    made[0] = replace(made[0], segments=[*made[0].segments, second], text="four")
    made[0] = replace(made[0], grade=Grade(1.0, True, answer="4", turn_rewards=(0.25, 0.5)))
    made[1] = replace(made[1], problem=replace(made[1].problem, tools=({"function": {"name": "f"}},)))
    made[1] = replace(made[1], grade=replace(made[1].grade, parts={"accuracy": 0.0, "format": 0.25}))
    return made


def stored(folder: Path, *steps: list[Rollout], estimator: Estimator | None = None) -> pd.DataFrame:
    (folder / "traces").mkdir(exist_ok=True)
    for step, rollouts in enumerate(steps, start=1):
        notes = None
        if estimator is not None:
            notes = notes_on(estimator(collate(rollouts)), None, len(rollouts))
        path = folder / "traces" / f"step-{step:06d}.parquet"
        write_traces(path, rollouts, step=step, split="train", env="e", trained=notes)
    return read_traces(folder)


def test_rollouts_come_back_whole(tmp_path: Path) -> None:
    rollouts = several()
    assert rebuilt(stored(tmp_path, rollouts)) == rollouts


def test_whatever_the_order_of_the_rows(tmp_path: Path) -> None:
    traces = stored(tmp_path, several())
    shuffled = traces.sample(frac=1, random_state=3)
    assert shuffled["segment"].tolist() != traces["segment"].tolist()
    by_name = {(r.group, str(r.segments), r.grade.status): r for r in several()}
    assert {(r.group, str(r.segments), r.grade.status): r for r in rebuilt(shuffled)} == by_name


# Another verifier


def arithmetic(*texts: str, env: Arithmetic) -> list[Rollout]:
    """A group for each text, on the problems of the validation split in order."""
    made = []
    for group, text in enumerate(texts):
        problem = env.split("validation")[group]
        text = text.replace("GOLD", problem.answer)
        grade = env.grade([Episode(problem, None, [], text, "stop")])[0]
        reply: list[Message] = [*problem.prompt, {"role": "assistant", "content": text}]
        made.append(Rollout(problem, group, [Segment([4], [5], [-1.0], [True])], reply, text, "stop", grade))
    return made


def test_another_verifier_judges_the_same_texts(tmp_path: Path) -> None:
    plain, strict = Arithmetic(), Arithmetic(format=Hash())
    texts = ("It is GOLD.", "#### GOLD", "no idea", "#### 9999")
    traces = stored(tmp_path, arithmetic(*texts, env=plain))
    assert traces["correct"].tolist() == [True, True, False, False]
    found = regrade(traces, strict)
    assert found["correct"].tolist() == [False, True, False, False]
    # the same grades as a run with that verifier would have written, and all else as it was
    expected = stored(tmp_path, arithmetic(*texts, env=strict))
    judged = ["reward", "correct", "status", "answer", "parts"]
    pd.testing.assert_frame_equal(found[judged], expected[judged], check_dtype=False)
    pd.testing.assert_frame_equal(found.drop(columns=judged), traces.drop(columns=judged))
    assert compare(traces, found).difference.mean == -0.25  # the copy is a frame of traces like any other


@dataclass(frozen=True)
class Typed:
    """Knows answers only as numbers, and states only as ``start`` makes them."""

    name: str = "typed"

    def split(self, name: str) -> Any:
        return Arithmetic().split(name)

    def start(self, problem: Problem, seed: int) -> Any:
        return {"answer": problem.answer}

    def replies(self, states: Sequence[Any], conversations: Sequence[list[Message]]) -> list[list[Message] | None]:
        raise AssertionError("nothing is generated")

    def grade(self, episodes: Sequence[Episode]) -> list[Grade]:
        right = [isinstance(e.state["answer"], int) and e.text == f"It is {e.state['answer']}." for e in episodes]
        return [Grade(math.nan if ok else 0.0, ok) for ok in right]

    def validate(self) -> None: ...

    def manifest(self) -> dict[str, Any]:
        return {}


def test_an_environment_may_give_its_own_problems(tmp_path: Path) -> None:
    traces = stored(tmp_path, arithmetic("It is GOLD.", "It is 9999.", env=Arithmetic()))
    typed = {i: replace(p, answer=int(p.answer)) for i, p in problems_of(Typed(), "validation").items()}
    assert regrade(traces, Typed(), typed)["correct"].tolist() == [True, False]
    assert regrade(traces, Typed(), typed)["reward"].isna().tolist() == [True, False]  # what isn't finite is null
    assert regrade(traces, Typed())["correct"].tolist() == [False, False]  # without them, an answer is text
    with pytest.raises(ValueError, match=r"the problem arithmetic/.* is not among those given"):
        regrade(traces, Typed(), {})
    with pytest.raises(ValueError, match="endless"):
        problems_of(Arithmetic(word_problem_steps=1), "train")


# Another reward


def test_another_reward_from_the_parts(tmp_path: Path) -> None:
    traces = stored(tmp_path, several())
    found = with_reward(traces, lambda r: 2 * r.grade.parts.get("format", 0.0) - (r.finish == "length"))
    # of the first rollout both segments; the error keeps its own
    assert found["reward"].tolist() == [0, 0, 0.5 - 1, 0, 0, 0, 0]
    assert traces["reward"].tolist() == [1, 1, 0.25, 0, 0.5, 0, 0]


# Another estimator


def test_advantages_by_hand() -> None:
    traces = frame(
        row(0, 0, reward=1.0, tokens=2, mask=[True, False]),
        row(0, 1, reward=0.0),
        row(0, 2, reward=0.5, advantage=math.nan),  # rejected: no part of the batch
        row(0, 0, segment=1, reward=1.0),
        row(0, 0, step=2, reward=3.0),
        row(0, 1, step=2, reward=2.0),
        row(0, 0, step=2, split="validation", reward=7.0, advantage=math.nan),
    )
    found = with_advantage(traces, RLOO())
    np.testing.assert_array_equal(found["advantage"], [1, -1, np.nan, 1, 1, -1, np.nan])
    tokens = [None if values is None else values.tolist() for values in found["token_advantage"]]
    assert tokens == [[1, 0], [-1], None, [1], [1], [-1], None]
    scaled = with_advantage(traces, GroupRelative())  # standard deviation sqrt(1/2) of both groups
    one = 0.5 / (math.sqrt(0.5) + 1e-4)
    np.testing.assert_allclose(scaled["advantage"], [one, -one, np.nan, one, one, -one, np.nan], rtol=1e-6)
    assert traces["advantage"].tolist()[:2] == [0, 0]


@pytest.mark.parametrize("estimator", [GroupRelative(), RLOO(), MaxRL(), ReinforcePlusPlus()])
def test_the_runs_own_estimator_gives_what_the_run_recorded(estimator: Estimator, tmp_path: Path) -> None:
    traces = stored(tmp_path, several(), several(step=2), estimator=estimator)
    found = with_advantage(traces.sample(frac=1, random_state=1), estimator).sort_index()
    np.testing.assert_allclose(found["advantage"], traces["advantage"], rtol=1e-6, atol=1e-7)
    for own, recorded in zip(found["token_advantage"], traces["token_advantage"], strict=True):
        np.testing.assert_allclose(own, recorded, rtol=1e-6, atol=1e-7)
    assert traces["advantage"].abs().sum() > 0


def test_truncated_rows_can_be_masked_as_in_training(tmp_path: Path) -> None:
    traces = stored(tmp_path, several(), estimator=GroupRelative())
    plain, masked = (with_advantage(traces, ReinforcePlusPlus(), mask_truncated=m) for m in (False, True))
    batch = ReinforcePlusPlus()(collate(several(), mask_truncated=True))
    assert batch.advantage is not None
    expected = [float(batch.advantage[i][batch.mask[i]].mean()) for i in (2, 4, 5)]
    np.testing.assert_allclose(masked["advantage"].iloc[[2, 4, 5]], expected, rtol=1e-6)
    assert abs(plain["advantage"].iloc[2] - expected[0]) > 0.01


def test_what_traces_do_not_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="GAE needs value, which traces do not hold"):
        with_advantage(stored(tmp_path, several()), GAE())
    with pytest.raises(ValueError, match="no training step"):
        with_advantage(frame(row(split="test")), RLOO())


def test_the_parts_are_json(tmp_path: Path) -> None:
    found = regrade(stored(tmp_path, arithmetic("It is GOLD.", env=Arithmetic())), Arithmetic(format=Hash()))
    assert json.loads(found["parts"].iloc[0])["accuracy"] == 0.0
