"""How often a policy is wrong (risk) against how often it answers at all (coverage), both shares in [0, 1].

A policy that may abstain (``envs/abstain.py``) is one point. One that always answers is a curve: answer only where the
confidence is high, and see how the risk falls (El-Yaniv and Wiener 2010; Geifman and El-Yaniv 2017, arXiv:1705.08500,
section 2). Confidences are those of ``calibration``: ``likelihood``, ``answer_likelihood`` and ``agreement``. An
abstaining policy has learned something where its point lies below the curve of the policy it was trained from.

Left out: choosing a threshold with a guaranteed risk (section 3 there), and intervals of the area under the curve.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from rlreason.analysis.frames import judged, need
from rlreason.analysis.hacking import parts
from rlreason.stats import Estimate, estimate

# A policy that may abstain


@dataclass(frozen=True)
class Abstention:
    """``coverage``: the share of rollouts that answer; ``risk``: the share of wrong ones among those, None if there are
    none."""

    coverage: Estimate
    risk: Estimate | None


def abstained(traces: pd.DataFrame, part: str = "abstained") -> pd.Series[float]:
    """For each row 1 if its rollout abstained, 0 if not, NaN where the environment has no abstention. ``part`` is where
    the grade says so, ``<member>/abstained`` in a mixture. Raises ValueError if no row has it."""
    found = parts(traces)
    if part not in found:
        raise ValueError(f"no grade in these traces has the part {part!r}; they have {', '.join(found)}")
    return found[part]


def known(traces: pd.DataFrame) -> pd.Series[bool]:
    """For each row whether the probe says that the policy knows the answer; NA where nothing says so. To look at the
    two apart: ``abstention(traces[known(traces) == False])``."""
    need(traces, "meta")
    values = [json.loads(meta).get("known") for meta in traces["meta"]]
    return pd.Series(values, index=traces.index, dtype="boolean", name="known")


def abstention(traces: pd.DataFrame, part: str = "abstained", *, confidence: float = 0.95) -> Abstention:
    """Coverage and risk of the judged ``rollouts`` that could abstain, with intervals over problems. A rollout that is
    wrong without an answer in it counts as answered: it did not abstain. ``part``: see ``abstained``."""
    need(traces, "problem")
    frame = judged(traces)
    frame = frame.assign(abstained=abstained(frame, part)).dropna(subset="abstained")
    answered = frame[frame["abstained"] == 0]
    coverage = estimate(1 - frame["abstained"].to_numpy(), units=frame["problem"].to_list(), confidence=confidence)
    if answered.empty:
        return Abstention(coverage, None)
    wrong = 1 - answered["correct"].to_numpy()
    return Abstention(coverage, estimate(wrong, units=answered["problem"].to_list(), confidence=confidence))


# A policy that always answers, and a confidence


@dataclass(frozen=True)
class Selective:
    """How good a confidence is at saying which of ``n`` rollouts to answer with.

    ``risk``: if all answer, and at every coverage if the choice is random. ``aurc``: the area under the risk-coverage
    curve, the mean of its risks (Geifman, Uziel and El-Yaniv 2019, arXiv:1805.08206, section 3); ``oracle``: that of a
    confidence that puts every right rollout first; ``excess``: ``aurc`` less ``oracle`` (E-AURC there), 0 at best.
    """

    n: int
    risk: float
    aurc: float
    oracle: float
    excess: float


def curve(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> pd.DataFrame:
    """The risk-coverage curve, a row for each number of rollouts answered with, from 1 to n, the most confident first:
    ``coverage`` and ``risk``. Among equal confidences the order is random, and the risk its expectation.

    ``confidence`` and ``correct`` (1 or 0) have shape (n,). Raises ValueError for other shapes, and for NaN.
    """
    values, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if values.shape != right.shape or values.ndim != 1 or not values.size:
        raise ValueError(f"confidence and correct need one shape (n,), not {values.shape} and {right.shape}")
    if np.isnan(values).any() or np.isnan(right).any():
        raise ValueError("a confidence or a verdict is NaN; leave out what has none")
    ranked = pd.DataFrame({"confidence": values, "wrong": 1 - right}).sort_values("confidence", ascending=False)
    expected = ranked.groupby("confidence")["wrong"].transform("mean").to_numpy()
    answered = np.arange(1, values.size + 1)
    return pd.DataFrame({"coverage": answered / values.size, "risk": expected.cumsum() / answered})


def selective(traces: pd.DataFrame, confidence: pd.Series[float]) -> Selective:
    """How good ``confidence`` is, a number for each rollout of ``frames.rollouts(traces)`` under its index; rollouts
    that have none (NaN) or no verdict are left out. Raises ValueError if none is left.

    An abstention is no right answer, and would count as a wrong one: choose ``traces[abstained(traces) == 0]``.
    """
    frame = judged(traces)
    frame = frame.assign(confidence=confidence.reindex(frame.index)).dropna(subset="confidence")
    if frame.empty:
        raise ValueError("no rollout has both a confidence and a verdict")
    right = frame["correct"].to_numpy()
    aurc = float(curve(frame["confidence"], right)["risk"].mean())
    oracle = float(curve(right, right)["risk"].mean())
    return Selective(len(frame), float(1 - right.mean()), aurc, oracle, aurc - oracle)


def plot(curves: Mapping[str, pd.DataFrame], points: Mapping[str, Abstention], path: Path) -> None:
    """Curves of ``curve`` as lines and abstaining policies as points with their intervals, by name, as a PNG file.
    Raises ImportError without matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    panel = figure.subplots()
    for name, line in curves.items():
        panel.plot(line["coverage"], line["risk"], label=name)
    for name, point in points.items():
        if point.risk is not None:
            panel.errorbar(
                point.coverage.mean, point.risk.mean, xerr=_arms(point.coverage), yerr=_arms(point.risk),
                fmt="o", capsize=4, label=name,
            )  # fmt: skip
    panel.set_xlabel("coverage: share answered")
    panel.set_ylabel("risk: share wrong of those")
    panel.set_xlim(0, 1.02)
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3)
    panel.legend(frameon=False)
    figure.savefig(path, dpi=120, format="png")


def _arms(value: Estimate) -> list[list[float]]:
    """Of an error bar, downwards and upwards; none where a single problem has no interval."""
    return [[np.nan_to_num(max(value.mean - value.low, 0.0))], [np.nan_to_num(max(value.high - value.mean, 0.0))]]
