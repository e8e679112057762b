"""Ratings over training as a table for the screen and a plot.

Left out: the games themselves; they are traces, and are read as such.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from rlreason.analysis.ratings import Standing


@dataclass(frozen=True)
class Rated:
    """A checkpoint of ``run`` after ``step``, its standing against all anchors, and its score (draws half) by
    anchor."""

    run: str
    step: int
    path: str
    standing: Standing
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Ratings:
    """``anchors`` by name, of which the first is rated 0."""

    title: str
    anchors: Mapping[str, float]
    rated: list[Rated]
    games: int
    confidence: float


def table(ratings: Ratings) -> Table:
    said = ", ".join(f"{name} {rating:.0f}" for name, rating in ratings.anchors.items())
    found = Table(title=ratings.title, caption=f"anchors: {said}; {ratings.games} games with each")
    for heading in ("run", "step", "rating", f"{ratings.confidence:.0%} interval", *ratings.anchors):
        found.add_column(heading, justify="left" if heading == "run" else "right")
    for rated in ratings.rated:
        standing = rated.standing
        known = "unknown" if standing.low is None else f"{standing.low:.0f} to {standing.high:.0f}"
        scores = (f"{rated.scores[name]:.2f}" for name in ratings.anchors)
        found.add_row(Text(rated.run), str(rated.step), f"{standing.rating:.0f}", known, *scores)
    return found


def plot(ratings: Ratings, path: Path) -> None:
    """Ratings with their intervals against the step, a curve a run, and the anchors as lines. Raises ImportError
    without matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    panel = figure.subplots()
    for run in dict.fromkeys(rated.run for rated in ratings.rated):
        own = [rated for rated in ratings.rated if rated.run == run]
        values = [rated.standing.rating for rated in own]
        spans = [(rated.standing.low, rated.standing.rating, rated.standing.high) for rated in own]
        below = [0.0 if low is None else max(0.0, value - low) for low, value, _ in spans]
        above = [0.0 if high is None else max(0.0, high - value) for _, value, high in spans]
        panel.errorbar([r.step for r in own], values, yerr=[below, above], marker="o", capsize=4, label=run)
    for name, rating in ratings.anchors.items():
        panel.axhline(rating, color="grey", linestyle="--", linewidth=0.8)
        panel.annotate(name, (1.0, rating), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    panel.set_xlabel("step")
    panel.set_ylabel(f"rating (Elo scale), {ratings.confidence:.0%} intervals")
    panel.set_title(ratings.title)
    panel.grid(alpha=0.3)
    panel.legend()
    figure.savefig(path, dpi=120, format="png")
