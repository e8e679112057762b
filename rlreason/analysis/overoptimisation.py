"""Over-optimisation of a reward model: proxy (what was optimised) against gold (what was meant), and where they part.

Gao et al. 2022, "Scaling laws for reward model overoptimization", arXiv:2210.10760. Distances are d = sqrt(KL) with KL
in nats from the starting policy; gold rewards in fits are changes from the start, so that R(0) = 0.

Left out: measuring the KL of a policy (it needs the model), and fits of the proxy's own curve, which the paper makes
no claim about.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import t as student_t

from rlreason.stats import Estimate

Floats = npt.NDArray[np.float64]


# Best of n


@dataclass(frozen=True)
class BestOfN:
    """Expected proxy and gold of the best by proxy of n samples, for each problem: shape (P, len(ns))."""

    ns: tuple[int, ...]
    proxy: Floats
    gold: Floats

    @property
    def kl(self) -> Floats:
        """``best_of_n_kl`` of each n."""
        return np.array([best_of_n_kl(n) for n in self.ns])


def best_of_n(proxy: npt.ArrayLike, gold: npt.ArrayLike, ns: Sequence[int]) -> BestOfN:
    """What best-of-n sampling would earn, out of N samples of each of P problems; both arrays have shape (P, N).

    The mean over all subsets of size n, exactly: sorted by proxy, the sample at place i of N (from 1) is the best of
    C(i-1, n-1) of the C(N, n) subsets (Nakano et al. 2021, WebGPT, arXiv:2112.09332). Samples of equal proxy share
    their subsets evenly, as if ties were broken at random. Raises ValueError for other shapes, values that are not
    finite, and n outside 1 to N.
    """
    scores, truth = np.asarray(proxy, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if scores.ndim != 2 or scores.shape != truth.shape or not scores.size:
        raise ValueError(f"proxy and gold need one shape (problems, samples), not {scores.shape} and {truth.shape}")
    if not (np.isfinite(scores).all() and np.isfinite(truth).all()):
        raise ValueError("proxy or gold is not finite somewhere; leave out the problems that have errors")
    count = scores.shape[1]
    if bad := [n for n in ns if not 1 <= n <= count]:
        raise ValueError(f"best of {bad[0]} can't be estimated from {count} samples; n must be between 1 and {count}")
    order = np.argsort(scores, axis=1, kind="stable")
    ranked, found = np.take_along_axis(scores, order, axis=1), np.take_along_axis(truth, order, axis=1)
    by_n = [_chances(ranked, n) for n in ns]
    return BestOfN(
        tuple(ns),
        np.stack([(weight * ranked).sum(axis=1) for weight in by_n], axis=1),
        np.stack([(weight * found).sum(axis=1) for weight in by_n], axis=1),
    )


def _chances(ranked: Floats, n: int) -> Floats:
    """For each sample of (P, N) ascending scores, the chance that it is picked from a random subset of size n."""
    count = ranked.shape[1]
    total = math.comb(count, n)
    by_place = np.array([math.comb(place, n - 1) / total for place in range(count)])
    chances = np.empty_like(ranked)
    for row, scores in zip(chances, ranked, strict=True):
        _, tied = np.unique(scores, return_inverse=True)
        row[:] = (np.bincount(tied, by_place) / np.bincount(tied))[tied]
    return chances


def best_of_n_kl(n: float) -> float:
    """KL in nats of best-of-n sampling from the policy that is sampled: log n - (n - 1) / n. Exact where no two samples
    have one score, else an upper bound (Beirami et al. 2024, arXiv:2401.01879). Raises ValueError for n below 1."""
    if n < 1:
        raise ValueError(f"best of {n}: n must be at least 1")
    return math.log(n) - (n - 1) / n


# The scaling laws


class Law(Protocol):
    """A gold reward that rises and falls with d, linear in its coefficients a and b."""

    def terms(self, d: Floats) -> Floats:
        """What a and b are multiplied by, shape (K, 2), for distances of shape (K,)."""
        ...

    def peak(self, a: Floats, b: Floats) -> tuple[Floats, Floats]:
        """The d >= 0 where the gold reward is highest, and its height; infinity for both if it never falls."""
        ...


@dataclass(frozen=True)
class BestOfNLaw:
    """R(d) = d (a - b d), for best-of-n sampling (Gao et al. 2022, section 3.1). The peak, a² / 4b, is at
    d = a / 2b."""

    def terms(self, d: Floats) -> Floats:
        return np.stack([d, -(d**2)], axis=1)

    def peak(self, a: Floats, b: Floats) -> tuple[Floats, Floats]:
        d = np.where(b > 0, np.maximum(a, 0) / (2 * b), np.inf)
        return d, np.where(b > 0, b * d**2, np.inf)


@dataclass(frozen=True)
class RLLaw:
    """R(d) = d (a - b log d), for reinforcement learning (Gao et al. 2022, section 3.1). The peak, b d, is at
    d = exp(a / b - 1)."""

    def terms(self, d: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.stack([d, np.where(d > 0, -d * np.log(d), 0.0)], axis=1)

    def peak(self, a: Floats, b: Floats) -> tuple[Floats, Floats]:
        d = np.where(b > 0, np.exp(a / b - 1), np.inf)
        return d, np.where(b > 0, b * d, np.inf)


@dataclass(frozen=True)
class Fitted:
    """A fitted value and its interval, ``low`` to ``high``."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Fit:
    """A fitted law. The peak is where gold is highest: its KL in nats (infinity if gold never falls) and its height."""

    law: Law
    a: Fitted
    b: Fitted
    peak_kl: Fitted
    peak_gold: Fitted

    def __call__(self, kl: npt.ArrayLike) -> Floats:
        """The law's gold reward at each KL."""
        d = np.sqrt(np.asarray(kl, dtype=np.float64))
        return self.law.terms(np.atleast_1d(d)) @ np.array([self.a.value, self.b.value])


def fit(
    law: Law,
    kl: npt.ArrayLike,
    gold: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Fit:
    """Least squares of ``gold`` on ``kl`` (K points, nats), with percentile bootstrap intervals.

    ``gold`` is the change from the start: shape (P, K), per problem, where the fit is of the mean and problems are
    resampled; or shape (K,), where points are resampled (resamples of a single positive KL are left out). The KL is
    taken as known. Raises ValueError for other shapes, values that are not finite, a negative KL, or fewer than two
    different positive KLs, which leave the coefficients open.
    """
    x, y = np.asarray(kl, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if x.ndim != 1 or y.ndim not in (1, 2) or y.shape[-1:] != x.shape or not y.size:
        raise ValueError(f"kl needs the shape (K,) and gold (K,) or (P, K), not {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("kl or gold is not finite somewhere; leave those points out")
    if (x < 0).any():
        raise ValueError(f"point {int(np.flatnonzero(x < 0)[0])} has a negative KL, {x.min()}; no distance is negative")
    if len(np.unique(x[x > 0])) < 2:
        raise ValueError("two coefficients need points at two different positive KLs at least")
    terms = law.terms(np.sqrt(x))
    # How often each problem, or each point, is in each resample.
    counts = np.random.default_rng(seed).multinomial(len(y), np.full(len(y), 1 / len(y)), size=resamples)
    once = np.ones((1, len(x)))
    if y.ndim == 2:
        drawn = _solve(terms, once, counts @ y / len(y))
    else:
        has_kl = (counts > 0) @ (x[:, None] == np.unique(x[x > 0]))
        drawn = _solve(terms, counts[has_kl.sum(axis=1) > 1], y[None])
    values = _values(law, _solve(terms, once, y.reshape(-1, len(x)).mean(axis=0)[None]))
    resampled = _values(law, drawn)

    def fitted(name: str) -> Fitted:
        # No interpolation, which between two infinite peaks would give NaN.
        low = np.quantile(resampled[name], (1 - confidence) / 2, method="lower")
        high = np.quantile(resampled[name], (1 + confidence) / 2, method="higher")
        return Fitted(float(values[name][0]), float(low), float(high))

    return Fit(law, fitted("a"), fitted("b"), fitted("peak_kl"), fitted("peak_gold"))


def _solve(terms: Floats, weights: npt.NDArray[Any], y: Floats) -> Floats:
    """Weighted least squares, many at once: coefficients (R, 2) for weights and y of shape (R or 1, K)."""
    normal = np.einsum("rk,ki,kj->rij", weights, terms, terms)
    right = np.einsum("rk,ki->ri", weights * y, terms)
    return np.linalg.solve(np.broadcast_to(normal, (len(right), 2, 2)), right[..., None])[..., 0]


def _values(law: Law, coefficients: Floats) -> dict[str, Floats]:
    a, b = coefficients.T
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # b near 0 or below: far away, or never
        peak, height = law.peak(a, b)
        return {"a": a, "b": b, "peak_kl": peak**2, "peak_gold": height}


# Where proxy and gold part


@dataclass(frozen=True)
class Evaluation:
    """Proxy and gold of the same problems after a step, one number a problem: shape (P,), paired over evaluations."""

    step: int
    proxy: Floats
    gold: Floats


@dataclass(frozen=True)
class Parting:
    """At ``step`` the proxy was higher, and gold lower, than at step ``since``, where gold was best before. The changes
    are means over problems with their intervals, as wide as ``parted`` makes them."""

    step: int
    since: int
    proxy: Estimate
    gold: Estimate


def parted(history: Sequence[Evaluation], *, confidence: float = 0.95) -> Parting | None:
    """The first evaluation at which the proxy is above, and gold below, what they were where gold was best before it,
    both by paired t intervals that exclude 0; None if there is none.

    The best of several evaluations is also the luckiest, and what follows it looks like a fall; and a run is asked
    again after each evaluation. So the j-th evaluation after the first has (1 - confidence) / (j (j + 1)) to spend on
    falls of gold by chance, shared by the j before it (Bonferroni), which add up to less than 1 - ``confidence`` over
    all evaluations there will ever be. Raises ValueError for steps that do not rise, and for evaluations of different
    sizes.
    """
    if any(after.step <= before.step for before, after in pairwise(history)):
        raise ValueError(f"evaluations must be in order of their steps, not {[e.step for e in history]}")
    sizes = {np.shape(values) for e in history for values in (e.proxy, e.gold)}
    if len(sizes) > 1:
        raise ValueError(f"proxy and gold must be of the same problems in each evaluation; their shapes are {sizes}")
    for j, e in enumerate(history[1:], start=1):
        since = max(history[:j], key=lambda before: before.gold.mean())
        doubt = (1 - confidence) / (j * j * (j + 1))  # of a fall alone, so of one end of an interval
        gold = _change(since.gold, e.gold, doubt)
        if gold.high < 0 and (proxy := _change(since.proxy, e.proxy, doubt)).low > 0:
            return Parting(e.step, since.step, proxy, gold)
    return None


def _change(before: Floats, after: Floats, doubt: float) -> Estimate:
    """The mean paired difference, with an interval that leaves ``doubt`` beyond each end."""
    differences = after - before
    mean, count = float(differences.mean()), differences.size
    if count < 2:
        return Estimate(mean, -math.inf, math.inf, count)
    half = float(student_t.isf(doubt, count - 1) * differences.std(ddof=1) / math.sqrt(count))
    return Estimate(mean, mean - half, mean + half, count)


# Out of traces


def history_of(traces: pd.DataFrame) -> list[Evaluation]:
    """The evaluations in a frame of evaluation traces (columns ``step``, ``group``, ``segment``, ``status`` and
    ``parts``), in order; a problem's samples are averaged. Problems that any of them lacks, or could not grade, are
    left out of all. Raises ValueError if grades have no proxy and gold, or no problem is left."""
    steps = sorted(traces["step"].unique())
    means = _parts(traces).groupby(["step", "group"])[["proxy", "gold"]].mean().unstack("step")
    by_problem = means.reindex(columns=pd.MultiIndex.from_product([["proxy", "gold"], steps])).dropna()
    if by_problem.empty:
        raise ValueError("no problem was graded in every evaluation")
    return [
        Evaluation(int(step), by_problem["proxy"][step].to_numpy(), by_problem["gold"][step].to_numpy())
        for step in steps
    ]


def samples_of(traces: pd.DataFrame) -> tuple[Floats, Floats]:
    """Proxy and gold of every sample, shape (P, N) each, of the traces of one evaluation (columns ``step``, ``group``,
    ``sample``, ``segment``, ``status`` and ``parts``); problems with a sample that could not be graded are left out.
    Raises ValueError for traces of several steps, or if no problem is left."""
    frame = _parts(traces)
    if frame["step"].nunique() > 1:
        raise ValueError(f"these are traces of several steps: {sorted(frame['step'].unique().tolist())}; choose one")
    table = frame.pivot(index="group", columns="sample", values=["proxy", "gold"]).dropna()
    if table.empty:
        raise ValueError("no problem has all its samples graded")
    return table["proxy"].to_numpy(), table["gold"].to_numpy()


def _parts(traces: pd.DataFrame) -> pd.DataFrame:
    frame = traces[(traces["segment"] == 0) & (traces["status"] != "error")]
    parts = [json.loads(text) for text in frame["parts"]]
    if not parts or not {"proxy", "gold"} <= parts[0].keys():
        raise ValueError("the grades in these traces have no parts `proxy` and `gold`; they are not of env=rlhf")
    values = {name: [part[name] for part in parts] for name in ("proxy", "gold")}
    return frame.assign(**values)
