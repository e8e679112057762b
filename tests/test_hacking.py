"""Rewards against an independent verifier: by hand, and the alarm's own rule over any two of them."""

from __future__ import annotations

import json
import math
from typing import Any

import pandas as pd
import pytest
from trace_frames import frame, row

from rlreason.analysis.hacking import first_parting, history, over_time, parts
from rlreason.analysis.overoptimisation import history_of, parted


def graded(step: int, group: int, sample: int, proxy: float, gold: float, **columns: Any) -> dict[str, Any]:
    own = {"parts": json.dumps({"proxy": proxy, "gold": gold}), "reward": proxy, "correct": gold > 0.5}
    return row(group, sample, step=step, **(own | columns))


def test_parts_as_columns() -> None:
    found = parts(frame(row(parts='{"a": 1.0, "b": null}'), row(1, parts='{"a": 0.5}')))
    assert found["a"].tolist() == [1.0, 0.5]
    assert found["b"].isna().all()


def test_over_time_by_hand() -> None:
    traces = frame(
        graded(1, 0, 0, 0.0, 1.0),
        graded(1, 0, 1, 0.0, 0.0),
        graded(2, 0, 0, 1.0, 0.0),
        graded(2, 1, 0, 1.0, 0.0),
        graded(2, 1, 1, 9.0, 9.0, status="error"),
        graded(0, 0, 0, 5.0, 5.0, split="validation"),
    )
    found = over_time(traces, "proxy", "gold").set_index(["split", "step"])
    assert found["rollouts"].tolist() == [2, 2, 1]
    assert found["proxy"].tolist() == [0, 1, 5]
    assert found["gold"].tolist() == [0.5, 0, 5]
    # the proxy rises by 1 at a deviation of 0.5; gold falls by 0.5 at one of sqrt(1/4 x 3/4)
    assert found.loc[("train", 1), "divergence"] == 0
    assert found.loc[("train", 2), "divergence"] == pytest.approx(2 + 0.5 / math.sqrt(3 / 16))
    assert math.isnan(found.loc[("validation", 0), "divergence"])  # nothing varies
    assert found.loc[("train", 1), "concordance"] == 0.5  # one pair, and the proxy ties
    assert math.isnan(found.loc[("train", 2), "concordance"])


def test_concordance_is_within_draws() -> None:
    """Draw 0: 1 of gold's 2 pairs in order, 1 tied: 1.5. Draw 1: in reverse: 0. Across draws everything agrees."""
    values = [(0, 0.5, 1.0), (0, 0.5, 0.0), (0, 0.25, 0.0), (1, 0.0, 0.5), (1, 0.125, 0.25)]
    rows = [graded(1, group, i, proxy, gold) for i, (group, proxy, gold) in enumerate(values)]
    assert over_time(frame(*rows), "reward", "gold")["concordance"].item() == pytest.approx(1.5 / 3)


def evaluations(*changes: tuple[int, float, float]) -> pd.DataFrame:
    """Eight problems of two samples; by step, what is added to all proxies and golds."""
    rows = [
        graded(step, i, s, i + proxy + s, i / 2 + gold - s, split="validation")
        for step, proxy, gold in changes
        for i in range(8)
        for s in range(2)
    ]
    return frame(*rows)


def test_the_first_parting_is_the_alarms() -> None:
    traces = evaluations((0, 0.0, 0.0), (20, 1.0, 0.5), (40, 1.75, 0.25), (60, 3.0, -2.0))
    found = first_parting(traces, "proxy", "gold")
    assert found == parted(history_of(traces))
    assert found is not None
    assert (found.since, found.step, found.proxy.mean, found.gold.mean) == (20, 40, 0.75, -0.25)
    assert first_parting(traces, "gold", "proxy") is None


def test_columns_are_taken_as_well_as_parts() -> None:
    """The reward rises by half, and the verdicts fall, on all eight problems alike."""
    traces = evaluations((0, 0.0, 0.0), (10, 0.5, 0.0))
    verdicts = pd.array([True] * 16 + [False] * 16, dtype="boolean")
    found = first_parting(traces.assign(correct=verdicts), "reward", "correct")
    assert found is not None
    assert (found.step, found.gold.mean) == (10, -1)
    other = traces.assign(verifier=[1.0] * 16 + [1.5] * 16)
    assert first_parting(other, "reward", "verifier") is None


def test_problems_are_paired_and_training_passed_over() -> None:
    traces = frame(
        graded(0, 0, 0, 1.0, 2.0, split="test", problem="a"),
        graded(0, 1, 0, 3.0, 4.0, split="test", problem="b"),
        graded(5, 0, 0, 5.0, 6.0, split="test", problem="b"),  # b again, in another place
        graded(5, 1, 0, 7.0, 8.0, split="test", problem="c"),
        graded(3, 0, 0, 9.0, 9.0, problem="b"),
    )
    found = history(traces, "proxy", "gold")
    assert [(e.step, e.proxy.tolist(), e.gold.tolist()) for e in found] == [(0, [3.0], [4.0]), (5, [5.0], [6.0])]


def test_what_makes_no_history_is_refused() -> None:
    one, other = graded(0, 0, 0, 1.0, 1.0, split="test"), graded(1, 1, 0, 1.0, 1.0, split="test")
    with pytest.raises(ValueError, match="no problem was graded in every evaluation"):
        history(frame(one, other), "proxy", "gold")
    with pytest.raises(ValueError, match="have test, validation"):
        history(frame(one, other | {"split": "validation"}), "proxy", "gold")
    with pytest.raises(ValueError, match="have none"):
        history(frame(graded(0, 0, 0, 1.0, 1.0)), "proxy", "gold")
    with pytest.raises(ValueError, match="no part judge, and the traces no such column; parts: proxy, gold"):
        history(frame(one), "judge", "gold")
    with pytest.raises(ValueError, match="no graded rollout has both"):
        over_time(frame(one | {"correct": None}), "reward", "correct")
