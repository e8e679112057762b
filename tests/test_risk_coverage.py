"""Risk against coverage by hand, and the expectation over ties against all orders."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
import pytest
from trace_frames import frame, row

from rlreason.analysis.calibration import agreement
from rlreason.analysis.risk_coverage import Selective, abstained, abstention, curve, known, plot, selective
from rlreason.stats import wilson_interval


def asked(group: int, sample: int, outcome: str, **columns: Any) -> dict[str, Any]:
    """A rollout that was right, wrong or abstained."""
    parts = {"accuracy": float(outcome == "right"), "abstained": float(outcome == "abstained")}
    return row(group, sample, correct=outcome == "right", parts=json.dumps(parts), **columns)


def test_abstention_by_hand() -> None:
    traces = frame(
        asked(0, 0, "right"),
        asked(0, 1, "right"),
        asked(1, 0, "wrong"),
        asked(1, 1, "abstained"),
        asked(1, 1, "abstained", segment=1),
        asked(2, 0, "abstained"),
        asked(2, 1, "abstained"),
        asked(3, 0, "right", status="error"),
        row(4, 0),  # of a member of a mixture that knows no abstention
    )
    found = abstention(traces)
    assert (found.coverage.mean, found.coverage.n) == (3 / 6, 3)
    assert found.risk is not None
    assert (found.risk.mean, found.risk.n) == (1 / 3, 2)  # problem 2 was never answered
    assert found.coverage.low <= 0.5 <= found.coverage.high
    assert abstained(traces).tolist()[3:5] == [1, 1]


def test_intervals_are_over_problems() -> None:
    """20 problems of 5 samples each: all answered, all right."""
    found = abstention(frame(*(asked(group, sample, "right") for group in range(20) for sample in range(5))))
    assert found.risk is not None
    assert (found.risk.low, found.risk.high) == wilson_interval(0, 20)
    assert (found.coverage.low, found.coverage.high) == wilson_interval(20, 20)
    wide = abstention(frame(*(asked(group, 0, "right") for group in range(20))), confidence=0.99)
    assert wide.risk is not None
    assert wide.risk.high > found.risk.high


def test_nothing_answered_has_no_risk() -> None:
    found = abstention(frame(asked(0, 0, "abstained"), asked(1, 0, "abstained")))
    assert (found.coverage.mean, found.risk) == (0, None)
    with pytest.raises(ValueError, match="no grade in these traces has the part 'abstained'; they have accuracy"):
        abstention(frame(row()))


def test_a_member_of_a_mixture() -> None:
    rows = [row(i, 0, correct=False, parts=f'{{"sums/abstained": {i}}}') for i in range(2)]
    found = abstention(frame(*rows, row(2, 0, parts='{"letters/accuracy": 1}')), "sums/abstained")
    assert (found.coverage.mean, found.coverage.n) == (0.5, 2)
    assert found.risk is not None
    assert found.risk.mean == 1


def test_known_and_unknown_apart() -> None:
    given = [("right", "true"), ("abstained", "false"), ("right", None), ("wrong", "false")]
    metas = ["{}" if known is None else f'{{"known": {known}}}' for _, known in given]
    traces = frame(*(asked(i, 0, outcome, meta=metas[i]) for i, (outcome, _) in enumerate(given)))
    assert known(traces).to_list() == [True, False, pd.NA, False]
    assert abstention(traces[known(traces) == False]).coverage.mean == 0.5  # noqa: E712
    assert abstention(traces[known(traces) == True]).coverage.mean == 1  # noqa: E712


def test_curve_by_hand() -> None:
    """Right at 0.9; one right and one wrong at 0.8, in either order; wrong at 0.5."""
    found = curve([0.5, 0.8, 0.9, 0.8], [0, 1, 1, 0])
    assert found["coverage"].tolist() == [1 / 4, 2 / 4, 3 / 4, 1]
    np.testing.assert_allclose(found["risk"], [0, 0.5 / 2, 1 / 3, 2 / 4])
    np.testing.assert_allclose(curve([1, 0], [0, 1])["risk"], [1, 1 / 2])  # sure of what is wrong


def test_ties_are_the_mean_over_all_orders() -> None:
    confidence, right = [0.3, 0.7, 0.3, 0.7, 0.3, 0.7], [1, 0, 0, 1, 0, 1]
    risks = []
    for order in itertools.permutations(range(6)):
        if [confidence[i] for i in order] == sorted(confidence, reverse=True):
            wrong = np.cumsum([1 - right[i] for i in order])
            risks.append(wrong / np.arange(1, 7))
    assert len(risks) == 36
    np.testing.assert_allclose(curve(confidence, right)["risk"], np.mean(risks, axis=0))


@pytest.mark.parametrize(
    ("confidence", "correct", "what"),
    [([], [], "one shape"), ([0.5], [1, 0], "one shape"), ([0.5, np.nan], [1, 0], "NaN"), ([0.5], [np.nan], "NaN")],
)
def test_curves_of_what_is_none(confidence: list[float], correct: list[float], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        curve(confidence, correct)


def test_selective_by_hand() -> None:
    traces = frame(
        *(row(group, 0, correct=ok) for group, ok in enumerate([False, True, True, False, None])),
        row(5, 0, correct=True),
    )
    found = selective(traces, pd.Series([0.5, 0.8, 0.9, 0.8, 1.0, np.nan]))
    assert (found.n, found.risk) == (4, 0.5)  # without a verdict, or a confidence: not counted
    assert found.aurc == pytest.approx((0 + 1 / 4 + 1 / 3 + 1 / 2) / 4)
    assert found.oracle == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)
    assert found.excess == pytest.approx((1 / 4) / 4)


def test_the_oracle_is_best_and_a_constant_is_chance() -> None:
    right = [True, False, True, True, False]
    traces = frame(*(row(group, 0, correct=ok) for group, ok in enumerate(right)))
    best = selective(traces, pd.Series([float(ok) for ok in right]))
    assert best.excess == 0
    blind = selective(traces, pd.Series([0.3] * 5))
    assert blind.aurc == pytest.approx(blind.risk) == pytest.approx(fmean(not ok for ok in right))
    worst = selective(traces, pd.Series([float(not ok) for ok in right]))
    assert best.aurc < blind.aurc < worst.aurc
    perfect = selective(frame(row(0, 0), row(1, 0)), pd.Series([0.1, 0.2]))
    assert perfect == Selective(2, 0.0, 0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="both a confidence and a verdict"):
        selective(traces, pd.Series([np.nan] * 5))


def test_agreement_among_samples_selects() -> None:
    """Three say 7, which is right; one says 8. Of another problem's four no two agree, and none is right."""
    rows = [row(0, i, answer=answer, correct=answer == "7") for i, answer in enumerate("7787")]
    rows += [row(1, i, answer=answer, correct=False) for i, answer in enumerate("1234")]
    found = selective(frame(*rows), agreement(frame(*rows)))
    # the three agree with two thirds of the others; the five that are wrong with nobody
    assert found.excess == 0
    assert found.aurc == pytest.approx((0 + 0 + 0 + 1 / 4 + 2 / 5 + 3 / 6 + 4 / 7 + 5 / 8) / 8)


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    point = abstention(frame(asked(0, 0, "right"), asked(1, 0, "wrong"), asked(2, 0, "abstained")))
    alone = abstention(frame(asked(0, 0, "right"), asked(0, 1, "wrong")))  # one problem: no interval
    silent = abstention(frame(asked(0, 0, "abstained")))
    points = {"trained": point, "one problem": alone, "silent": silent}
    plot({"likelihood": curve([0.5, 0.8, 0.9], [0, 1, 1])}, points, tmp_path / "risk.png")
    assert (tmp_path / "risk.png").read_bytes().startswith(b"\x89PNG")
