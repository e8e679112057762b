"""python experiments/reward_model/collect.py FOLDER [--out FOLDER]

Reads what run.sh left in FOLDER; writes results.json, metrics-<run>.jsonl and calibration.png beside this file (or into
--out), and prints the table of the README. A run that is not finished is left out.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from rlreason.analysis.load import read_metrics
from rlreason.analysis.study import from_command_line, origin, to_json

HERE = Path(__file__).resolve().parent
KEPT = ("accuracy", "calibration", "length_bias", "steps", "num_tokens", "training_seconds")


def read_run(run: Path) -> dict[str, Any]:
    """What a run's summary says of its held-out pairs, its losses, and where it came from."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    lines = read_metrics(run)
    (loss,) = [name for name in lines if name.count("/") == 2 and name.startswith("eval/") and name.endswith("/loss")]
    return {
        **{key: summary[key] for key in KEPT},
        "held_out_loss": lines[loss].dropna().tolist(),
        "left_out": {
            "bad rows": sum(manifest["env"].get("bad_rows", {}).values()),
            "too long, train": manifest["env"]["too_long"],
            "too long, held out": manifest["env"]["sizes"]["validation"] - summary["accuracy"]["all"]["n"],
        },
        "examples": manifest["env"]["examples"],
        **origin(manifest),
    }


def table(results: Mapping[str, Any]) -> str:
    """The README's table, in Markdown."""
    lines = [
        "| run | held-out pairs right | pairs | calibration error | longer preferred: labels, model "
        "| right if chosen longer, shorter |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        accuracy, bias = found["accuracy"]["all"], found["length_bias"]
        cells = (
            name,
            f"{accuracy['mean']:.3f} ({accuracy['low']:.3f} to {accuracy['high']:.3f})",
            str(accuracy["n"]),
            f"{found['calibration']['ece']:.3f}",
            f"{bias['chosen_longer']:.2f}, {bias['judge_prefers_longer']:.2f}",
            f"{bias['accuracy_chosen_longer']:.2f}, {bias['accuracy_chosen_shorter']:.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(results: Mapping[str, Any], path: Path) -> None:
    """The share of right choices against the confidence that the model gives them."""
    with matplotlib.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(5, 4.2), layout="constrained")
        ax = figure.subplots()
        ax.plot([0.5, 1], [0.5, 1], color="0.7", linewidth=1)
        for name, found in results.items():
            bins = found["calibration"]["bins"]
            ax.plot(
                [b["confidence"] for b in bins], [b["accuracy"] for b in bins], marker="o", markersize=4, label=name
            )
        ax.set(xlabel="confidence in its choice", ylabel="share right", title="held-out pairs")
        ax.legend(frameon=False, fontsize=9)
        figure.savefig(path, dpi=150)


def main(folder: Path, out: Path) -> dict[str, Any]:
    """Write the study's files into ``out`` and return what results.json holds."""
    runs = sorted(path.parent for path in folder.glob("*/summary.json"))
    results = {run.name: read_run(run) for run in runs}
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(to_json(results), encoding="utf-8")
    for run in runs:
        shutil.copyfile(run / "metrics.jsonl", out / f"metrics-{run.name}.jsonl")
    draw(results, out / "calibration.png")
    print(table(results))
    return results


if __name__ == "__main__":
    main(*from_command_line(__doc__, HERE))
