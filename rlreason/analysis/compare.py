"""Two runs, or two steps of one, on the same problems: the difference in pairs, and which problems were won and lost.

The problem is the unit: its samples are averaged on each side, and only problems that both sides have are compared.
Left out: a p-value. The interval says more, and a difference whose interval excludes 0 is significant at its level
(Efron and Tibshirani 1993, "An introduction to the bootstrap", section 16.4).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from rlreason.analysis.frames import judged, need, rollouts
from rlreason.stats import Estimate, bootstrap_interval, estimate, wilson_interval


@dataclass(frozen=True)
class Comparison:
    """``before`` and ``after`` on the problems that both have, the ``difference`` after - before in pairs, and the
    numbers of problems where after is higher, lower, and the same; ``unpaired`` problems are only on one side."""

    before: Estimate
    after: Estimate
    difference: Estimate
    won: int
    lost: int
    tied: int
    unpaired: int


def by_problem(before: pd.DataFrame, after: pd.DataFrame, value: str = "correct") -> pd.DataFrame:
    """The problems that both have, by id: means ``before`` and ``after`` of ``correct`` or ``reward`` over a problem's
    graded samples, their numbers ``samples_before`` and ``samples_after``, and the ``difference``; won first.

    Each frame holds the traces of one evaluation. Raises ValueError for several steps or splits, another value, and
    frames that share no problem.
    """
    table = _joined(before, after, value).dropna()
    if table.empty:
        raise ValueError("the two have no problem in common; compare the same split of the same environment")
    counts = {"samples_before": "int64", "samples_after": "int64"}
    table = table.assign(difference=table["after"] - table["before"]).astype(counts)
    table = table.sort_values(["difference", "problem"], ascending=[False, True])
    return table[["before", "after", "difference", "samples_before", "samples_after"]]


def compare(
    before: pd.DataFrame, after: pd.DataFrame, value: str = "correct", *, confidence: float = 0.95
) -> Comparison:
    """The difference between two evaluations over problems in pairs, with percentile bootstrap intervals (Efron 1979);
    arguments and errors as ``by_problem``'s.

    Pairs take the problems' difficulty out of the difference, so that its interval is narrower than the two sides'
    would suggest wherever both find the same problems hard.
    """
    table = by_problem(before, after, value)
    changes = table["difference"].to_numpy()
    return Comparison(
        before=estimate(table["before"].to_numpy(), confidence=confidence),
        after=estimate(table["after"].to_numpy(), confidence=confidence),
        difference=mean_difference(changes, of_shares=value == "correct", confidence=confidence),
        won=int((changes > 0).sum()),
        lost=int((changes < 0).sum()),
        tied=int((changes == 0).sum()),
        unpaired=len(_joined(before, after, value)) - len(table),
    )


def over_steps(
    first: pd.DataFrame, second: pd.DataFrame, value: str = "correct", *, confidence: float = 0.95
) -> pd.DataFrame:
    """Two runs' evaluations step by step: for each split but ``train`` and each step that both have, means ``first``
    and ``second``, the ``difference`` second - first with its interval ``low`` to ``high``, and problems ``won`` and
    ``lost`` by the second. Raises ValueError if no evaluation is in both."""
    need(first, "split", "step")
    need(second, "split", "step")
    theirs = dict(iter(second.groupby(["split", "step"])))
    rows = []
    for moment, ours in first.groupby(["split", "step"]):
        if moment[0] == "train" or moment not in theirs:
            continue
        found = compare(ours, theirs[moment], value, confidence=confidence)
        rows.append(
            {
                "split": moment[0],
                "step": moment[1],
                "problems": found.difference.n,
                "first": found.before.mean,
                "second": found.after.mean,
                "difference": found.difference.mean,
                "low": found.difference.low,
                "high": found.difference.high,
                "won": found.won,
                "lost": found.lost,
            }
        )
    if not rows:
        raise ValueError("no evaluation is in both runs: they need a step and a split in common")
    return pd.DataFrame(rows)


def mean_difference(changes: npt.ArrayLike, *, of_shares: bool, confidence: float = 0.95) -> Estimate:
    """The mean of a difference a problem with its ``bootstrap_interval``; ``of_shares`` says that what was subtracted
    are shares.

    Differences that are all alike leave the bootstrap nothing to resample. Where those of shares are all -1, 0 or 1,
    the interval reaches as far from there as Wilson's does for none of so many; others are taken to be as constant as
    they look. A single problem that is neither has nan to nan.
    """
    array = np.asarray(changes, dtype=np.float64)
    mean, count = float(array.mean()), array.size
    if (array != array[0]).any():
        return Estimate(mean, *bootstrap_interval(array, confidence=confidence), count)
    if of_shares and array[0] in (-1.0, 0.0, 1.0):
        reach = wilson_interval(0, count, confidence=confidence)[1]
        return Estimate(mean, max(mean - reach, -1.0), min(mean + reach, 1.0), count)
    end = mean if count > 1 else np.nan
    return Estimate(mean, end, end, count)


def _joined(before: pd.DataFrame, after: pd.DataFrame, value: str) -> pd.DataFrame:
    """Both sides' means and numbers of samples by problem; NaN on the side that lacks it."""
    sides = []
    for name, traces in (("before", before), ("after", after)):
        need(traces, "problem", "step", "split")
        if len(moments := traces[["split", "step"]].drop_duplicates()) > 1:
            found = ", ".join(f"{row.split} {row.step}" for row in moments.head(4).itertuples())
            raise ValueError(f"`{name}` has several evaluations ({found} ...); choose one step and split")
        means = _means(traces, value)
        sides.append(means.rename(columns={"mean": name, "samples": f"samples_{name}"}))
    return sides[0].join(sides[1], how="outer")


def _means(traces: pd.DataFrame, value: str) -> pd.DataFrame:
    """By problem, the mean over graded samples and how many these are."""
    if value == "correct":
        graded = judged(traces)
    elif value == "reward":
        need(traces, "reward", "status")
        graded = rollouts(traces)
        graded = graded[(graded["status"] != "error") & graded["reward"].notna()]
    else:
        raise ValueError(f"the value is {value!r}; compare by correct or reward")
    return graded.groupby("problem")[value].agg(mean="mean", samples="size")
