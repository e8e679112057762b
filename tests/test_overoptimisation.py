"""Best of n, the scaling laws and where proxy and gold part: by hand, by enumeration, and on curves of known truth."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import make_rollout

from rlreason.analysis.load import read_traces
from rlreason.analysis.overoptimisation import (
    BestOfNLaw,
    Evaluation,
    Law,
    RLLaw,
    best_of_n,
    best_of_n_kl,
    fit,
    history_of,
    parted,
    samples_of,
)
from rlreason.traces import write_traces
from rlreason.types import Grade, Rollout

# Best of n


def by_enumeration(proxy: list[float], gold: list[float], n: int) -> tuple[float, float]:
    """Over all subsets; of those that tie for best, the mean."""
    found = []
    for subset in itertools.combinations(range(len(proxy)), n):
        best = max(proxy[i] for i in subset)
        winners = [i for i in subset if proxy[i] == best]
        found.append((best, sum(gold[i] for i in winners) / len(winners)))
    return tuple(np.mean(found, axis=0).tolist())  # type: ignore[return-value]


def test_best_of_n_by_hand() -> None:
    # Ascending proxy 1, 2, 4 has gold 0, 9, 3. Of the pairs, {1, 2} is won by 2, {1, 4} and {2, 4} by 4.
    found = best_of_n([[2.0, 4.0, 1.0]], [[9.0, 3.0, 0.0]], [1, 2, 3])
    np.testing.assert_allclose(found.proxy, [[7 / 3, (2 + 4 + 4) / 3, 4]])
    np.testing.assert_allclose(found.gold, [[4, (9 + 3 + 3) / 3, 3]])


def test_best_of_n_is_the_mean_over_all_subsets() -> None:
    chance = np.random.default_rng(0)
    proxy = chance.integers(0, 4, size=(5, 7)).astype(float)  # four scores for seven samples: many ties
    gold = chance.normal(size=(5, 7))
    ns = range(1, 8)
    found = best_of_n(proxy, gold, ns)
    expected = [[by_enumeration(p, g, n) for n in ns] for p, g in zip(proxy.tolist(), gold.tolist(), strict=True)]
    np.testing.assert_allclose(np.stack([found.proxy, found.gold], axis=-1), expected, rtol=1e-12)


def test_best_of_n_with_nothing_to_choose_by_is_the_mean() -> None:
    gold = np.random.default_rng(1).normal(size=(3, 300))
    found = best_of_n(np.ones((3, 300)), gold, [1, 30, 300])  # C(300, 30) is 1e41: exact integers
    np.testing.assert_allclose(found.gold, np.repeat(gold.mean(axis=1)[:, None], 3, axis=1))


def test_best_of_n_refuses() -> None:
    ok = [[1.0, 2.0]]
    for n in (0, 3):
        with pytest.raises(ValueError, match=f"best of {n} can't be estimated from 2 samples"):
            best_of_n(ok, ok, [n])
    with pytest.raises(ValueError, match="one shape"):
        best_of_n(ok, [[1.0]], [1])
    with pytest.raises(ValueError, match="not finite"):
        best_of_n(ok, [[1.0, math.nan]], [1])


def test_kl_of_best_of_n() -> None:
    assert best_of_n_kl(1) == 0
    assert best_of_n_kl(2) == pytest.approx(0.193147, abs=1e-6)  # 0.693147 - 1/2
    # of continuous scores, by their definition: the density of the best of n is n u^(n-1), so KL = E[log n u^(n-1)]
    u = (np.arange(1_000_000) + 0.5) / 1_000_000
    density = 16 * u**15
    assert best_of_n_kl(16) == pytest.approx((density * np.log(density)).mean(), abs=1e-5)
    assert best_of_n([[1.0, 2.0]], [[1.0, 2.0]], [1, 2]).kl.tolist() == [0, best_of_n_kl(2)]
    with pytest.raises(ValueError, match="at least 1"):
        best_of_n_kl(0.5)


# The scaling laws


@pytest.mark.parametrize(
    ("law", "a", "b", "peak_d", "height"),
    [
        (BestOfNLaw(), 2.0, 0.5, 2.0, 2.0),  # d (2 - d/2): 2 (2 - 1)
        (RLLaw(), 2.0, 1.0, math.e, math.e),  # d (2 - log d): e (2 - 1)
        (RLLaw(), 1.0, 0.5, math.e, math.e / 2),  # d (1 - log(d) / 2): e / 2
        (BestOfNLaw(), -1.0, 0.5, 0.0, 0.0),  # never better than at the start
    ],
)
def test_a_law_is_found_again(law: Law, a: float, b: float, peak_d: float, height: float) -> None:
    d = np.array([0.0, 0.3, 1.0, 2.0, 3.5, 6.0])
    log = np.log(np.maximum(d, 1e-300))
    gold = d * (a - b * (d if isinstance(law, BestOfNLaw) else log))
    found = fit(law, d**2, gold, resamples=200)
    for fitted, truth in ((found.a, a), (found.b, b), (found.peak_kl, peak_d**2), (found.peak_gold, height)):
        # every resample of points on the curve is the curve
        assert [fitted.value, fitted.low, fitted.high] == pytest.approx([truth] * 3, rel=1e-8, abs=1e-10)
    np.testing.assert_allclose(found(d**2), gold, atol=1e-10)
    grid = np.linspace(0, 40, 400_001)
    assert found(grid).max() == pytest.approx(found.peak_gold.value, abs=1e-6)  # the peak is the peak


def test_least_squares_is_numpys() -> None:
    chance = np.random.default_rng(3)
    kl, gold = chance.uniform(0.1, 9, size=8), chance.normal(size=8)
    d = np.sqrt(kl)
    for law, second in ((BestOfNLaw(), d**2), (RLLaw(), d * np.log(d))):
        (a, b), *_ = np.linalg.lstsq(np.stack([d, -second], axis=1), gold, rcond=None)
        found = fit(law, kl, gold, resamples=10)
        assert (found.a.value, found.b.value) == pytest.approx((a, b))
        per_problem = gold + chance.normal(size=(4, 8))
        per_problem -= per_problem.mean(axis=0) - gold  # the same mean
        found = fit(law, kl, per_problem, resamples=10)
        assert (found.a.value, found.b.value) == pytest.approx((a, b))


def test_a_curve_that_never_falls_has_no_peak() -> None:
    found = fit(BestOfNLaw(), [1.0, 4.0, 9.0], [1.0, 3.0, 6.0], resamples=50)  # d + d (d - 1) / 2
    assert (found.a.value, found.b.value) == pytest.approx((0.5, -0.5))
    assert found.peak_kl.value == found.peak_gold.value == math.inf
    assert found.peak_kl.high == math.inf


@pytest.mark.parametrize("over", ["problems", "points"])
def test_intervals_hold_the_truth_as_often_as_they_say(over: str) -> None:
    chance = np.random.default_rng(7)
    kl = np.linspace(0.2, 16, 20)
    truth = RLLaw().terms(np.sqrt(kl)) @ np.array([1.0, 0.6])
    held = []
    for trial in range(200):
        noise = chance.normal(scale=0.5, size=(40, 20) if over == "problems" else 20)
        found = fit(RLLaw(), kl, truth + noise, resamples=300, seed=trial)
        held.append(
            [
                found.a.low <= 1.0 <= found.a.high,
                found.b.low <= 0.6 <= found.b.high,
                found.peak_gold.low <= 0.6 * math.exp(1 / 0.6 - 1) <= found.peak_gold.high,
            ]
        )
    coverage = np.mean(held, axis=0)
    # 95 % is said; the bootstrap of 20 points is known to give somewhat less; 4.5 standard errors of 200 are 0.07
    assert (coverage > 0.86).all(), coverage
    assert (coverage < 1).all(), coverage


def test_fit_refuses() -> None:
    with pytest.raises(ValueError, match="two different positive KLs"):
        fit(RLLaw(), [0.0, 1.0, 1.0], [0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match=r"point 1 has a negative KL, -0.5"):
        fit(RLLaw(), [1.0, -0.5, 2.0], [0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match=r"not \(2,\) and \(3,\)"):
        fit(RLLaw(), [1.0, 2.0], [0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="not finite"):
        fit(RLLaw(), [1.0, 2.0], [0.0, math.nan])


# Where proxy and gold part


def curves(
    proxy: list[float],
    gold: list[float],
    *,
    problems: int,
    noise: float,
    seed: int = 0,
    gold_noise: float | None = None,
) -> list[Evaluation]:
    """Evaluations every ten steps: each problem has a level of its own, shared by all of them, and noise around it."""
    chance = np.random.default_rng(seed)
    level = chance.normal(scale=5, size=problems)  # far larger than the changes: unpaired, nothing would show
    return [
        Evaluation(
            10 * k,
            level + p + chance.normal(scale=noise, size=problems),
            level + g + chance.normal(scale=noise if gold_noise is None else gold_noise, size=problems),
        )
        for k, (p, g) in enumerate(zip(proxy, gold, strict=True))
    ]


def test_parting_by_hand() -> None:
    def evaluation(step: int, proxy: list[float], gold: list[float]) -> Evaluation:
        return Evaluation(step, np.array(proxy), np.array(gold))

    history = [
        evaluation(0, [0, 0, 0], [0, 0, 0]),
        evaluation(5, [1, 2, 3], [4, 5, 6]),  # gold at its best, 5
        evaluation(9, [2, 3, 4], [4, 5, 6]),  # the proxy is 1 up, gold the same
        evaluation(20, [1, 2, 3], [2, 3, 4]),  # gold is 2 down, the proxy as it was
        evaluation(25, [9, -3, 3], [1, 2, 3]),  # gold is 3 down, the proxy 1 up on average, but by one problem alone
        evaluation(30, [4, 5, 6], [1, 2, 3]),  # proxy 3 up, gold 3 down, in every problem
        evaluation(40, [9, 9, 9], [0, 0, 0]),
    ]
    found = parted(history)
    assert found is not None
    assert (found.step, found.since) == (30, 5)
    assert (found.proxy.mean, found.gold.mean, found.gold.n) == (3, -3, 3)
    assert parted(history[:5]) is None
    assert parted(history[:1]) is None
    assert parted([]) is None


def test_a_known_parting_is_found_where_it_is() -> None:
    proxy = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    gold = [0.0, 0.6, 1.0, 1.0, 0.9, -0.2, -1.0]  # falls clearly at 50, and by 0.1 before
    found = parted(curves(proxy, gold, problems=200, noise=0.8))
    assert found is not None
    assert found.step == 50
    assert found.since in (20, 30)
    assert found.gold.low <= -1.2 <= found.gold.high
    assert found.proxy.low <= proxy[5] - proxy[found.since // 10] <= found.proxy.high
    falling = [-p for p in proxy]
    assert parted(curves(falling, gold, problems=200, noise=0.8)) is None  # both fall: no parting, a failing run
    assert parted(curves(proxy, proxy, problems=200, noise=0.8)) is None


def test_luck_at_the_best_evaluation_is_no_fall() -> None:
    """Gold that never moves: the best of twelve noisy evaluations would look like a peak to one interval at a time."""
    proxy, gold = [float(k) for k in range(12)], [0.0] * 12
    histories = [curves(proxy, gold, problems=60, noise=0.1, gold_noise=1.0, seed=seed) for seed in range(40)]

    def looks_fallen(history: list[Evaluation]) -> bool:
        best = max(range(12), key=lambda k: history[k].gold.mean())
        changes = [history[best].gold - after.gold for after in history[best + 1 :]]
        return any(change.mean() > 1.96 * change.std(ddof=1) / math.sqrt(60) for change in changes)

    assert sum(map(looks_fallen, histories)) >= 12
    assert sum(parted(history) is not None for history in histories) <= 6  # 2 expected; above 6 by chance 1 in 300


def test_parted_refuses() -> None:
    one, other = Evaluation(1, np.zeros(3), np.zeros(3)), Evaluation(2, np.zeros(2), np.zeros(2))
    with pytest.raises(ValueError, match="same problems"):
        parted([one, other])
    with pytest.raises(ValueError, match="in order of their steps"):
        parted([one, one])


# Out of traces


def graded(group: int, proxy: float, gold: float, **more: Any) -> Rollout:
    rollout = make_rollout(group, [1], [2], **more)
    grade = Grade(proxy, None, more.get("status", "ok"), {"proxy": proxy, "gold": gold})
    return Rollout(rollout.problem, group, rollout.segments * 2, [], "", "stop", grade)


def test_traces_are_read_by_problem(tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()

    def write(step: int, rollouts: list[Rollout]) -> None:
        path = tmp_path / "traces" / f"eval-validation-{step:06d}.parquet"
        write_traces(path, rollouts, step=step, split="validation", env="rlhf")

    # Problem 1 is not graded at step 7, so it is left out of both; problem 2 has one sample that failed.
    write(0, [graded(g, g + s, 10 * g) for g in range(3) for s in (0.0, 1.0)])
    failed = {"status": "error"}
    write(
        7,
        [
            *(graded(0, 5, 1), graded(0, 7, 4)),
            *(graded(1, 0, 0, **failed), graded(1, 0, 0, **failed)),
            *(graded(2, 8, 2), graded(2, 0, 0, **failed)),
        ],
    )
    traces = read_traces(tmp_path)
    first, second = history_of(traces)
    assert (first.step, second.step) == (0, 7)
    assert (first.proxy.tolist(), first.gold.tolist()) == ([0.5, 2.5], [0, 20])
    assert (second.proxy.tolist(), second.gold.tolist()) == ([6, 8], [2.5, 2])
    proxy, gold = samples_of(traces[traces["step"] == 7])
    assert (proxy.tolist(), gold.tolist()) == ([[5, 7]], [[1, 4]])
    proxy, gold = samples_of(traces[traces["step"] == 0])
    assert proxy.tolist() == [[0, 1], [1, 2], [2, 3]]
    with pytest.raises(ValueError, match=r"several steps: \[0, 7\]"):
        samples_of(traces)
    with pytest.raises(ValueError, match="no problem was graded in every"):
        history_of(traces[traces["group"] == traces["step"] % 2])  # one problem of step 0, another of step 7


def test_other_traces_are_refused() -> None:
    frame = pd.DataFrame(
        {"step": [0], "group": [0], "sample": [0], "segment": [0], "status": ["ok"], "parts": [json.dumps({"a": 1})]}
    )
    with pytest.raises(ValueError, match="not of env=rlhf"):
        history_of(frame)
