"""The ratios of all cases in one picture: median, range and target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.throughput.results import Entry

MET, MISSED, OPEN = "#0072B2", "#D55E00", "#666666"  # Okabe and Ito: told apart by colour-blind readers too


def plot(entries: Sequence[Entry], path: Path) -> None:
    """One line a case, from the top: a dot at the median ratio, a bar over its range, a tick at the target."""
    figure = Figure(figsize=(8, 1.2 + 0.4 * len(entries)), layout="constrained")
    axes = figure.add_subplot()
    for row, one in enumerate(entries):
        colour = OPEN if one.target is None else MET if one.ratio_median >= one.target else MISSED
        axes.plot([one.ratio_min, one.ratio_max], [row, row], color=colour, linewidth=4, alpha=0.4)
        axes.plot(one.ratio_median, row, "o", color=colour)
        if one.target is not None:
            axes.plot(one.target, row, "|", color="black", markersize=16, markeredgewidth=2)
    axes.axvline(1, color="black", linewidth=0.5)
    axes.set_xscale("log")
    ticks = [0.25, 0.5, 1, 2, 4, 8, 16]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(len(entries)), [f"{one.case}\nagainst {one.against}" for one in entries], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("theirs / ours: dot the median, bar the range, black tick the target")
    axes.grid(axis="x", linewidth=0.3)
    figure.savefig(path, dpi=130)
