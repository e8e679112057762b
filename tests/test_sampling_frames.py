"""pass@k and maj@k from frames: against ``stats`` applied by hand, and against all subsets."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from trace_frames import frame, row

from rlreason.analysis.sampling import by_problem, majorities, passes
from rlreason.stats import bootstrap_interval


def samples(problem: str, answers: str, gold: str = "7", **columns: object) -> list[dict[str, object]]:
    """A sample for each character, an answer; ``.`` for none. Right if it is ``gold``."""
    return [
        row(0, sample, problem=problem, answer=None if given == "." else given, correct=given == gold, **columns)
        for sample, given in enumerate(answers)
    ]


def of(*problems: list[dict[str, object]]) -> pd.DataFrame:
    """Each problem a group of its own."""
    return frame(*(own | {"group": group} for group, rows in enumerate(problems) for own in rows))


def test_by_problem() -> None:
    found = by_problem(of(samples("a", "7783.7"), samples("b", "..")))
    assert found["problem"].tolist() == ["a", "b"]
    assert found[["samples", "right", "silent", "answers"]].to_numpy().tolist() == [[6, 3, 1, 3], [2, 0, 2, 0]]


def test_pass_at_k_by_hand() -> None:
    # a: 2 of 5 right, pass@2 = 1 - C(3,2)/C(5,2) = 0.7; b: none of 5; c has too few samples for k = 5
    traces = of(samples("a", "77123"), samples("b", "11111"), samples("c", "7111"))
    found = passes(traces, [1, 2, 5]).set_index("k")
    assert found["mean"].to_dict() == pytest.approx({1: (0.4 + 0 + 0.25) / 3, 2: (0.7 + 0 + 0.5) / 3, 5: 0.5})
    assert found["problems"].to_dict() == {1: 3, 2: 3, 5: 2}
    assert (found.loc[2, "low"], found.loc[2, "high"]) == bootstrap_interval([0.7, 0, 0.5])


def test_pass_at_k_is_the_mean_over_all_subsets() -> None:
    answers = "7.71213"
    exact = np.mean(["7" in subset for subset in itertools.combinations(answers, 3)])
    assert passes(of(samples("a", answers)), [3])["mean"].item() == pytest.approx(exact, abs=1e-15)


def test_maj_at_k_by_hand() -> None:
    # a: the runs 778 and 199 (a 7 is left over): right, wrong. b: 1.7, a tie of right and wrong; then 777.
    # c: nobody answers. By problem 0.5, 0.75, 0.
    traces = of(samples("a", "7781997"), samples("b", "1.7777"), samples("c", "..."))
    found = majorities(traces, [3]).iloc[0]
    assert found["mean"] == pytest.approx((0.5 + 0.75 + 0) / 3, abs=1e-15)
    assert found["problems"] == 3
    all_of_them = majorities(traces, [6]).iloc[0]  # a: 778199 ties 7 with 9; b: 7 of 17777
    assert (all_of_them["mean"], all_of_them["problems"]) == (0.75, 2)


def test_maj_at_1_is_accuracy() -> None:
    traces = of(samples("a", "7718"), samples("b", "77"))
    assert majorities(traces, [1])["mean"].item() == passes(traces, [1])["mean"].item() == 0.75


def test_steps_and_splits_apart_draws_of_one_problem_together() -> None:
    first = [own | {"step": 1} for own in samples("a", "77")]
    later = [own | {"step": 2} for own in samples("a", "71")]
    again = [own | {"step": 2, "group": 5} for own in samples("a", "11")]  # drawn twice in step 2: 1 right of 4
    validation = [own | {"split": "validation"} for own in samples("a", "1")]
    found = passes(frame(*first, *later, *again, *validation), [1, 2])
    assert found[["split", "step", "k", "mean", "problems"]].to_numpy().tolist() == [
        ["train", 1, 1, 1.0, 1],
        ["train", 1, 2, 1.0, 1],
        ["train", 2, 1, 0.25, 1],
        ["train", 2, 2, 0.5, 1],  # 1 - C(3,2)/C(4,2)
        ["validation", 1, 1, 0.0, 1],  # and no k = 2
    ]


def test_errors_and_what_has_no_verdict_are_left_out() -> None:
    rows = samples("a", "7777")
    rows[0] |= {"status": "error", "correct": False}
    rows[1] |= {"correct": None}
    assert by_problem(frame(*rows))["samples"].item() == 2
    with pytest.raises(ValueError, match="no rollout in these traces was judged"):
        passes(frame(row(correct=None)), [1])


def test_a_k_below_1_is_refused() -> None:
    with pytest.raises(ValueError, match="k is 0"):
        passes(frame(row()), [1, 0])
