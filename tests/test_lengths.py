"""Lengths by hand: what counts as one, over steps, and wrong against right."""

from __future__ import annotations

import math

import numpy as np
import pytest
from trace_frames import frame, row

from rlreason.analysis.lengths import accuracy_by_length, by_step, lengths, wrong_against_right


def test_what_the_environment_wrote_does_not_count_and_segments_add_up() -> None:
    traces = frame(
        row(0, 2, tokens=7, segment=1),  # rows may come in any order
        row(0, 0, tokens=4, mask=[True, False, False, True]),
        row(0, 1, tokens=3, correct=False, finish="length"),
        row(0, 0, tokens=5, segment=1),
        row(0, 2, tokens=2, correct=None),
        row(0, 3, tokens=1, correct=True, status="error"),
    )
    found = lengths(traces)
    assert found["length"].tolist() == [2 + 5, 3, 2 + 7, 1]
    assert found["truncated"].tolist() == [False, True, False, False]
    np.testing.assert_array_equal(found["correct"], [1, 0, np.nan, np.nan])  # an error has no verdict


def test_by_step() -> None:
    traces = frame(
        row(0, 0, tokens=2),
        row(0, 1, tokens=4, correct=False, finish="length"),
        row(1, 0, tokens=6, correct=False),
        row(1, 1, tokens=12),
        row(0, 0, step=2, tokens=3, correct=False, finish="length"),
        row(0, 0, step=2, split="validation", tokens=7),
    )
    found = by_step(traces).set_index(["split", "step"])
    assert found.index.tolist() == [("train", 1), ("train", 2), ("validation", 2)]
    first = found.loc[("train", 1)].to_dict()
    # 2, 4, 6, 12: the ninth decile is at place 0.9 x 3 = 2.7 from 0, so 6 + 0.7 x 6
    assert first == pytest.approx(
        {"rollouts": 4, "mean": 6, "median": 5, "p90": 10.2, "max": 12, "right": 7, "wrong": 5, "truncated": 0.25,
         "accuracy": 0.5, "accuracy_stopped": 2 / 3}
    )  # fmt: skip
    assert math.isnan(found.loc[("train", 2), "right"])
    assert math.isnan(found.loc[("train", 2), "accuracy_stopped"])


def test_wrong_against_right_within_a_draw() -> None:
    """Problem a is hard and long: over all rollouts wrong ones are longer, within problems they are shorter."""
    traces = frame(
        row(0, 0, problem="a", tokens=20),
        row(0, 1, problem="a", tokens=18, correct=False),
        row(0, 2, problem="a", tokens=16, correct=False),  # a: 17 wrong, 20 right
        row(1, 0, problem="b", tokens=4),
        row(1, 1, problem="b", tokens=6),
        row(1, 2, problem="b", tokens=4, correct=False),  # b: 4 wrong, 5 right
        row(0, 0, step=2, problem="b", tokens=8),
        row(0, 1, step=2, problem="b", tokens=9, correct=False),  # b again: 9 wrong, 8 right; so 6.5 and 6.5
        row(2, 0, problem="c", tokens=30, correct=False),  # only wrong: nothing to compare
        row(3, 0, problem="d", tokens=1),
    )
    found = wrong_against_right(traces)
    assert found is not None
    assert (found.wrong.mean, found.right.mean, found.difference.mean) == ((17 + 6.5) / 2, (20 + 6.5) / 2, -1.5)
    # two problems of -3 and 0: a quarter of all resamples is twice the one, a quarter twice the other
    assert (found.difference.low, found.difference.high, found.difference.n) == (-3, 0, 2)
    means = by_step(traces[traces["step"] == 1]).iloc[0]
    assert means["wrong"] > means["right"]


def test_without_a_draw_of_both_there_is_no_gap() -> None:
    assert wrong_against_right(frame(row(0, 0), row(1, 0, correct=False))) is None
    assert wrong_against_right(frame(row(0, 0), row(0, 1))) is None


def test_accuracy_by_length() -> None:
    # Lengths 1 to 4 in two halves: 1 and 2 (right, wrong) of problems 0 and 1, 3 and 4 (wrong) of problem 2 alone
    traces = frame(
        row(0, tokens=1),
        row(1, tokens=2, correct=False),
        row(2, 0, tokens=3, correct=False),
        row(2, 1, tokens=4, correct=False, finish="length"),
    )
    found = accuracy_by_length(traces, bins=2)
    shown = found[["shortest", "longest", "rollouts", "truncated", "accuracy"]]
    assert shown.to_numpy().tolist() == [[1, 2, 2, 0, 0.5], [3, 4, 2, 0.5, 0]]
    # two problems, 1 and 0; and one problem that was never solved, by Wilson: z² / (1 + z²) = 3.841 / 4.841
    np.testing.assert_allclose(found[["low", "high"]], [[0, 1], [0, 0.793450]], atol=1e-6)


def test_equal_lengths_are_one_bin_and_no_verdict_is_refused() -> None:
    assert len(accuracy_by_length(frame(row(0), row(1), row(2)), bins=3)) == 1
    with pytest.raises(ValueError, match="no accuracy"):
        accuracy_by_length(frame(row(0, correct=None)))


def test_a_frame_that_lacks_what_is_needed_is_refused() -> None:
    with pytest.raises(ValueError, match="no column mask; read them"):
        lengths(frame(row()).drop(columns="mask"))
    with pytest.raises(ValueError, match="no rows"):
        lengths(frame(row()).head(0))
    with pytest.raises(ValueError, match=r"two rollouts are called step 1, split train, group 0, sample 0: .*one at a"):
        lengths(frame(row(), row()))
    with pytest.raises(ValueError, match="first segment is missing"):
        lengths(frame(row(0, 0), row(0, 1, segment=1)))
