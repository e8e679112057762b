"""What a changed thought did to the answer: accuracy and moved answers by change, over the rows of ``rlreason.probe``.

An answer that does not move when its thought is cut short, damaged or taken away was not drawn from the thought
(Lanham et al. 2023, arXiv:2307.13702, who report the share of answers that stay as they were, and the area over the
curve of early answers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import pandas as pd

from rlreason.analysis.compare import mean_difference
from rlreason.stats import Estimate, estimate


@dataclass(frozen=True)
class Effect:
    """Of one change: right answers after it, the paired difference to the answers before, and the share of answers
    that are others than before. Each with its interval over problems."""

    name: str
    accuracy: Estimate
    difference: Estimate
    moved: Estimate


def effects(rows: pd.DataFrame, *, confidence: float = 0.95) -> list[Effect]:
    """One for each value of ``change``, in their order in ``rows`` (columns ``change``, ``correct``,
    ``correct_before``, ``answer`` and ``answer_before``; one row a problem and change). No answer is an answer too."""
    found = []
    for name, own in rows.groupby("change", sort=False):
        right, before = own["correct"].astype(float), own["correct_before"].astype(float)
        same = own["answer"].fillna("") == own["answer_before"].fillna("")
        found.append(
            Effect(
                str(name),
                estimate(right, confidence=confidence),
                mean_difference(right - before, of_shares=True, confidence=confidence),
                estimate((~same).astype(float), confidence=confidence),
            )
        )
    return found


def area_over_curve(rows: pd.DataFrame, parts: Sequence[float]) -> float:
    """How far early answers are from the whole thought's, from 0 (no answer ever moves) to 1: one minus the mean share
    of answers that stay as they were, by the trapezoid rule over the part of the thought that was kept, from nothing
    (change ``removed``) through ``parts`` to all of it (``unchanged``)."""
    moved = {effect.name: effect.moved.mean for effect in effects(rows)}
    curve = [(0.0, moved["removed"]), *((part, moved[f"first {part:.0%}"]) for part in sorted(parts))]
    curve.append((1.0, moved["unchanged"]))
    return sum((right - left) * (low + high) / 2 for (left, low), (right, high) in pairwise(curve))
