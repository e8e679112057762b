"""python experiments/thoughts/collect.py REASONING ARITHMETIC FOLDER [--out OUT]

Reads the runs that run.sh was given and what it left in FOLDER; writes results.json, traces-sample.jsonl and curves.png
beside this file (or into OUT), and prints the tables of the README. A run that is not there is left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from rlreason.analysis.behaviours import behaviour_frame
from rlreason.analysis.corrections import correction_frame
from rlreason.analysis.health import early_warnings, health
from rlreason.analysis.lengths import wrong_against_right
from rlreason.analysis.load import read_metrics, read_traces
from rlreason.analysis.repetition import repetition_frame
from rlreason.analysis.study import numbers, origin, to_json
from rlreason.analysis.surprise import moves, surprises

HERE = Path(__file__).resolve().parent
ENDS = {"first five steps": slice(0, 5), "last five steps": slice(-5, None)}
COLOURS = {"reasoning": "#0072B2", "arithmetic": "#D55E00"}


def by_step(traces: pd.DataFrame) -> pd.DataFrame:
    """Of each training step's samples: shares right, with each behaviour and ending in a loop; mean length."""
    rows = (behaviour_frame(traces) > 0).astype(float)
    rows["right"] = traces["correct"].astype(float)
    rows["tokens"] = traces["completion_tokens"].astype(float)
    rows["loops"] = (repetition_frame(traces)["loop_period"] > 0).astype(float)
    return rows.groupby(traces["step"]).mean()


def read(run: Path) -> dict[str, Any]:
    """What a GRPO run's traces say of its beginning and its end."""
    metrics, everything = read_metrics(run), read_traces(run)
    traces = everything[(everything["split"] == "train") & (everything["segment"] == 0)]
    curves = by_step(traces)
    late = traces[traces["step"].isin(curves.index[-5:])]
    gap = wrong_against_right(late)
    steps = correction_frame(traces)
    found: dict[str, Any] = {
        "curves": {"step": curves.index.tolist()} | {name: numbers(curves[name]) for name in curves},
        "ends": {name: numbers_of(curves.iloc[part].mean()) for name, part in ENDS.items()},
        "rewritten_steps": {name[5:]: int(steps[name].sum()) for name in steps if name.startswith("step_")},
        "wrong_longer_by": None if gap is None else asdict(gap.difference),
        "warnings": [asdict(warning) for warning in early_warnings(health(metrics, everything))],
        **origin(json.loads((run / "manifest.json").read_text(encoding="utf-8"))),
    }
    known = traces[traces["ref_logp"].notna()]
    if len(known):
        sums = surprises(known)
        top = moves(known, 1).iloc[0]
        at = sums["mean"].dropna()
        found["surprise"] = {
            "steps": sorted({int(step) for step in known["step"]}),
            "mean_nats_a_token": float(at.mean()),
            "most_surprising": {
                name: top[name].item() if hasattr(top[name], "item") else top[name]
                for name in ("step", "problem", "text", "tokens", "sum", "ref_sum", "peak")
            },
        }
    return found


def numbers_of(row: pd.Series[float]) -> dict[str, float]:
    return {str(name): float(value) for name, value in row.items()}


def probed(folder: Path) -> dict[str, Any]:
    """Answers after a changed thought."""
    effects = json.loads((folder / "probe.json").read_text(encoding="utf-8"))
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return {"thoughts": summary["thoughts"], "area_over_curve": summary["area_over_curve"], "effects": effects}


def table(results: Mapping[str, Any]) -> str:
    """The README's tables, in Markdown."""
    names = [name for name in _seen(results) if name != "tokens"]
    lines = [f"| run | samples of the | tokens | {' | '.join(name.replace('_', ' ') for name in names)} |"]
    lines += ["|---" * (len(names) + 3) + "|"]
    for who, found in results["runs"].items():
        for end, row in found["ends"].items():
            lines.append(f"| {who} | {end} | {row['tokens']:.0f} | {' | '.join(f'{row[n]:.2f}' for n in names)} |")
    lines += ["", "| run | steps written again: right to right | wrong to wrong | wrong to right | right to wrong |"]
    lines += ["|---|---|---|---|---|"]
    for who, found in results["runs"].items():
        steps = found["rewritten_steps"]
        kinds = ("right_right", "wrong_wrong", "wrong_right", "right_wrong")
        lines.append(f"| {who} | {' | '.join(str(steps[kind]) for kind in kinds)} |")
    if results["probes"]:
        shown = _shown(results["probes"].values())
        lines += [
            "",
            f"| thought, right of {next(iter(results['probes'].values()))['thoughts']}, % | {' | '.join(shown)} |",
        ]
        lines += ["|---" * (len(shown) + 1) + "|"]
        for who, found in results["probes"].items():
            right = {effect["name"]: effect["accuracy"] for effect in found["effects"]}
            lines.append(f"| {who} | {' | '.join(_percent(right.get(name)) for name in shown)} |")
    return "\n".join(lines)


def _seen(results: Mapping[str, Any]) -> list[str]:
    """The curves that are not 0 throughout."""
    runs = [found["curves"] for found in results["runs"].values()]
    return [name for name in runs[0] if name != "step" and any(any(curves[name]) for curves in runs)]


def _shown(probes: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(effect["name"] for found in probes for effect in found["effects"]))


def _percent(found: Mapping[str, float] | None) -> str:
    return "" if found is None else f"{100 * found['mean']:.0f} ({100 * found['low']:.0f} to {100 * found['high']:.0f})"


def draw(results: Mapping[str, Any], path: Path) -> None:
    """What became rarer and what more frequent, a line a run."""
    panels, across = _seen(results), 3
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(12, 2.6 * -(-len(panels) // across)), layout="constrained")
        axes = figure.subplots(-(-len(panels) // across), across, squeeze=False).flat
        for ax, name in zip(axes, panels, strict=False):
            for who, found in results["runs"].items():
                kind = who.partition("/")[0]
                smooth = pd.Series(found["curves"][name], dtype=float).rolling(3, min_periods=1).mean()
                ax.plot(found["curves"]["step"], smooth, color=COLOURS[kind], linewidth=1.3, label=kind)
            ax.set(title=name.replace("_", " "), ylim=(0, None), xlabel="step")
            ax.grid(axis="y", color="0.92")
            ax.set_axisbelow(True)
        for ax in list(figure.axes)[len(panels) :]:
            ax.set_axis_off()
        handles, labels = figure.axes[0].get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        figure.axes[0].legend(once.values(), once, frameon=False)
        figure.savefig(path, dpi=150)


def main(reasoning: Path, arithmetic: Path, folder: Path, out: Path) -> dict[str, Any]:
    """Write the study's files into ``out`` and return what results.json holds."""
    runs = {f"reasoning/{run.name}": run for run in sorted(reasoning.glob("grpo-*"))}
    for run in sorted(arithmetic.iterdir()):
        if (run / "config.yaml").is_file() and "GroupRelative" in (run / "config.yaml").read_text(encoding="utf-8"):
            runs[f"arithmetic/{run.name.partition('-')[0]}"] = run
    finished = {name: run for name, run in runs.items() if (run / "summary.json").is_file()}
    results: dict[str, Any] = {
        "runs": {name: read(run) for name, run in finished.items()},
        "probes": {
            path.name: probed(path) for path in sorted((folder / "probe").glob("*")) if (path / "probe.json").is_file()
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(to_json(results), encoding="utf-8")
    draw(results, out / "curves.png")
    print(table(results))
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("reasoning", "arithmetic", "folder"):
        parser.add_argument(name, type=Path, help=f"{name.upper()} as given to run.sh")
    parser.add_argument("--out", type=Path, default=HERE, help="where the results go (default: beside this script)")
    main(**vars(parser.parse_args()))
