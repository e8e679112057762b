"""pass@k, maj@k and intervals against numbers worked by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from rlreason import stats
from rlreason.stats import bootstrap_interval, estimate, majority_vote, pass_at_k, wilson_interval


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (5, 2, 2, 0.7),  # 1 - C(3,2)/C(5,2) = 1 - 3/10
        (10, 1, 3, 0.3),  # one correct: k/n
        (7, 3, 1, 3 / 7),  # pass@1 is the share of correct answers
        (4, 3, 2, 1.0),  # one wrong answer can't fill two draws
        (5, 0, 5, 0.0),
        (5, 5, 1, 1.0),
    ],
)
def test_pass_at_k_by_hand(n: int, c: int, k: int, expected: float) -> None:
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-15)


def test_pass_at_k_is_the_share_of_all_subsets_with_a_correct_answer() -> None:
    correct = [True, True, False, False, False, False]
    subsets = list(itertools.combinations(correct, 3))
    assert sum(map(any, subsets)) / len(subsets) == 0.8
    assert pass_at_k(6, 2, 3) == 0.8


def test_pass_at_k_of_many_answers_stays_exact() -> None:
    # One correct of n gives k/n; factorials of this size have thousands of digits.
    assert pass_at_k(5000, 1, 1250) == 0.25


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0), (0, 0, 1)])
def test_pass_at_k_refuses_what_it_cannot_estimate(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(n, c, k)


@pytest.mark.parametrize(
    ("answers", "correct", "expected"),
    [
        (["7", "7", "8"], [True, True, False], 1.0),
        (["7", "8", "8"], [True, False, False], 0.0),
        (["7", "8"], [True, False], 0.5),  # a tie of right and wrong
        (["7", "8", "9"], [True, False, False], 1 / 3),
        (["7", "7", "8", "8", "9"], [True, True, False, False, True], 0.5),
        ([None, None, "7"], [False, False, True], 1.0),  # None has no vote, however frequent
        ([None, None], [False, False], 0.0),
        (["7", "7", "8"], [True, False, True], 0.5),  # the grader saw more than the answer (its format, say)
    ],
)
def test_majority_vote_by_hand(answers: list[str | None], correct: list[bool], expected: float) -> None:
    assert majority_vote(answers, correct) == pytest.approx(expected, abs=1e-15)


def test_majority_vote_refuses_unequal_and_empty() -> None:
    with pytest.raises(ValueError, match="2 answers but 1 verdicts"):
        majority_vote(["1", "2"], [True])
    with pytest.raises(ValueError, match="no answers"):
        majority_vote([], [])


def test_wilson_by_hand() -> None:
    # z² = 3.841459; n/(n+z²) = 20/23.841459
    assert wilson_interval(20, 20) == (pytest.approx(0.838875, abs=1e-6), 1.0)
    assert wilson_interval(0, 20) == (0.0, pytest.approx(0.161125, abs=1e-6))
    # centre 1/2; z·sqrt(0.25/20 + z²/1600)/(1 + z²/20) = 0.239251/1.192073
    assert wilson_interval(10, 20) == pytest.approx((0.299298, 0.700702), abs=1e-6)


def test_bootstrap_of_two_problems_by_hand() -> None:
    # The mean of a resample is 0, 1/2 or 1 with chances 1/4, 1/2 and 1/4: quantiles 0.025 and 0.975 are 0 and 1,
    # quantiles 0.3 and 0.7 are both 1/2.
    assert bootstrap_interval([0, 1]) == (0.0, 1.0)
    assert bootstrap_interval([0, 1], confidence=0.4) == (0.5, 0.5)


def test_bootstrap_matches_the_binomial_it_samples() -> None:
    # 40 of 100 solved: resampled sums are Binomial(100, 0.4), whose 2.5 % and 97.5 % quantiles are 31 and 50.
    low, high = bootstrap_interval([1.0] * 40 + [0.0] * 60)
    assert low == pytest.approx(0.31, abs=0.0101)
    assert high == pytest.approx(0.50, abs=0.0101)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    intervals = [bootstrap_interval(rng.normal(3, 2, size=50), resamples=1000, seed=i) for i in range(500)]
    coverage = np.mean([low <= 3 <= high for low, high in intervals])
    # The percentile bootstrap covers a little less than 95 % at n = 50; one standard error here is 0.01.
    assert 0.91 <= coverage <= 0.97
    # For a normal mean the width is near 2 · 1.96 · 2/sqrt(50) = 1.109.
    assert np.mean([high - low for low, high in intervals]) == pytest.approx(1.09, abs=0.04)


def clustered(rng: np.random.Generator) -> tuple[list[float], list[int]]:
    """40 prompts of 1 to 7 pairs; a prompt's pairs are right with one chance, whose mean over prompts is 0.7."""
    values, units = [], []
    for prompt in range(40):
        chance, pairs = rng.beta(1.4, 0.6), rng.integers(1, 8)
        values += (rng.random(pairs) < chance).astype(float).tolist()
        units += [prompt] * pairs
    return values, units


def test_whole_units_cover_the_truth_and_single_values_do_not() -> None:
    rng = np.random.default_rng(2)
    drawn = [clustered(rng) for _ in range(300)]
    by_unit = [
        bootstrap_interval(values, units=units, resamples=600, seed=i) for i, (values, units) in enumerate(drawn)
    ]
    by_value = [bootstrap_interval(values, resamples=600, seed=i) for i, (values, _) in enumerate(drawn)]
    covered, too_narrow = (np.mean([low <= 0.7 <= high for low, high in found]) for found in (by_unit, by_value))
    assert 0.90 <= covered <= 0.98  # one standard error is 0.013
    assert too_narrow < 0.85


def test_units_of_one_value_change_nothing() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert bootstrap_interval(values, units=[*range(30)]) == bootstrap_interval(values)
    assert estimate(values, units=[f"prompt {i}" for i in range(30)]) == estimate(values)


def test_units_by_hand() -> None:
    # Units a (1, 1, 1) and b (0): a resample is aa, ab, ba or bb, of mean 1, 3/4, 3/4 and 0.
    assert bootstrap_interval([1, 1, 0, 1], units="aaba") == (0.0, 1.0)
    assert bootstrap_interval([1, 1, 0, 1], units="aaba", confidence=0.4) == (0.75, 0.75)
    found = estimate([1, 1, 0, 1], units="aaba")
    assert (found.mean, found.n) == (0.75, 2)
    # All right: as many units as there are say so, not as many values.
    assert bootstrap_interval([1.0] * 20, units=[i // 4 for i in range(20)]) == wilson_interval(5, 5)
    assert all(math.isnan(bound) for bound in bootstrap_interval([1, 0, 1], units="aaa"))
    with pytest.raises(ValueError, match="3 values but 2 units"):
        bootstrap_interval([1, 0, 1], units="ab")


def test_bootstrap_repeats_and_its_seed_matters() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_bootstrap_in_chunks_uses_every_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    quantile = np.quantile
    monkeypatch.setattr(stats, "_CHUNK", 1000)  # 10 rows of 100 problems at a time
    monkeypatch.setattr(np, "quantile", lambda means, q: sizes.append(means.shape) or quantile(means, q))
    low, high = bootstrap_interval([1.0] * 40 + [0.0] * 60, resamples=5003)
    assert sizes == [(5003,)]
    assert (low, high) == pytest.approx((0.31, 0.50), abs=0.0101)


def test_extremes_are_not_a_point() -> None:
    assert bootstrap_interval([1.0] * 20) == wilson_interval(20, 20)
    assert bootstrap_interval([0] * 20) == wilson_interval(0, 20)
    assert bootstrap_interval([True]) == (pytest.approx(0.206549, abs=1e-6), 1.0)  # 1/(1+z²)
    assert bootstrap_interval([256.0] * 20) == (256.0, 256.0)
    assert all(math.isnan(bound) for bound in bootstrap_interval([256.0]))


@pytest.mark.parametrize("values", [[], [[1.0, 0.0]], [1.0, math.nan], [math.inf, 0.0]])
def test_bootstrap_refuses_what_is_not_one_number_a_problem(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"one value per problem|value \d of 2"):
        bootstrap_interval(values)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_confidence_is_a_share(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_interval([0, 1], confidence=confidence)


def test_estimate() -> None:
    result = estimate([1, 0, 0, 0])
    assert (result.mean, result.n) == (0.25, 4)
    assert (result.low, result.high) == bootstrap_interval([1, 0, 0, 0])
    assert result.low < result.mean < result.high
