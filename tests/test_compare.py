"""Two evaluations in pairs: by hand, against scipy's bootstrap, and what cannot be compared."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap
from trace_frames import frame, row

from rlreason.analysis.compare import by_problem, compare, mean_difference, over_steps


def evaluation(verdicts: str, *, step: int = 0, split: str = "validation") -> pd.DataFrame:
    """Problems a, b, ... with samples of 1 (right) and 0, ``x`` an error, problems parted by spaces."""
    rows = []
    for group, samples in enumerate(verdicts.split()):
        for sample, verdict in enumerate(samples):
            own = {"correct": verdict == "1", "reward": float(verdict == "1") / 2}
            own |= {"status": "error", "reward": 9.0} if verdict == "x" else {}
            rows.append(row(group, sample, problem="abcdefgh"[group], step=step, split=split, **own))
    return frame(*rows)


def test_problems_won_and_lost() -> None:
    before, after = evaluation("11 00 10 0x 1"), evaluation("0 11 10 1")
    table = by_problem(before, after)
    assert table.index.tolist() == ["b", "d", "c", "a"]
    assert table["difference"].tolist() == [1, 1, 0, -1]
    assert table.loc["d"].tolist() == [0, 1, 1, 1, 1]
    found = compare(before, after)
    assert (found.won, found.lost, found.tied, found.unpaired) == (2, 1, 1, 1)
    assert (found.before.mean, found.after.mean, found.difference.mean) == (0.375, 0.625, 0.25)
    assert compare(before, after, "reward").difference.mean == 0.125


def test_the_interval_is_scipys_bootstrap_of_the_differences() -> None:
    chance = np.random.default_rng(1)
    rates = chance.random(60)
    sides = []
    for step, lift in ((0, 0.0), (1, 0.15)):
        drawn = chance.random((60, 4)) < np.clip(rates + lift, 0, 1)[:, None]
        rows = [row(p, s, step=step, split="test", correct=bool(drawn[p, s])) for p in range(60) for s in range(4)]
        sides.append(frame(*rows))
    found = compare(*sides)
    changes = by_problem(*sides)["difference"].to_numpy()
    theirs = bootstrap((changes,), np.mean, method="percentile", n_resamples=10_000, rng=2).confidence_interval
    assert (found.difference.low, found.difference.high) == pytest.approx(theirs, abs=0.01)
    assert found.difference.mean == pytest.approx(found.after.mean - found.before.mean)
    # in pairs it is narrower than of two samples that know nothing of each other
    width = found.difference.high - found.difference.low
    apart = math.hypot(found.before.high - found.before.low, found.after.high - found.after.low)
    assert width < 0.8 * apart


@pytest.mark.parametrize(
    ("changes", "of_shares", "low", "high"),
    [
        # nothing changed on 20 problems; Wilson's upper end for none of 20 is 0.161125
        ([0.0] * 20, True, -0.161125, 0.161125),
        ([1.0] * 20, True, 0.838875, 1.0),
        ([-1.0] * 20, True, -1.0, -0.838875),
        ([0.0] * 20, False, 0.0, 0.0),
        ([0.25] * 20, True, 0.25, 0.25),
        ([2.0], False, math.nan, math.nan),
    ],
)
def test_changes_that_are_all_alike(changes: list[float], of_shares: bool, low: float, high: float) -> None:
    found = mean_difference(changes, of_shares=of_shares)
    np.testing.assert_allclose([found.low, found.high], [low, high], atol=1e-6)
    assert (found.mean, found.n) == (changes[0], len(changes))


def test_step_by_step() -> None:
    first = pd.concat([evaluation("0 0"), evaluation("0 1", step=10), evaluation("1 1", step=20)], ignore_index=True)
    second = pd.concat(
        [evaluation("1 0"), evaluation("1 1", step=10), evaluation("1", step=10, split="train")], ignore_index=True
    )
    found = over_steps(first, second)
    shown = found[["split", "step", "problems", "first", "second", "difference", "won", "lost"]].to_numpy().tolist()
    assert shown == [["validation", 0, 2, 0.0, 0.5, 0.5, 1, 0], ["validation", 10, 2, 0.5, 1.0, 0.5, 1, 0]]
    with pytest.raises(ValueError, match="no evaluation is in both"):
        over_steps(first, evaluation("1", step=99))


def test_what_cannot_be_compared_is_refused() -> None:
    one = evaluation("1")
    with pytest.raises(ValueError, match=r"`after` has several evaluations \(validation 0, validation 10 \.\.\.\)"):
        compare(one, pd.concat([one, evaluation("1", step=10)], ignore_index=True))
    with pytest.raises(ValueError, match="no problem in common"):
        compare(one, one.assign(problem="z"))
    with pytest.raises(ValueError, match="by correct or reward"):
        compare(one, one, "advantage")
