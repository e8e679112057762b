"""What several samples of a problem are worth: pass@k and maj@k from traces, with intervals over problems.

The estimators are those of ``rlreason.stats``; here they meet frames, so that any step and split can be asked again for
any k. A problem's samples are all its graded ones of a split and step, whatever draws they come from.

Left out: k above the number of samples, which nothing but a model of the success rates could answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pandas as pd

from rlreason.analysis.frames import judged, need
from rlreason.stats import estimate, majority_vote, pass_at_k

MOMENT = ["split", "step"]


def by_problem(traces: pd.DataFrame) -> pd.DataFrame:
    """For each split, step and problem: ``samples`` that were judged, how many are ``right``, how many gave no answer
    (``silent``), and how many different ``answers`` there are."""
    need(traces, "problem", "answer")
    groups = judged(traces).groupby([*MOMENT, "problem"])
    found = groups.agg(
        samples=("correct", "size"), right=("correct", "sum"), given=("answer", "count"), answers=("answer", "nunique")
    )
    found = found.assign(right=found["right"].astype("int64"), silent=found["samples"] - found["given"])
    return found.drop(columns="given").reset_index()


def passes(traces: pd.DataFrame, ks: Sequence[int], *, confidence: float = 0.95) -> pd.DataFrame:
    """pass@k for each split, step and k of ``ks``: the chance that one of k samples at least is right, by
    ``stats.pass_at_k`` (Chen et al. 2021, equation 1), as ``mean`` over ``problems`` with the interval ``low`` to
    ``high``. Problems with fewer than k samples are left out; a k for which there is no problem has no row.
    """
    chance = cache(pass_at_k)

    def values(problems: pd.DataFrame, k: int) -> list[float]:
        enough = problems[problems["samples"] >= k]
        return [chance(n, c, k) for n, c in zip(enough["samples"].tolist(), enough["right"].tolist(), strict=True)]

    return _over_problems(by_problem(traces), ks, values, confidence)


def majorities(traces: pd.DataFrame, ks: Sequence[int], *, confidence: float = 0.95) -> pd.DataFrame:
    """maj@k for each split, step and k of ``ks``: the accuracy of the most frequent of k answers (self-consistency,
    Wang et al. 2022, arXiv:2203.11171), by ``stats.majority_vote``; a table as ``passes`` returns.

    Of a problem's n samples the n // k disjoint runs of k, in their order, are averaged: unbiased, since samples of a
    problem are drawn alike. The rest of fewer than k is not used.
    """
    need(traces, "problem", "answer")
    frame = judged(traces).sort_values([*MOMENT, "problem", "group", "sample"])
    answers = frame["answer"].astype(object).where(frame["answer"].notna(), None)
    frame = frame.assign(answer=answers)
    lists = frame.groupby([*MOMENT, "problem"]).agg(answer=("answer", list), correct=("correct", list)).reset_index()

    def values(problems: pd.DataFrame, k: int) -> list[float]:
        found = []
        for given, right in zip(problems["answer"], problems["correct"], strict=True):
            cuts = range(0, len(given) - k + 1, k)
            if cuts:
                found.append(float(np.mean([majority_vote(given[i : i + k], right[i : i + k]) for i in cuts])))
        return found

    return _over_problems(lists, ks, values, confidence)


def _over_problems(
    problems: pd.DataFrame, ks: Sequence[int], values: Callable[[pd.DataFrame, int], list[float]], confidence: float
) -> pd.DataFrame:
    if bad := [k for k in ks if k < 1]:
        raise ValueError(f"k is {bad[0]}; it must be at least 1")
    rows = []
    for (split, step), own in problems.groupby(MOMENT):
        for k in ks:
            if found := values(own, k):
                mean = estimate(found, confidence=confidence)
                row = {"split": split, "step": step, "k": k, "mean": mean.mean, "low": mean.low, "high": mean.high}
                rows.append({**row, "problems": mean.n})
    return pd.DataFrame(rows, columns=[*MOMENT, "k", "mean", "low", "high", "problems"])
