"""Statistics of an evaluation: pass@k, maj@k, and intervals that treat the problem as the unit.

Every interval here resamples problems, never single answers: several answers to one problem are not independent,
and an interval over answers would be too narrow. Where values are of something else than problems, ``units`` says
which of them belong together.

Left out: tests of significance between two runs. Compare their per-problem values in pairs instead, by
``bootstrap_interval`` of the differences.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

# A chunk of resamples holds this many draws (8 bytes each), so that memory stays below about 100 MB.
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` problems (or other units) and its interval, ``low`` to ``high``."""

    mean: float
    low: float
    high: float
    n: int


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that at least one of ``k`` answers is correct, estimated from ``n`` answers of which ``c`` are.

    ``1 - C(n-c, k) / C(n, k)``, which is unbiased (Chen et al. 2021, "Evaluating Large Language Models Trained on
    Code", eq. 1); computed in exact integers. Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not 0 <= c <= n:
        raise ValueError(f"pass@k: {c} correct answers of {n}; there must be between 0 and {n}")
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} can't be estimated from {n} answers a problem; draw at least k, and k from 1 up")
    total = math.comb(n, k)
    return (total - math.comb(n - c, k)) / total


def majority_vote(answers: Sequence[str | None], correct: Sequence[bool]) -> float:
    """maj@k of one problem: the share of correct answers among those that gave the most frequent answer.

    (Self-consistency, Wang et al. 2022.) None doesn't vote; with no vote at all the result is 0. Where several answers
    tie for most frequent, their shares are averaged: what picking one of them at random would score. Raises
    ValueError if the two differ in length or are empty.
    """
    if len(answers) != len(correct):
        raise ValueError(f"maj@k: {len(answers)} answers but {len(correct)} verdicts; give one verdict per answer")
    if not answers:
        raise ValueError("maj@k: no answers; give at least one (None where nothing was extracted)")
    verdicts: dict[str, list[bool]] = {}
    for answer, verdict in zip(answers, correct, strict=True):
        if answer is not None:
            verdicts.setdefault(answer, []).append(bool(verdict))
    if not verdicts:
        return 0.0
    most = max(map(len, verdicts.values()))
    winners = [votes for votes in verdicts.values() if len(votes) == most]
    return sum(sum(votes) / most for votes in winners) / len(winners)


def _per_problem(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"expected one value per problem, at least one; got an array of shape {array.shape}")
    if not np.isfinite(array).all():
        bad = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(f"value {bad} of {array.size} is {array[bad]}; leave out problems that have no value")
    return array


def wilson_interval(successes: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927): sound at 0 and at ``n`` successes too."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: there must be at least one trial and 0 to n successes")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # Rounding would otherwise leave 1e-17 where the formula says exactly 0 or 1.
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == n else (centre + spread) / scale
    return low, high


def bootstrap_interval(
    values: npt.ArrayLike,
    *,
    units: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over problems (Efron 1979).

    ``values`` holds one number per problem, shape (n,). The same arguments give the same interval.

    With ``units``, one for each value, values of one unit are not independent: whole units are resampled, and the mean
    is that of all values in them (the cluster bootstrap; Davison and Hinkley 1997, section 3.8). What is said of
    problems below is then said of units. Where every unit has one value, the interval is the same.

    Where the bootstrap has nothing to resample, this says so instead of returning a width of 0:

    - All values 0, or all 1: they are taken as shares and the interval is Wilson's. (20 of 20 solved gives
      0.839 to 1, not 1 to 1.)
    - A single value that is neither 0 nor 1: (nan, nan), since one problem tells nothing about the spread.
    - Any other constant (every answer cut at 256 tokens, say): that constant twice; nothing varied.

    Raises ValueError if ``values`` is empty, not one-dimensional or holds NaN or infinity, and unless there are as many
    units as values.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, such as 0.95")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; it must be at least 1")
    array = _per_problem(values)
    sums, counts = _by_unit(array, units)
    n = sums.size
    if (array == array[0]).all():
        value = float(array[0])
        if value in (0.0, 1.0):
            return wilson_interval(n if value else 0, n, confidence=confidence)
        return (value, value) if n > 1 else (math.nan, math.nan)
    if n == 1:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // n)
    means = []
    for start in range(0, resamples, rows):
        drawn = rng.integers(0, n, size=(min(rows, resamples - start), n))
        means.append(sums[drawn].sum(axis=1) / (n if units is None else counts[drawn].sum(axis=1)))
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _by_unit(
    array: npt.NDArray[np.float64], units: Sequence[Hashable] | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Sum and number of the values of each unit, in the order in which the units first appear."""
    if units is None:
        return array, np.ones(array.size, dtype=np.int64)
    if len(units) != array.size:
        raise ValueError(f"{array.size} values but {len(units)} units; give one unit per value")
    places: dict[Hashable, int] = {}
    place = np.array([places.setdefault(unit, len(places)) for unit in units])
    return np.bincount(place, weights=array).astype(np.float64), np.bincount(place)


def estimate(
    values: npt.ArrayLike, *, units: Sequence[Hashable] | None = None, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """The mean of per-problem ``values``, shape (n,), with its ``bootstrap_interval``; ``n`` counts the ``units``."""
    array = _per_problem(values)
    low, high = bootstrap_interval(array, units=units, confidence=confidence, seed=seed)
    return Estimate(mean=float(array.mean()), low=low, high=high, n=_by_unit(array, units)[0].size)
