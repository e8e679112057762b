"""How long completions are: over steps, right against wrong, and what the length limit cuts off.

Lengths are in tokens that the policy wrote, over all segments, end tokens included, as
``rlreason.metrics.completion_length`` counts them. Left out: thought and answer apart, which need the text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from rlreason.analysis.compare import mean_difference
from rlreason.analysis.frames import KEY, added, need, rollout_of_row, rollouts, tokens
from rlreason.stats import Estimate, estimate


def lengths(traces: pd.DataFrame) -> pd.DataFrame:
    """A row for each rollout, as ``frames.rollouts`` orders them: what names it, ``problem``, ``correct`` (1, 0 or
    NaN), ``truncated`` (bool: the length limit cut it off) and ``length``. Needs the column ``mask``."""
    need(traces, *KEY, "segment", "problem", "correct", "status", "finish", "mask")
    first = rollouts(traces)
    per_row = tokens(traces).count()
    own = added(rollout_of_row(traces), per_row, len(first)).astype(np.int64)
    correct = first["correct"].astype("Float64").where(first["status"] != "error").to_numpy(np.float64, na_value=np.nan)
    found = first[[*KEY, "problem"]].assign(correct=correct, truncated=first["finish"] == "length", length=own)
    return found.reset_index(drop=True)


def by_step(traces: pd.DataFrame) -> pd.DataFrame:
    """Lengths of each split and step, as means over rollouts, NaN over none.

    ``rollouts``; ``mean``, ``median``, ``p90`` and ``max`` of all; ``right`` and ``wrong``, the mean lengths of those
    judged so; ``truncated``, the share that the limit cut off; ``accuracy``, and ``accuracy_stopped`` of those that
    ended by themselves: what is between the two is lost to the limit, if cut off ones would do no worse. Wrong answers
    that grow while right ones don't are the length bias of GRPO's loss (Liu et al. 2025, "Understanding R1-Zero-like
    training", arXiv:2503.20783, section 3.1); see ``wrong_against_right``.
    """
    frame = lengths(traces)
    length, correct = frame["length"].astype("float64"), frame["correct"]
    frame = frame.assign(
        right=length.where(correct == 1),
        wrong=length.where(correct == 0),
        stopped=correct.where(~frame["truncated"]),
    )
    steps = frame.groupby(["split", "step"])
    found = steps.agg(
        rollouts=("length", "size"),
        mean=("length", "mean"),
        median=("length", "median"),
        max=("length", "max"),
        right=("right", "mean"),
        wrong=("wrong", "mean"),
        truncated=("truncated", "mean"),
        accuracy=("correct", "mean"),
        accuracy_stopped=("stopped", "mean"),
    )
    found.insert(3, "p90", steps["length"].quantile(0.9))
    return found.reset_index()


@dataclass(frozen=True)
class Gap:
    """Mean lengths of wrong and of right samples of the same problems, and wrong - right in pairs, over problems."""

    wrong: Estimate
    right: Estimate
    difference: Estimate


def wrong_against_right(traces: pd.DataFrame, *, confidence: float = 0.95) -> Gap | None:
    """How much longer wrong samples are than right ones *of the same draw of a problem*; None if no draw has both.

    Over all rollouts the two differ for another reason too: hard problems take longer and are more often wrong. Within
    a draw, whose samples come from one problem and one policy, that is gone. Draws of one problem are averaged.
    """
    frame = lengths(traces)
    sides = frame.pivot_table(index=["problem", "split", "step", "group"], columns="correct", values="length")
    if not {0.0, 1.0} <= set(sides.columns) or (both := sides.dropna()).empty:
        return None
    own = both.groupby("problem").mean()

    def mean(values: pd.Series[float]) -> Estimate:
        return mean_difference(values.to_numpy(), of_shares=False, confidence=confidence)

    return Gap(wrong=mean(own[0.0]), right=mean(own[1.0]), difference=mean(own[0.0] - own[1.0]))


def accuracy_by_length(traces: pd.DataFrame, *, bins: int = 10, confidence: float = 0.95) -> pd.DataFrame:
    """Accuracy of rollouts of similar length: a row for each of ``bins`` quantiles of the length (fewer where many
    lengths are the same), with ``shortest``, ``longest``, ``rollouts``, ``truncated`` (share), and ``accuracy`` with
    its interval ``low`` to ``high`` over problems.

    Accuracy is the mean over problems of a problem's share in the bin. It says what goes with length, not what length
    does: see ``wrong_against_right``. Raises ValueError if no rollout was judged.
    """
    frame = lengths(traces).dropna(subset="correct")
    if frame.empty:
        raise ValueError("no rollout in these traces was judged right or wrong, so there is no accuracy")
    edges = np.unique(frame["length"].quantile(np.arange(1, bins + 1) / bins))
    places = np.searchsorted(edges, frame["length"])  # an edge belongs to the bin below it
    rows = []
    for _, part in frame.groupby(places):
        found = estimate(part.groupby("problem")["correct"].mean().to_numpy(), confidence=confidence)
        rows.append(
            {
                "shortest": int(part["length"].min()),
                "longest": int(part["length"].max()),
                "rollouts": len(part),
                "truncated": float(part["truncated"].mean()),
                "accuracy": found.mean,
                "low": found.low,
                "high": found.high,
            }
        )
    return pd.DataFrame(rows)
