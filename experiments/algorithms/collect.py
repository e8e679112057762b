"""python experiments/algorithms/collect.py FOLDER [FOLDER ...] [--out FOLDER]

Reads the sweeps in FOLDER (each holds run folders of +experiment=algorithms); writes results.json, traces-sample.jsonl
and curves.png beside this file (or into --out), and prints the table of the README. Runs that aren't finished are
left out.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from hydra import compose, initialize_config_dir
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from rlreason.analysis.load import read_metrics, read_traces
from rlreason.analysis.study import numbers, origin, to_json
from rlreason.config import CONF, register

HERE = Path(__file__).resolve().parent
WINDOW = 3  # steps that the sampled accuracy is averaged over, up to and including the one that it is given for
TARGET = 0.5
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # two-sided 95 % quantiles of Student's t, by the number of seeds
CURVES = (
    "accuracy",
    "reward",
    "num_tokens",
    "completions/mean_length",
    "entropy",
    "frac_rows_skipped",
    "step_time",
    "value/explained_variance",
)
REFERENCE = "grpo"


@dataclass(frozen=True)
class Run:
    """``steps`` has a row a training step; ``recent`` is the sampled accuracy averaged over ``WINDOW`` steps, and
    ``num_tokens`` what had been sampled by then."""

    name: str
    seed: int
    folder: Path
    manifest: Mapping[str, Any]
    steps: pd.DataFrame
    held_out: float


def algorithms() -> dict[str, Any]:
    """The resolved ``algo`` of the experiment, for every algorithm of ``conf/algo``."""
    register()
    names = sorted(path.stem for path in (CONF / "algo").glob("*.yaml") if path.stem != "base")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        configs = {name: compose("train", overrides=["+experiment=algorithms", f"algo={name}"]) for name in names}
    return {name: OmegaConf.to_container(cfg, resolve=True)["algo"] for name, cfg in configs.items()}  # type: ignore[index, call-overload]


def read_run(folder: Path, known: Mapping[str, Any]) -> Run | None:
    """A run folder; None if it isn't finished. Raises ValueError if its algorithm is none of ``known``."""
    if not (folder / "summary.json").is_file():
        return None
    config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    assert isinstance(config, dict)
    name = next((name for name, algo in known.items() if algo == config["algo"]), None)
    if name is None:
        raise ValueError(f"{folder}: its algorithm is none of conf/algo as +experiment=algorithms has them now")
    if config.get("reward"):
        name += f", {config['reward']['rule']['_target_'].rpartition('.')[2].lower()} reward"
    metrics = read_metrics(folder)
    steps = metrics[metrics["step"] > 0].reset_index(drop=True)
    steps["recent"] = steps["accuracy"].rolling(WINDOW, min_periods=1).mean()
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    held_out = metrics[f"eval/{manifest['env']['name']}/accuracy"].dropna().iloc[-1]
    return Run(name, int(manifest["seed"]), folder, manifest, steps, float(held_out))


def at_tokens(run: Run, budget: float) -> float:
    """``recent`` when so many tokens had been sampled, between two steps on the line that joins them."""
    return float(np.interp(budget, run.steps["num_tokens"], run.steps["recent"]))


def on_the_way(run: Run, budget: float) -> float:
    """The sampled accuracy averaged over the first ``budget`` tokens: who learns sooner has more of it."""
    end = np.minimum(run.steps["num_tokens"].to_numpy(), budget)
    width = np.diff(end, prepend=0.0)
    return float((run.steps["accuracy"].to_numpy() * width).sum() / budget)


def tokens_to_target(run: Run) -> float | None:
    """Sampled tokens until ``recent`` reached ``TARGET``; None if it never did."""
    reached = run.steps[run.steps["recent"] >= TARGET]
    return float(reached["num_tokens"].iloc[0]) if len(reached) else None


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean over seeds and its 95 % interval by Student's t; not a number for one seed."""
    mean = fmean(values)
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = STUDENT[len(values)] * stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def describe(runs: Sequence[Run], budget: float) -> dict[str, Any]:
    """What results.json says about one algorithm."""
    measures = {"accuracy_at_budget": at_tokens, "accuracy_on_the_way": on_the_way}
    found = {name: [measure(run, budget) for run in runs] for name, measure in measures.items()}
    return {
        **{
            name: dict(zip(("mean", "low", "high"), interval(values), strict=True)) | {"seeds": values}
            for name, values in found.items()
        },
        "tokens_to_target": [tokens_to_target(run) for run in runs],
        "held_out": [run.held_out for run in runs],
        "mean_length": fmean(run.steps["completions/mean_length"].iloc[-WINDOW:].mean() for run in runs),
        "seconds_a_step": fmean(run.steps["step_time"].mean() for run in runs),
        "seeds": {
            str(run.seed): {name: numbers(run.steps[name]) for name in CURVES if name in run.steps} for run in runs
        },
    }


def table(results: Mapping[str, Any]) -> str:
    """The README's table, in Markdown, best first."""
    budget = results["budget_tokens"] / 1000
    lines = [
        f"| algorithm | accuracy at {budget:.0f},000 tokens | seeds | on the way there | thousand tokens to {TARGET} "
        "| held out, greedy | length | s/step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in results["algorithms"].items():
        at = found["accuracy_at_budget"]
        reached = [f"{tokens / 1000:.0f}" if tokens is not None else "–" for tokens in found["tokens_to_target"]]
        cells = (
            name,
            _cell(at),
            ", ".join(f"{value:.2f}" for value in at["seeds"]),
            _cell(found["accuracy_on_the_way"]),
            ", ".join(reached),
            ", ".join(f"{value:.2f}" for value in found["held_out"]),
            f"{found['mean_length']:.0f}",
            f"{found['seconds_a_step']:.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(found: Mapping[str, Any]) -> str:
    """``0.46 (0.31 to 0.61)``."""
    if found["low"] is None:
        return f"{found['mean']:.2f}"
    return f"{found['mean']:.2f} ({max(0.0, found['low']):.2f} to {min(1.0, found['high']):.2f})"


def draw(runs: Mapping[str, Sequence[Run]], results: Mapping[str, Any], path: Path) -> None:
    """Left: accuracy at equal tokens, with intervals. Right: every seed's curve, beside the mean of ``REFERENCE``."""
    columns = 4
    lines = -(-len(runs) // columns)
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(13, 2.3 * lines), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=(1, 2.2))
        _draw_intervals(left.subplots(), results)
        grid = right.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for ax in grid.flat[len(runs) :]:
            ax.set_axis_off()
        for ax, (name, own) in zip(grid.flat, runs.items(), strict=False):
            for run in runs.get(REFERENCE, ()):
                ax.plot(run.steps["num_tokens"] / 1000, run.steps["recent"], color="0.8", linewidth=1)
            for run in own:
                ax.plot(run.steps["num_tokens"] / 1000, run.steps["recent"], color="#0072B2", linewidth=1.3)
            ax.axvline(results["budget_tokens"] / 1000, color="0.5", linewidth=0.8, linestyle=":")
            ax.set_title(name, fontsize=9)
            ax.set(ylim=(0, 1))
            ax.grid(axis="y", color="0.92")
            ax.set_axisbelow(True)
        right.supxlabel(f"thousand sampled tokens (grey: {REFERENCE})", fontsize=9)
        right.supylabel(f"sampled accuracy, mean of {WINDOW} steps", fontsize=9)
        figure.savefig(path, dpi=150)


def _draw_intervals(ax: Axes, results: Mapping[str, Any]) -> None:
    found = list(results["algorithms"].items())[::-1]
    for place, (_, one) in enumerate(found):
        at = one["accuracy_at_budget"]
        if at["low"] is not None:
            ax.plot([at["low"], at["high"]], [place, place], color="#0072B2", linewidth=1.2, alpha=0.5)
        ax.plot(at["seeds"], [place] * len(at["seeds"]), "o", color="#0072B2", markersize=3.5, alpha=0.6)
        ax.plot([at["mean"]], [place], "D", color="#D55E00", markersize=6, markeredgecolor="white")
    ax.set_yticks(range(len(found)), [name for name, _ in found])
    ax.set(xlim=(0, 1), xlabel=f"sampled accuracy at {results['budget_tokens']:,.0f} tokens")
    ax.set_title("mean, seeds, 95 % interval of the mean", fontsize=9)
    ax.grid(axis="x", color="0.92")
    ax.set_axisbelow(True)


def sample_traces(run: Run) -> list[dict[str, Any]]:
    """Two completions of the last step, drawn blindly (algorithm and seed decide)."""
    last = int(run.steps["step"].iloc[-1])
    columns = ["prompt", "text", "answer", "gold", "reward", "correct", "finish", "completion_tokens"]
    traces = read_traces(run.folder / "traces" / f"step-{last:06d}.parquet", columns)
    sampled = []
    for row in random.Random(f"{run.name}/{run.seed}").sample(range(len(traces)), 2):
        trace = {name: None if pd.isna(value) else value for name, value in traces.iloc[row].to_dict().items()}
        trace |= {"prompt": json.loads(str(trace["prompt"]))[-1]["content"], "correct": bool(trace["correct"])}
        sampled.append({"algorithm": run.name, "seed": run.seed, "step": last, **trace})
    return sampled


def main(sweeps: Sequence[Path], out: Path) -> dict[str, Any]:
    """Read the sweeps, write the files into ``out``, print the table; returns what is in results.json."""
    known = algorithms()
    by_name: dict[str, list[Run]] = defaultdict(list)
    for file in sorted(file for sweep in sweeps for file in sweep.glob("*/config.yaml")):
        run = read_run(file.parent, known)
        if run is not None:
            by_name[run.name].append(run)
    if not by_name:
        raise FileNotFoundError(f"no finished run in {', '.join(map(str, sweeps))}")
    for runs in by_name.values():
        runs.sort(key=lambda run: run.seed)
    # what every run has sampled at least, so that nothing is extrapolated
    budget = min(float(run.steps["num_tokens"].iloc[-1]) for runs in by_name.values() for run in runs)
    budget = math.floor(budget / 1000) * 1000 or budget
    found = {name: describe(runs, budget) for name, runs in by_name.items()}
    best_first = sorted(found, key=lambda name: -found[name]["accuracy_at_budget"]["mean"])
    origins = [origin(run.manifest) for runs in by_name.values() for run in runs]
    results = {
        "budget_tokens": budget,
        "window_steps": WINDOW,
        "target": TARGET,
        "algorithms": {name: _without_nan(found[name]) for name in best_first},
        **{key: origins[0][key] for key in ("machine", "packages", "model", "data")},
        "git": sorted({one["git"]["commit"] for one in origins}),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(to_json(results), encoding="utf-8")
    lines = [
        json.dumps(trace, ensure_ascii=False, allow_nan=False) + "\n"
        for name in best_first
        for trace in sample_traces(by_name[name][0])
    ]
    (out / "traces-sample.jsonl").write_text("".join(lines), encoding="utf-8")
    draw({name: by_name[name] for name in best_first}, results, out / "curves.png")
    print(table(results))
    return results


def _without_nan(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_nan(value) for key, value in node.items()}
    return None if isinstance(node, float) and math.isnan(node) else node


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", type=Path, nargs="+", help="folders under multirun/")
    parser.add_argument("--out", type=Path, default=HERE, help="where the results go (default: beside this script)")
    arguments = parser.parse_args()
    main(arguments.sweeps, arguments.out)
