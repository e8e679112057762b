"""python experiments/arithmetic/plot.py FOLDER [--out FOLDER]

Reads what run.sh left in FOLDER; writes results.json, metrics-seed<k>.jsonl, traces-sample.jsonl and curves.png beside
this file (or into --out), and prints the tables of the README. An evaluation that is not there is left out.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlreason.analysis.load import read_metrics, read_traces
from rlreason.analysis.study import from_command_line, numbers, origin, to_json
from rlreason.stats import Estimate, estimate

HERE = Path(__file__).resolve().parent
WINDOW = 5  # steps that a sampled reward is averaged over, up to and including the step it is given for
TARGET = 0.8
MINUTES = 15.0
CURVES = {
    "reward": "reward",
    "entropy": "entropy",
    "mean_length": "completions/mean_length",
    "frac_reward_zero_std": "frac_reward_zero_std",
    "step_time": "step_time",
}
PROBLEMS = {"one_digit": ("validation", "test"), "two_digits": ("two_digits",)}  # folders whose problems are pooled
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe and Ito: told apart by colour-blind readers too
MARKERS = ("o", "s", "^", "D")


@dataclass(frozen=True)
class Run:
    """A training run.

    ``steps`` has a row a step from 1 up, with ``minutes`` of training since the start, and ``recent``, the reward
    averaged over the last ``WINDOW`` steps; ``evaluations`` has a row an evaluation, with the same minutes.
    """

    folder: Path
    seed: int
    manifest: Mapping[str, Any]
    steps: pd.DataFrame
    evaluations: pd.DataFrame


def read_run(folder: Path) -> Run:
    """A run folder. Raises FileNotFoundError if it isn't one, ValueError if it has no training step."""
    metrics = read_metrics(folder)
    metrics["minutes"] = metrics.get("step_time", pd.Series(0.0, metrics.index)).fillna(0.0).cumsum() / 60
    steps = metrics[metrics["step"] > 0].reset_index(drop=True)
    if steps.empty:
        raise ValueError(f"{folder} has no training step yet; wait for the run, or remove the folder")
    steps["recent"] = steps["reward"].rolling(WINDOW, min_periods=1).mean()
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    prefix = f"eval/{manifest['env']['name']}/"
    evaluated = {f"accuracy{end}": metrics[f"{prefix}accuracy{end}"] for end in ("", "_low", "_high")}
    evaluations = metrics[["step", "minutes"]].assign(**evaluated)
    return Run(
        folder=folder,
        seed=int(manifest["seed"]),
        manifest=manifest,
        steps=steps,
        evaluations=evaluations.dropna(subset="accuracy").reset_index(drop=True),
    )


def read_runs(sweep: Path) -> list[Run]:
    """The sweep's runs, by seed. Raises FileNotFoundError if there is none."""
    runs = sorted((read_run(file.parent) for file in sweep.glob("*/metrics.jsonl")), key=lambda run: run.seed)
    if not runs:
        raise FileNotFoundError(
            f"no run folder in {sweep} (looked for {sweep / '*' / 'metrics.jsonl'}); run run.sh first"
        )
    return runs


def read_evaluations(folder: Path) -> dict[str, dict[str, Any]]:
    """Greedy accuracy, mean length and truncation by kind of problem, each over all problems of that kind; {} if any of
    its evaluations is missing."""
    found: dict[str, dict[str, Any]] = {}
    for kind, parts in PROBLEMS.items():
        if not all((folder / part / "summary.json").is_file() for part in parts):
            continue
        columns = ["problem", "correct", "completion_tokens", "finish"]
        traces = pd.concat([read_traces(folder / part, columns) for part in parts]).dropna(subset="correct")
        if traces["problem"].duplicated().any():
            raise ValueError(f"{folder}: a problem of {' and '.join(parts)} was asked twice; they can't be pooled")
        found[kind] = asdict(estimate(traces["correct"].to_numpy(dtype=float))) | {
            "mean_length": float(traces["completion_tokens"].mean()),
            "clipped_ratio": float((traces["finish"] == "length").mean()),
        }
    return found


def describe(run: Run, evaluations: Mapping[str, Any]) -> dict[str, Any]:
    """What results.json says about one seed."""
    steps, evals = run.steps, run.evaluations
    full = steps["step"] >= min(WINDOW, len(steps))  # a mean over fewer steps does not count as having arrived
    reached = steps[full & (steps["recent"] >= TARGET)]
    in_time = steps[steps["minutes"] <= MINUTES]
    return {
        "reward_first_step": float(steps["reward"].iloc[0]),
        "reward_last_steps": float(steps["recent"].iloc[-1]),
        "reward_at_15_minutes": float(in_time["recent"].iloc[-1]) if len(in_time) else None,
        "steps_to_target": int(reached["step"].iloc[0]) if len(reached) else None,
        "minutes_to_target": float(reached["minutes"].iloc[0]) if len(reached) else None,
        "steps": len(steps),
        "minutes": float(steps["minutes"].iloc[-1]),
        "after": dict(evaluations),
        "validation": {
            key: evals[key].tolist() for key in ("step", "minutes", "accuracy", "accuracy_low", "accuracy_high")
        },
        "curves": {
            "step": steps["step"].tolist(),
            "seconds": (steps["minutes"] * 60).tolist(),
            **{name: numbers(steps[column]) for name, column in CURVES.items() if column in steps},
        },
        **origin(run.manifest),
    }


def sample_traces(run: Run) -> list[dict[str, Any]]:
    """One completion of each of four steps from first to last, drawn blindly (the seed and step decide)."""
    last = int(run.steps["step"].iloc[-1])
    sampled = []
    for step in sorted({round(1 + part * (last - 1) / 3) for part in range(4)}):
        columns = ["prompt", "text", "answer", "gold", "reward", "finish", "completion_tokens"]
        traces = read_traces(run.folder / "traces" / f"step-{step:06d}.parquet", columns)
        row = traces.iloc[random.Random(f"{run.seed}/{step}").randrange(len(traces))].to_dict()
        row |= {"prompt": json.loads(row["prompt"]), "answer": None if pd.isna(row["answer"]) else row["answer"]}
        sampled.append({"seed": run.seed, "step": step, **row})
    return sampled


def draw(runs: Sequence[Run], path: Path) -> None:
    """Sampled reward and greedy validation accuracy against steps and against minutes, each seed a line."""
    validation = runs[0].manifest["env"]["sizes"]["validation"]
    with matplotlib.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for ax, x in zip(axes, ("step", "minutes"), strict=True):
            for place, run in enumerate(runs):
                _draw_run(ax, run, x, place, (place - (len(runs) - 1) / 2))
            ax.axhline(TARGET, color="0.35", linewidth=1.2, linestyle="--", zorder=1)
            ax.grid(axis="y", color="0.92")
            ax.set_axisbelow(True)
        axes[0].text(
            0.995,
            TARGET - 0.012,
            f"{TARGET}",
            transform=axes[0].get_yaxis_transform(),
            ha="right",
            va="top",
            color="0.35",
        )
        axes[0].set(xlabel="step", ylabel="share of right answers", ylim=(0, 1.03))
        axes[1].set(xlabel="minutes of training (rollouts and updates)")
        axes[1].axvline(MINUTES, color="0.35", linewidth=1.2, linestyle=":", zorder=1)
        axes[1].text(
            MINUTES, 0.02, f"{MINUTES:g} minutes ", transform=axes[1].get_xaxis_transform(), ha="right", color="0.35"
        )
        axes[1].set_xlim(right=max(MINUTES * 1.03, axes[1].get_xlim()[1]))
        lines, labels = axes[0].get_legend_handles_labels()
        figure.legend(lines, labels, loc="outside upper center", ncols=len(labels), frameon=False)
        figure.supxlabel(
            f"Lines: sampled reward of each step. Markers: greedy accuracy on {validation} validation problems, "
            "95 % intervals.",
            fontsize=9,
            color="0.35",
        )
        figure.savefig(path, dpi=150)


def _draw_run(ax: Axes, run: Run, x: str, place: int, shift: float) -> None:
    colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
    ax.plot(run.steps[x], run.steps["reward"], color=colour, linewidth=1.4)
    evals = run.evaluations
    spread = np.abs(evals[["accuracy_low", "accuracy_high"]].to_numpy().T - evals["accuracy"].to_numpy())
    ax.errorbar(
        evals[x] + shift * 0.008 * run.steps[x].iloc[-1],  # side by side, since seeds are evaluated at the same steps
        evals["accuracy"],
        yerr=spread,
        fmt=marker,
        color=colour,
        markeredgecolor="white",
        markersize=7,
        ecolor=(*matplotlib.colors.to_rgb(colour), 0.45),
        elinewidth=1.2,
        zorder=3,
        label=f"seed {run.seed}",
    )


def tables(results: Mapping[str, Any]) -> str:
    """The README's tables, in Markdown."""
    lines = [
        f"| seed | reward, step 1 | reward at {MINUTES:g} min | minutes to {TARGET} | reward, last {WINDOW} steps "
        "| steps | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for seed, run in results["seeds"].items():
        cells = (
            seed,
            number(run["reward_first_step"]),
            number(run["reward_at_15_minutes"]),
            number(run["minutes_to_target"], 1),
            number(run["reward_last_steps"]),
            str(run["steps"]),
            number(run["minutes"], 1),
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| greedy accuracy | one digit | two digits | tokens (one digit) | cut off (one digit) |",
        "|---|---|---|---|---|",
    ]
    rows = {"untrained": results["base"], "untrained, up to 256 tokens": results["base_long"]}
    rows |= {f"seed {seed}": run["after"] for seed, run in results["seeds"].items()}
    for who, found in rows.items():
        one = found.get("one_digit", {})
        row = (
            who,
            accuracy(found.get("one_digit")),
            accuracy(found.get("two_digits")),
            number(one.get("mean_length"), 1),
            number(one.get("clipped_ratio")),
        )
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def number(value: float | None, digits: int = 2) -> str:
    """A cell of a table; a dash where there is nothing."""
    return "–" if value is None else f"{value:.{digits}f}"


def accuracy(found: Mapping[str, Any] | None) -> str:
    """``0.53 (0.34 to 0.69), n = 32``."""
    if found is None:
        return "–"
    value = Estimate(found["mean"], found["low"], found["high"], found["n"])
    return f"{value.mean:.2f} ({value.low:.2f} to {value.high:.2f}), n = {value.n}"


def main(sweep: Path, out: Path) -> dict[str, Any]:
    """Read FOLDER, write the files into ``out``, print the tables; returns what is in results.json."""
    runs = read_runs(sweep)
    evaluations = sweep / "eval"
    results: dict[str, Any] = {
        "target": TARGET,
        "reward_window_steps": WINDOW,
        "base": read_evaluations(evaluations / "base"),
        "base_long": read_evaluations(evaluations / "base_long"),
        "seeds": {str(run.seed): describe(run, read_evaluations(evaluations / run.folder.name)) for run in runs},
    }
    if len(results["seeds"]) < len(runs):
        raise ValueError(f"{sweep} holds two runs with the same seed ({[run.seed for run in runs]}); remove one")
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(to_json(results), encoding="utf-8")
    sampled = [trace for run in runs for trace in sample_traces(run)]
    lines = [json.dumps(trace, ensure_ascii=False, allow_nan=False) + "\n" for trace in sampled]
    (out / "traces-sample.jsonl").write_text("".join(lines), encoding="utf-8")
    for run in runs:
        (out / f"metrics-seed{run.seed}.jsonl").write_bytes((run.folder / "metrics.jsonl").read_bytes())
    draw(runs, out / "curves.png")
    print(tables(results))
    return results


if __name__ == "__main__":
    main(*from_command_line(__doc__, HERE))
