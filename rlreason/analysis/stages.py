"""The stages of a pipeline on the same evaluations: as a table, as Markdown and as a figure.

``Results`` has by evaluation and by stage what ``rlreason.evaluate`` found: of each metric ``mean``, ``low``, ``high``
and ``n``. An interval's ends are None where one problem is all there is.

Left out: differences between stages with intervals of their own; they need the traces, problem by problem.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

Found = Mapping[str, Mapping[str, Any]]  # by metric
Results = Mapping[str, Mapping[str, Found]]

SHOWN = ("accuracy", "reward", "mean_length")
"""The metrics that are shown, where there are any."""


def read_evaluation(summary: Mapping[str, Any]) -> Found:
    """The metrics in a ``summary.json`` of ``rlreason.evaluate`` by their own names, without ``eval/<env>/``."""
    return {name.rpartition("/")[2]: value for name, value in summary.items() if isinstance(value, dict)}


def metrics_of(evaluation: Mapping[str, Found]) -> list[str]:
    """Which of ``SHOWN`` every stage has in an evaluation."""
    return [metric for metric in SHOWN if all(metric in found for found in evaluation.values())]


def tables(results: Results) -> list[Table]:
    """One for each evaluation, a row for each stage."""
    made = []
    for name, evaluation in results.items():
        table = Table(title=f"{name}, {_size(evaluation)} problems, 95 % intervals")
        table.add_column("stage")
        for metric in metrics_of(evaluation):
            table.add_column(metric, justify="right")
        for stage, found in evaluation.items():
            table.add_row(stage, *(_cell(found[metric]) for metric in metrics_of(evaluation)))
        made.append(table)
    return made


def markdown(results: Results) -> str:
    """The same tables as Markdown."""
    parts = []
    for name, evaluation in results.items():
        heads = ["stage", *metrics_of(evaluation)]
        rows = [[stage, *(_cell(found[metric]) for metric in heads[1:])] for stage, found in evaluation.items()]
        lines = ["| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)]
        parts.append(f"**{name}**, {_size(evaluation)} problems, 95 % intervals\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def plot(results: Results, path: Path) -> None:
    """A row of panels for each evaluation, a panel for each metric: points with intervals, stages from left to right.
    Raises ImportError without matplotlib."""
    from matplotlib.figure import Figure

    widest = max(len(metrics_of(evaluation)) for evaluation in results.values())
    figure = Figure(figsize=(4 * widest, 3 * len(results)), layout="constrained")
    panels = figure.subplots(len(results), widest, squeeze=False)
    for row, (name, evaluation) in zip(panels, results.items(), strict=True):
        metrics = metrics_of(evaluation)
        for place, panel in enumerate(row):
            if place >= len(metrics):
                panel.set_axis_off()
                continue
            found = [values[metrics[place]] for values in evaluation.values()]
            means = [value["mean"] for value in found]
            lows = [0.0 if value["low"] is None else value["mean"] - value["low"] for value in found]
            highs = [0.0 if value["high"] is None else value["high"] - value["mean"] for value in found]
            panel.errorbar(range(len(means)), means, yerr=[lows, highs], fmt="o-", capsize=4)
            panel.set_xticks(range(len(means)), list(evaluation), rotation=30)
            panel.set_title(f"{name}: {metrics[place]}" + (" (tokens)" if metrics[place] == "mean_length" else ""))
            panel.set_ylim(bottom=0 if min(means) >= 0 else None)
            panel.grid(alpha=0.3)
    figure.savefig(path, dpi=120, format="png")


def _cell(value: Mapping[str, Any]) -> str:
    if value["low"] is None or value["high"] is None:
        return f"{value['mean']:.3g}"
    return f"{value['mean']:.3g} ({value['low']:.3g} to {value['high']:.3g})"


def _size(evaluation: Mapping[str, Found]) -> str:
    sizes = sorted({int(metric["n"]) for found in evaluation.values() for metric in found.values()})
    return " to ".join(map(str, sizes[:: max(1, len(sizes) - 1)]))
