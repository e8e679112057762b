"""python experiments/gsm8k/collect.py FOLDER [--out FOLDER]

Reads what run.sh left in FOLDER; writes results.json, metrics.jsonl, traces-sample.jsonl and curves.png beside this
file (or into --out), and prints the tables of the README. An evaluation that is not there is left out.

The sampled traces hold at most eight problem texts of GSM8K (Cobbe et al. 2021, MIT licence,
https://github.com/openai/grade-school-math), and neither its solutions nor anything else of it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from rlreason.analysis.load import read_metrics, read_traces
from rlreason.analysis.study import from_command_line, numbers, origin, to_json

HERE = Path(__file__).resolve().parent
PROMPTS = {
    "r1": "R1",
    "r1_example": "R1, with a worked example",
    "hash": "`####`",
    "plain": "no instruction",
}
METRICS = ("accuracy", "lenient", "format", "mean_length", "clipped_ratio")
PARTS = {  # of the reward, with colours that colour-blind readers tell apart (Okabe and Ito)
    "rewards/accuracy/mean": ("strict: right, in the format", "#0072B2", "o"),
    "rewards/lenient/mean": ("lenient: last number right", "#009E73", "s"),
    "rewards/format/mean": ("format", "#D55E00", "^"),
}


def read_evaluation(folder: Path) -> dict[str, Any]:
    """Estimates by metric of an evaluation folder, ``env`` (its name) and where it came from."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    name = manifest["env"]["name"]
    found = {metric: summary[key] for metric in METRICS if (key := f"eval/{name}/{metric}") in summary}
    return {"env": name, "split": summary["split"], **found, **origin(manifest)}


def read_training(folder: Path) -> dict[str, Any]:
    """The RL run: first and last step, its curves, and the evaluations before and after."""
    metrics = read_metrics(folder)
    steps = metrics[metrics["step"] > 0]
    if steps.empty:
        raise ValueError(f"{folder} has no training step yet; wait for the run")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    evaluated = metrics[[name for name in metrics if name.startswith("eval/")]].dropna(how="all")
    lengths = [name for name in ("completions/mean_length", "completions/clipped_ratio") if name in steps]
    curves = ["step", "reward", *(part for part in PARTS if part in steps), *lengths, "entropy", "step_time"]
    return {
        "env": manifest["env"]["name"],
        "steps": len(steps),
        "minutes": float(steps["step_time"].sum() / 60),
        "validation_problems": len(read_traces(folder / "traces" / "eval-validation-000000.parquet", ["problem"])),
        "before": evaluated.iloc[0].dropna().to_dict(),
        "after": evaluated.iloc[-1].dropna().to_dict(),
        "curves": {name: numbers(steps[name]) for name in curves if name in steps},
        **origin(manifest),
    }


def sample_traces(folder: Path) -> list[dict[str, Any]]:
    """One greedy completion of each evaluation and two of the first and of the last training step, drawn blindly."""
    sources = [(prompt, folder / "eval" / prompt, 1) for prompt in PROMPTS]
    steps = sorted((folder / "train" / "traces").glob("step-*.parquet"))
    sources += [(f"training, {file.stem}", file, 2) for file in dict.fromkeys((steps[0], steps[-1]))]
    columns = ["problem", "prompt", "text", "answer", "gold", "reward", "correct", "finish", "completion_tokens"]
    sampled: list[dict[str, Any]] = []
    for source, path, count in sources:
        if not path.exists():
            continue
        traces = read_traces(path, columns)
        for row in random.Random(source).sample(range(len(traces)), min(count, len(traces))):
            trace = {name: None if pd.isna(value) else value for name, value in traces.iloc[row].to_dict().items()}
            sampled.append({"source": source, **trace, "prompt": json.loads(str(trace["prompt"]))})
    return sampled


def draw(training: Mapping[str, Any], path: Path) -> None:
    """Reward parts, length and truncation over the training steps."""
    curves = training["curves"]
    with matplotlib.rc_context(
        {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.ymargin": 0.1}
    ):
        figure = Figure(figsize=(12, 3.8), layout="constrained")
        parts, length, cut = figure.subplots(1, 3, gridspec_kw={"wspace": 0.08})
        for name, (label, colour, marker) in PARTS.items():
            if name in curves:
                parts.plot(curves["step"], curves[name], color=colour, marker=marker, markersize=5, label=label)
        parts.set(title="reward parts, sampled", ylabel="mean, 0 to 1", ylim=(0, None))
        parts.legend(frameon=False, fontsize=9)
        length.plot(curves["step"], curves["completions/mean_length"], color="black", marker="o", markersize=5)
        length.set(title="completion length", ylabel="tokens, mean", ylim=(0, None))
        cut.plot(curves["step"], curves["completions/clipped_ratio"], color="black", marker="o", markersize=5)
        cut.set(title="cut off by the length limit", ylabel="share of completions", ylim=(0, 1.02))
        for ax in (parts, length, cut):
            ax.set_xlabel("step")
            ax.xaxis.get_major_locator().set_params(integer=True)
            ax.grid(axis="y", color="0.92")
            ax.set_axisbelow(True)
        figure.savefig(path, dpi=150)


def tables(results: Mapping[str, Any]) -> str:
    """The README's tables, in Markdown. Shares are in per cent."""
    lines = [
        "| prompt | strict, % | lenient, % | format | tokens | cut off, % | problems |",
        "|---|---|---|---|---|---|---|",
    ]
    for prompt, found in results["evaluations"].items():
        shape = f"{found['format']['mean']:.2f}" if "format" in found else "–"
        cells = (
            PROMPTS[prompt],
            percent(found["accuracy"]),
            percent(found["lenient"]),
            shape,
            f"{found['mean_length']['mean']:.0f}",
            f"{100 * found['clipped_ratio']['mean']:.0f}",
            str(found["accuracy"]["n"]),
        )
        lines.append(f"| {' | '.join(cells)} |")
    training = results["training"]
    curves = training["curves"]
    lines += ["", f"| sampled, in training | step 1 | step {curves['step'][-1]} |", "|---|---|---|"]
    rows = {"reward": "reward", **{name: label for name, (label, _, _) in PARTS.items()}}
    rows |= {"completions/mean_length": "tokens", "completions/clipped_ratio": "cut off"}
    for name, label in rows.items():
        if name in curves:
            lines.append(f"| {label} | {curves[name][0]:.3g} | {curves[name][-1]:.3g} |")
    lines += [
        "",
        f"| greedy, {training['validation_problems']} validation problems | before | after |",
        "|---|---|---|",
    ]
    prefix = f"eval/{training['env']}/"
    for metric in METRICS:
        if (key := prefix + metric) in training["before"]:
            before, after = (_with_interval(training[when], key) for when in ("before", "after"))
            lines.append(f"| {metric} | {before} | {after} |")
    return "\n".join(lines)


def percent(found: Mapping[str, float]) -> str:
    """``1.2 (0.7 to 1.8)``."""
    mean, low, high = (100 * found[key] for key in ("mean", "low", "high"))
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


def _with_interval(values: Mapping[str, float], key: str) -> str:
    interval = f" ({values[f'{key}_low']:.3g} to {values[f'{key}_high']:.3g})" if f"{key}_low" in values else ""
    return f"{values[key]:.3g}{interval}"


def main(folder: Path, out: Path) -> dict[str, Any]:
    """Read FOLDER, write the files into ``out``, print the tables; returns what is in results.json."""
    evaluations = {prompt: folder / "eval" / prompt for prompt in PROMPTS}
    results = {
        "evaluations": {
            prompt: read_evaluation(path) for prompt, path in evaluations.items() if (path / "summary.json").is_file()
        },
        "training": read_training(folder / "train"),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(to_json(results), encoding="utf-8")
    (out / "metrics.jsonl").write_bytes((folder / "train" / "metrics.jsonl").read_bytes())
    lines = [json.dumps(trace, ensure_ascii=False, allow_nan=False) + "\n" for trace in sample_traces(folder)]
    (out / "traces-sample.jsonl").write_text("".join(lines), encoding="utf-8")
    draw(results["training"], out / "curves.png")
    print(tables(results))
    return results


if __name__ == "__main__":
    main(*from_command_line(__doc__, HERE))
