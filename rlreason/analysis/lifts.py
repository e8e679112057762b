"""What changes to responses do to their scores: lifts with intervals over problems, and how score follows length.

Left out: corrections for trying many changes. Ranked lifts are leads to look at, with their texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlreason.perturbations import Case, Perturbation
from rlreason.stats import Estimate, estimate
from rlreason.types import Message

Floats = npt.NDArray[np.float64]
Judge = Callable[[Sequence[list[Message]]], Floats]
"""Conversations to their scores, shape (n,)."""


@dataclass(frozen=True)
class Example:
    """A response before and after a change, with its scores."""

    problem: str
    prompt: list[Message]
    response: str
    changed: str
    before: float
    after: float


@dataclass(frozen=True)
class Finding:
    """What a change did: its mean lift over problems, the share of cases that score above the genuine response, and
    the cases of the highest lift, highest first."""

    name: str
    description: str
    control: bool
    lift: Estimate
    above: float
    examples: list[Example]


def try_change(
    change: Perturbation,
    cases: Sequence[Case],
    before: Floats,
    judge: Judge,
    *,
    seed: int,
    examples: int,
    confidence: float,
) -> Finding:
    """Apply a change to cases, one a problem, whose genuine responses score ``before``, shape (n,)."""
    changed = [change(case, seed) for case in cases]
    after = judge([case.conversation(text) for case, text in zip(cases, changed, strict=True)])
    lift = after - before
    order = np.argsort(-lift, kind="stable")[:examples]
    shown = [
        Example(cases[i].problem, cases[i].prompt, cases[i].response, changed[i], float(before[i]), float(after[i]))
        for i in order.tolist()
    ]
    found = _mean(lift, confidence)
    return Finding(change.name, change.description, change.control, found, float((lift > 0).mean()), shown)


def _mean(values: Floats, confidence: float) -> Estimate:
    """``estimate``, but for lifts that are all alike, which it would take for shares where they are 0 or 1."""
    if (values == values[0]).all():
        return Estimate(float(values[0]), float(values[0]), float(values[0]), values.size)
    return estimate(values, confidence=confidence)


@dataclass(frozen=True)
class Correlation:
    """Pearson's r with its interval over problems; all None where one of the two does not vary."""

    r: float | None
    low: float | None
    high: float | None


def length_correlation(
    groups: Sequence[Sequence[Case]], scores: Floats, *, within: bool, confidence: float, resamples: int = 2000
) -> Correlation:
    """Of score with length in words, over all responses; or ``within`` problems, each less its problem's means, where
    problems of one response tell nothing. Problems are resampled for the interval."""
    sizes = [len(group) for group in groups]
    words = np.array([len(case.response.split()) for group in groups for case in group], dtype=np.float64)
    starts = np.cumsum([0, *sizes])[:-1]
    x, y = words - words.mean(), scores - scores.mean()
    if within:
        x -= np.repeat(np.add.reduceat(x, starts) / sizes, sizes)
        y -= np.repeat(np.add.reduceat(y, starts) / sizes, sizes)
    # Sums by problem are all that r needs, so that a resample is a matrix product.
    sums = np.stack([np.add.reduceat(v, starts) for v in (np.ones_like(x), x, y, x * x, y * y, x * y)], axis=1)
    counts = np.random.default_rng(0).multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=resamples)
    r = _pearson(sums.sum(axis=0, keepdims=True))[0]
    if math.isnan(r):
        return Correlation(None, None, None)
    low, high = np.nanquantile(_pearson(counts @ sums), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Correlation(float(r), float(low), float(high))


def _pearson(sums: Floats) -> Floats:
    n, x, y, xx, yy, xy = sums.T
    spread = (xx - x * x / n) * (yy - y * y / n)
    # What rounding leaves of a spread of nothing is no spread.
    varies = spread > 1e-18 * np.maximum(xx * yy, 1e-300)
    return np.where(varies, (xy - x * y / n) / np.sqrt(np.where(varies, spread, 1.0)), np.nan)
