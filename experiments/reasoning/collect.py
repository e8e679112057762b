"""python experiments/reasoning/collect.py FOLDER [--out FOLDER]

Reads what run.sh left in FOLDER; writes results.json, metrics-<run>.jsonl, traces-sample.jsonl and curves.png beside
this file (or into --out), and prints the tables of the README. A run that is not there is left out.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from rlreason.analysis.compare import mean_difference
from rlreason.analysis.load import read_metrics, read_traces
from rlreason.analysis.study import from_command_line, numbers, origin, to_json
from rlreason.stats import estimate

HERE = Path(__file__).resolve().parent
HOW = ("thinking", "sampled", "in_one_breath")
BEHAVIOURS = {  # what the cold start has taught to write, and what a sample has if it is written
    "checks": "Let me check",
    "corrects": "Wait, that is wrong",
    "answers_at_once": "I know this.",
}
COLOURS = {"grpo": "#0072B2", "random": "#D55E00"}
LABELS = {"grpo": "GRPO, each seed", "random": "random reward"}


def evaluated(folder: Path) -> dict[str, Any]:
    """Accuracy with its interval each way, mean length, and what the thought adds to a greedy answer, paired by
    problem."""
    found: dict[str, Any] = {}
    right: dict[str, pd.Series[Any]] = {}
    for how in HOW:
        traces = read_traces(folder / how, ["problem", "correct", "completion_tokens"])
        right[how] = traces["correct"].astype(float).groupby(traces["problem"], sort=False).mean()
        found[how] = asdict(estimate(right[how])) | {"mean_length": float(traces["completion_tokens"].mean())}
    found["thought_adds"] = asdict(mean_difference(right["thinking"] - right["in_one_breath"], of_shares=True))
    return found


def gained(folder: Path, run: str) -> dict[str, Any]:
    """What a run adds to its own cold start, greedily and sampled, both with the thought, paired by problem."""
    found: dict[str, Any] = {}
    for how in ("thinking", "sampled"):
        before, after = (
            read_traces(folder / "eval" / who / how, ["problem", "correct"]).groupby("problem")["correct"].mean()
            for who in (f"sft-{run.partition('-')[2]}", run)
        )
        found[how] = asdict(mean_difference((after - before).astype(float), of_shares=True))
    return found


def behaviours(run: Path) -> pd.DataFrame:
    """Of each training step's samples: the share with each behaviour, of right ones, and the mean length."""
    traces = read_traces(run, ["step", "split", "text", "correct", "completion_tokens"])
    traces = traces[traces["split"] == "train"]
    rows = traces.assign(
        **{name: traces["text"].str.contains(mark, regex=False).astype(float) for name, mark in BEHAVIOURS.items()},
        accuracy=traces["correct"].astype(float),
        length=traces["completion_tokens"].astype(float),
    )
    return rows.groupby("step")[[*BEHAVIOURS, "accuracy", "length"]].mean().reset_index()


def trained(run: Path) -> dict[str, Any]:
    """A GRPO run: its curves and where it came from."""
    metrics = read_metrics(run)
    curves = behaviours(run)
    held_out = metrics[["step", "eval/arithmetic/accuracy"]].dropna()
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    steps = metrics[metrics["step"] > 0]
    return {
        "minutes": float(steps["step_time"].sum() / 60),
        "curves": {name: numbers(curves[name]) for name in curves},
        "entropy": numbers(steps["entropy"]) if "entropy" in steps else [],  # of steps with an update
        "held_out": {"step": numbers(held_out["step"]), "accuracy": numbers(held_out["eval/arithmetic/accuracy"])},
        **origin(manifest),
    }


def sampled(folder: Path, runs: Sequence[str]) -> list[dict[str, Any]]:
    """Two thoughts of each run on the same test problems, before and after, drawn blindly by the problem's number."""
    places = random.Random("reasoning traces").sample(range(500), 2)
    found = []
    for who in ["base", *runs]:
        path = folder / "eval" / who / "thinking"
        if path.is_dir():
            traces = read_traces(path, ["problem", "text", "answer", "gold", "correct", "completion_tokens"])
            drawn = [traces.iloc[place] for place in places if place < len(traces)]
            found += [{"who": who, **json.loads(trace.to_json())} for trace in drawn]
    return found


def table(results: Mapping[str, Any]) -> str:
    """The README's table, in Markdown; accuracies in per cent with their intervals."""
    lines = [
        "| model | with its thought, % | sampled so, % | in one breath, % | the thought adds | tokens | problems |",
        "|---|---|---|---|---|---|---|",
    ]
    for who, found in results["evaluations"].items():
        thinking = found["thinking"]
        percent = [_percent(found[name]) for name in (*HOW, "thought_adds")]
        lines.append(f"| {' | '.join([who, *percent, format(thinking['mean_length'], '.0f'), str(thinking['n'])])} |")
    lines += ["", "| run | added to its cold start, greedily, points | sampled, points |", "|---|---|---|"]
    for who, found in results["gained"].items():
        lines.append(f"| {who} | {_percent(found['thinking'])} | {_percent(found['sampled'])} |")
    lines += ["", "| samples in training | step | right | tokens | checks | corrects | answers at once |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for who, found in results["runs"].items():
        curves = found["curves"]
        for label, part in {"first five": slice(0, 5), "last five": slice(-5, None)}.items():
            mean = {name: sum(values[part]) / len(values[part]) for name, values in curves.items()}
            cells = (who, label, f"{mean['accuracy']:.2f}", f"{mean['length']:.0f}",
                     *(f"{mean[name]:.2f}" for name in BEHAVIOURS))  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(found: Mapping[str, float]) -> str:
    return f"{100 * found['mean']:.1f} ({100 * found['low']:.1f} to {100 * found['high']:.1f})"


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Accuracy, length and checking over the steps, a line a run."""
    panels = (
        ("accuracy", "right answers, sampled", "share"),
        ("length", "length of a completion", "tokens, mean"),
        ("checks", "samples with a check", "share"),
    )
    with matplotlib.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(12, 3.6), layout="constrained")
        for ax, (name, title, unit) in zip(figure.subplots(1, len(panels)), panels, strict=True):
            for who, found in results["runs"].items():
                kind = who.partition("-")[0]
                curves = found["curves"]
                smooth = pd.Series(curves[name]).rolling(3, min_periods=1).mean()
                ax.plot(curves["step"], smooth, color=COLOURS[kind], linewidth=1.4, label=LABELS[kind])
            ax.set(title=title, xlabel="step (mean of three)", ylabel=unit, ylim=(0, None))
            ax.grid(axis="y", color="0.92")
            ax.set_axisbelow(True)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        figure.axes[0].legend(once.values(), once, frameon=False, fontsize=9)
        figure.savefig(path, dpi=150)


def main(folder: Path, out: Path) -> dict[str, Any]:
    """Write the study's files into ``out`` and return what results.json holds."""
    runs = sorted(
        p.name for p in folder.iterdir() if (p / "summary.json").is_file() and p.name.startswith(("grpo-", "random-"))
    )
    who = sorted((p.name for p in (folder / "eval").iterdir()), key=lambda name: (name != "base", name))
    results: dict[str, Any] = {
        "evaluations": {name: evaluated(folder / "eval" / name) for name in who},
        "gained": {name: gained(folder, name) for name in runs if name in who},
        "runs": {name: trained(folder / name) for name in runs},
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(to_json(results), encoding="utf-8")
    for name in runs:
        shutil.copyfile(folder / name / "metrics.jsonl", out / f"metrics-{name}.jsonl")
    lines = [json.dumps(row, ensure_ascii=False) for row in sampled(folder, [name for name in who if name != "base"])]
    (out / "traces-sample.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    draw(results, out / "curves.png")
    print(table(results))
    return results


if __name__ == "__main__":
    main(*from_command_line(__doc__, HERE))
