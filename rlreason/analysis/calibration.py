"""Does the policy know when it is right? A rollout's confidence, read off its traces, against its verdict.

Four confidences, each in [0, 1]: the probability of the whole completion, that of a typical token, that of the answer's
tokens, and the share of the other samples of the draw that give the same answer.

``rlreason.pair_stats.calibration`` is the same for a judge of pairs, whose confidence begins at 0.5. Left out:
intervals of the calibration error, which is biased upwards in small samples, by more the more bins there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from rlreason.analysis.frames import (
    Floats,
    Ints,
    Piece,
    added,
    judged,
    laid_out,
    need,
    rollout_of_row,
    rollouts,
    tokens,
)
from rlreason.stats import Estimate, estimate

GROUP = ["split", "step", "group"]

# Confidences: a number for each rollout of ``frames.rollouts(traces)``, NaN where it is not known


def likelihood(traces: pd.DataFrame, *, per_token: bool) -> pd.Series[float]:
    """exp of the sum, or with ``per_token`` of the mean, of ``sampler_logp`` over the tokens that the policy wrote, all
    segments together.

    The first is the probability of the completion and falls with its length; the second is the geometric mean of its
    tokens' (length-normalised, Malinin and Gales 2021, arXiv:2002.07650, section 3). At the sampling temperature.
    """
    laid = tokens(traces, "sampler_logp")
    first, owner = rollouts(traces), rollout_of_row(traces)
    total = added(owner, laid.sums(laid["sampler_logp"]), len(first))
    count = added(owner, laid.count(), len(first))
    with np.errstate(invalid="ignore", divide="ignore"):  # a rollout without a token of its own has none
        values = np.where(count > 0, np.exp(total / count if per_token else total), np.nan)
    values = np.minimum(values, 1.0)  # a log-probability of 0 can come out a rounding above it
    return pd.Series(values, index=first.index, name="confidence")


def answer_likelihood(traces: pd.DataFrame, piece: Piece) -> pd.Series[float]:
    """The probability that the sampler gave the tokens of the answer, after all that was written before: exp of the sum
    of ``sampler_logp`` over the tokens in which the last occurrence of ``answer`` in the last segment lies.

    NaN where there is no answer, or where it isn't written as ``answer`` has it (a verifier may have put it into
    another form). After a thought that works the answer out, it is near 1 for right and wrong alike.
    """
    need(traces, "answer", "completion_ids", "sampler_logp", "segment")
    known: dict[int, str] = {}

    def remembered(token: int) -> str:
        if token not in known:
            known[token] = piece(token)
        return known[token]

    first, owner = rollouts(traces), rollout_of_row(traces)
    order = np.lexsort((traces["segment"].to_numpy(), owner))  # by rollout, its last segment last
    last = order[np.append(np.diff(owner[order]) != 0, True)]
    values = []
    for row in traces.iloc[last][["answer", "completion_ids", "sampler_logp"]].itertuples(index=False):
        text, begins = laid_out(row.completion_ids, remembered)
        at = text.rfind(row.answer) if isinstance(row.answer, str) and row.answer else -1
        if at < 0:
            values.append(np.nan)
            continue
        ends = np.append(begins[1:], len(text))
        inside = (begins < at + len(row.answer)) & (ends > at)
        values.append(min(float(np.exp(np.asarray(row.sampler_logp)[inside].sum(dtype=np.float64))), 1.0))
    return pd.Series(values, index=first.index, name="confidence", dtype="float64")


def agreement(traces: pd.DataFrame) -> pd.Series[float]:
    """The share of the other rollouts of the draw that give the same answer: self-consistency (Wang et al. 2022,
    arXiv:2203.11171) without the vote for oneself. 0 without an answer; NaN for the only one of its draw. Rollouts that
    ended in ``error`` count nowhere and have NaN."""
    need(traces, "answer", "status")
    first = rollouts(traces)
    graded = first[first["status"] != "error"]
    size = graded.groupby(GROUP)["sample"].transform("size")
    same = graded.groupby([*GROUP, "answer"])["sample"].transform("size").fillna(1)  # none: agrees with nobody
    share = (same - 1) / (size - 1).where(size > 1)
    return share.reindex(first.index).rename("confidence")


# Against verdicts


@dataclass(frozen=True)
class Calibration:
    """How good confidences of ``n`` rollouts are.

    ``confidence`` and ``accuracy`` are means. ``ece``: expected calibration error, the mean over rollouts of the
    distance between their bin's confidence and accuracy (Guo et al. 2017, arXiv:1706.04599, equation 3). ``brier``: the
    mean squared error (Brier 1950). ``auroc``: the chance that a right rollout has a higher confidence than a wrong
    one, ties counted as half (Mann and Whitney 1947); None where all are right or all wrong. It asks only for the
    order, so a confidence that is too low throughout can have 1. ``auroc_within``: the same within draws that have
    both, over problems: whether the confidence picks the right one of several samples, and not only the easy problem;
    None if no draw has both.
    """

    n: int
    confidence: float
    accuracy: float
    ece: float
    brier: float
    auroc: float | None
    auroc_within: Estimate | None


def reliability(confidence: npt.ArrayLike, correct: npt.ArrayLike, *, bins: int = 10) -> pd.DataFrame:
    """The reliability diagram: of ``bins`` equally wide bins of [0, 1], those with a rollout in them, with their ends
    ``low`` and ``high`` (which belongs to the next, but for 1), mean ``confidence``, ``accuracy`` and ``rollouts``.
    ``confidence`` and ``correct`` (1 or 0) have shape (n,). Raises ValueError for a confidence outside [0, 1]."""
    values, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if values.shape != right.shape or values.ndim != 1 or not values.size:
        raise ValueError(f"confidence and correct need one shape (n,), not {values.shape} and {right.shape}")
    if not ((values >= 0) & (values <= 1)).all():
        bad = values[~((values >= 0) & (values <= 1))][0]
        raise ValueError(f"a confidence is {bad}; it must lie between 0 and 1: leave out what has none")
    place = np.minimum((values * bins).astype(np.int64), bins - 1)
    frame = pd.DataFrame({"confidence": values, "accuracy": right, "rollouts": 1})
    found = frame.groupby(place).agg({"confidence": "mean", "accuracy": "mean", "rollouts": "size"})
    found.insert(0, "low", found.index / bins)
    found.insert(1, "high", (found.index + 1) / bins)
    return found.reset_index(drop=True)


def calibration(traces: pd.DataFrame, confidence: pd.Series[float], *, bins: int = 10) -> Calibration:
    """How good ``confidence`` is, a number for each rollout of ``frames.rollouts(traces)`` under its index; rollouts
    that have none (NaN) or no verdict are left out. Raises ValueError if none is left."""
    need(traces, "problem")
    frame = judged(traces)
    frame = frame.assign(confidence=confidence.reindex(frame.index)).dropna(subset="confidence")
    if frame.empty:
        raise ValueError("no rollout has both a confidence and a verdict")
    values, right = frame["confidence"].to_numpy(), frame["correct"].to_numpy()
    curve = reliability(values, right, bins=bins)
    misses = (curve["confidence"] - curve["accuracy"]).abs()
    apart = frame.assign(auroc=_aurocs(values, right, frame.groupby(GROUP).ngroup().to_numpy()))
    draws = apart.drop_duplicates(GROUP).dropna(subset="auroc")
    within = draws.groupby("problem")["auroc"].mean().to_numpy()
    overall = _aurocs(values, right, np.zeros(len(values), dtype=np.int64))[0]
    return Calibration(
        n=len(frame),
        confidence=float(values.mean()),
        accuracy=float(right.mean()),
        ece=float((misses * curve["rollouts"]).sum() / len(frame)),
        brier=float(((values - right) ** 2).mean()),
        auroc=None if np.isnan(overall) else float(overall),
        auroc_within=estimate(within) if len(within) else None,
    )


def _aurocs(values: Floats, right: Floats, group: Ints) -> Floats:
    """For each member (n,) its group's area under the ROC curve, NaN where the group is all right or all wrong: from
    the sum of the right ones' ranks, ties sharing theirs (Mann and Whitney 1947)."""
    ranks = pd.Series(values).groupby(group).rank().to_numpy()
    count = int(group.max()) + 1
    rights, wrongs = added(group, right, count), added(group, 1 - right, count)
    with np.errstate(invalid="ignore", divide="ignore"):
        areas = (added(group, ranks * right, count) - rights * (rights + 1) / 2) / (rights * wrongs)
    return np.where((rights > 0) & (wrongs > 0), areas, np.nan)[group]
