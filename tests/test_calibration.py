"""Confidences by hand; calibration against its definitions, and AUROC against scipy's Mann-Whitney U."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import mannwhitneyu
from trace_frames import frame, row

from rlreason.analysis.calibration import agreement, answer_likelihood, calibration, likelihood, reliability


def test_likelihood_by_hand() -> None:
    half, quarter = math.log(0.5), math.log(0.25)
    traces = frame(
        row(0, 0, tokens=3, sampler_logp=[half, -9.0, quarter], mask=[True, False, True]),
        row(0, 1, tokens=1, sampler_logp=[half]),
        row(0, 0, tokens=1, segment=1, sampler_logp=[0.0]),
        row(0, 2, tokens=1, mask=[False]),  # the policy wrote nothing
    )
    np.testing.assert_allclose(likelihood(traces, per_token=False), [0.125, 0.5, np.nan], rtol=1e-6)
    np.testing.assert_allclose(likelihood(traces, per_token=True), [0.5, 0.5, np.nan], rtol=1e-6)  # 0.125^(1/3)


def test_a_rounding_above_certainty_is_certainty() -> None:
    assert likelihood(frame(row(sampler_logp=[1e-7])), per_token=True).item() == 1.0


PIECES = {10: "so ", 11: "4", 12: "2", 13: " and", 14: " 42", 15: ".", 16: "1 42"}


@pytest.mark.parametrize(
    ("ids", "answer", "expected"),
    [
        ([10, 11, 12, 13, 11, 12, 15], "42", 0.8 * 0.5),  # the last "4" and "2": tokens 4 and 5
        ([10, 14, 15, 10, 10, 10, 10], "42", 0.5),  # token 1, with the space before it
        ([16, 11, 10, 10, 10, 10, 10], "424", 0.5 * 0.5),  # begins within a token
        ([10, 15, 10, 10, 10, 10, 10], "42", np.nan),  # not written like that
        ([10, 11, 12, 10, 10, 10, 10], None, np.nan),
    ],
)
def test_likelihood_of_the_answer(ids: list[int], answer: str | None, expected: float) -> None:
    logp = [math.log(p) for p in (0.5, 0.5, 0.25, 0.1, 0.8, 0.5, 0.1)]
    traces = frame(row(tokens=7, completion_ids=ids, sampler_logp=logp, answer=answer))
    np.testing.assert_allclose(answer_likelihood(traces, PIECES.__getitem__), [expected], rtol=1e-6)


def test_the_answer_is_in_the_last_segment() -> None:
    traces = frame(
        row(0, 0, segment=1, completion_ids=[14], sampler_logp=[math.log(0.25)], answer="42"),
        row(0, 0, segment=0, completion_ids=[14], sampler_logp=[math.log(0.5)], answer="42"),
    )
    np.testing.assert_allclose(answer_likelihood(traces, PIECES.__getitem__), [0.25], rtol=1e-6)


def test_agreement_by_hand() -> None:
    given = ["7", "7", "8", None, "7"]
    rows = [row(0, sample, answer=answer) for sample, answer in enumerate(given)]
    rows[4] |= {"status": "error"}
    rows += [row(1, 0, answer="7"), row(0, 0, step=2, answer="8"), row(0, 1, step=2, answer="8")]
    # of three others: one, one, none, none; the error, and whoever is alone, have none; both agree
    np.testing.assert_allclose(agreement(frame(*rows)), [1 / 3, 1 / 3, 0, 0, np.nan, np.nan, 1, 1])


def test_reliability_by_hand() -> None:
    # in five bins: 0.1 | 0.2 and 0.35 | 0.9 and 1
    found = reliability([0.1, 0.2, 0.35, 0.9, 1.0], [0, 0, 1, 1, 0], bins=5)
    expected = [[0, 0.2, 0.1, 0, 1], [0.2, 0.4, 0.275, 0.5, 2], [0.8, 1, 0.95, 0.5, 2]]
    np.testing.assert_allclose(found[["low", "high", "confidence", "accuracy", "rollouts"]], expected)


@pytest.mark.parametrize("bad", [-0.1, 1.5, math.nan])
def test_a_confidence_that_is_none_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        reliability([0.5, bad], [1, 0])


def test_calibration_by_hand() -> None:
    traces = frame(
        row(0, 0, correct=True),
        row(0, 1, correct=False),
        row(1, 0, correct=False),
        row(1, 1, correct=True),
        row(1, 2, correct=True),
        row(2, 0, correct=True),
        row(2, 1, correct=None),
        row(2, 2, correct=False),
    )
    confidence = pd.Series([0.9, 0.1, 0.8, 0.8, 0.6, 0.3, 0.5, np.nan])
    found = calibration(traces, confidence, bins=2)
    assert found.n == 6  # without a verdict, or a confidence: not counted
    assert (found.confidence, found.accuracy) == (pytest.approx(3.5 / 6), pytest.approx(4 / 6))
    # below 0.5: 0.1 and 0.3, one right: |0.2 - 0.5|; from 0.5: mean 3.1 / 4, three of four right: |0.775 - 0.75|
    assert found.ece == pytest.approx((2 * 0.3 + 4 * 0.025) / 6)
    assert found.brier == pytest.approx((0.01 + 0.01 + 0.64 + 0.04 + 0.16 + 0.49) / 6)
    # right 0.9, 0.8, 0.6, 0.3 against wrong 0.1, 0.8: 2, 1.5, 1 and 1 of 2
    assert found.auroc == pytest.approx(5.5 / 8)
    # in draw 0 it is 1; in draw 1 the right 0.8 ties and the 0.6 loses, (0.5 + 0) / 2; draw 2 has no wrong one
    assert found.auroc_within is not None
    assert (found.auroc_within.mean, found.auroc_within.n) == (pytest.approx((1 + 0.25) / 2), 2)


def test_auroc_and_ece_are_their_definitions() -> None:
    chance = np.random.default_rng(0)
    right = chance.random(400) < 0.6
    confidence = np.round(np.clip(chance.normal(0.5 + 0.1 * right, 0.2), 0, 1), 1)  # many ties
    traces = frame(*(row(i // 8, i % 8, correct=bool(ok)) for i, ok in enumerate(right)))
    found = calibration(traces, pd.Series(confidence))
    u = mannwhitneyu(confidence[right], confidence[~right]).statistic
    assert found.auroc == pytest.approx(u / (right.sum() * (~right).sum()), abs=1e-12)
    inside = [(confidence >= low / 10) & ((confidence < (low + 1) / 10) | (low == 9)) for low in range(10)]
    ece = sum(abs(confidence[at].sum() - right[at].sum()) for at in inside) / 400
    assert found.ece == pytest.approx(ece, abs=1e-12)


def test_all_right_have_no_auroc_and_nothing_to_judge_is_refused() -> None:
    found = calibration(frame(row(0, 0), row(0, 1)), pd.Series([0.2, 0.4]))
    assert (found.auroc, found.auroc_within) == (None, None)
    with pytest.raises(ValueError, match="both a confidence and a verdict"):
        calibration(frame(row()), pd.Series([np.nan]))
