"""python experiments/rlhf_overoptimisation/collect.py FOLDER [--out FOLDER]

Reads what run.sh left in FOLDER; writes results.json, metrics-<run>.jsonl, traces-sample.jsonl, audit.md and curves.png
beside this file (or into --out), and prints the tables of the README. A run that is not there is left out.
"""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rlreason.alarm import COLUMNS, told
from rlreason.analysis.load import read_metrics, read_traces
from rlreason.analysis.overoptimisation import (
    BestOfNLaw,
    Fit,
    RLLaw,
    best_of_n,
    best_of_n_kl,
    fit,
    history_of,
    parted,
    samples_of,
)
from rlreason.analysis.study import from_command_line, numbers, origin, to_json
from rlreason.stats import estimate

HERE = Path(__file__).resolve().parent
NS = (1, 2, 4, 8, 16, 32)
KINDS = {  # by the head of a run's name: colour and label
    "free": ("#D55E00", "one reward model, no KL term"),
    "kl": ("#0072B2", "one reward model, KL term"),
    "ensemble": ("#009E73", "the worst of three, no KL term"),
}


def trained(run: Path) -> dict[str, Any]:
    """KL, proxy and gold at each evaluation, what gold has changed by with its interval over problems, the fit of Gao
    et al., and where proxy and gold have parted."""
    files = sorted((run / "traces").glob("eval-validation-*.parquet"))
    history = history_of(pd.concat([read_traces(file, COLUMNS) for file in files]))
    metrics = read_metrics(run)
    kl_name = next(name for name in metrics if name.endswith("/kl") and name.startswith("eval/"))
    kl = metrics.set_index("step")[kl_name].loc[[e.step for e in history]].clip(lower=0)
    changes = np.stack([e.gold - history[0].gold for e in history], axis=1)  # (P, K)
    parting = parted(history)
    summary = {
        "step": [e.step for e in history],
        "kl": numbers(kl),
        "proxy": [float(e.proxy.mean()) for e in history],
        "gold": [float(e.gold.mean()) for e in history],
        "gold_change": [asdict(estimate(column)) for column in changes.T[1:]],
        "best": int(np.argmax([e.gold.mean() for e in history])),
        "parted": told(parting) if parting else None,
        "problems": len(changes),
        "minutes": float(metrics["step_time"].sum() / 60),
    }
    if len(np.unique(kl[kl > 0])) > 1:
        law = fit(RLLaw(), kl.to_numpy(), changes)
        grid = np.linspace(0, float(kl.max()), 60)
        summary["fit"] = described(law)
        summary["fitted"] = {"kl": grid.tolist(), "gold": (law(grid) + summary["gold"][0]).tolist()}
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    return summary | origin(manifest)


def sampled_best(run: Path) -> dict[str, Any]:
    """Best of n of the untrained policy by the same reward model: expected proxy and gold, and the fit."""
    file = next((run / "traces").glob("eval-*.parquet"))
    proxy, gold = samples_of(read_traces(file, ["step", "group", "sample", "segment", "status", "parts"]))
    found = best_of_n(proxy, gold, NS)
    changes = found.gold - found.gold[:, :1]
    return {
        "n": list(NS),
        "kl": [best_of_n_kl(n) for n in NS],
        "proxy": found.proxy.mean(axis=0).tolist(),
        "gold": found.gold.mean(axis=0).tolist(),
        "gold_change": [asdict(estimate(column)) for column in changes.T[1:]],
        "fit": described(fit(BestOfNLaw(), found.kl, changes)),
        "problems": len(proxy),
    }


def described(law: Fit) -> dict[str, Any]:
    """A fit for JSON; what is infinite is None."""
    values = {name: asdict(getattr(law, name)) for name in ("a", "b", "peak_kl", "peak_gold")}
    return {
        name: {key: value if math.isfinite(value) else None for key, value in found.items()}
        for name, found in values.items()
    }


def reward_model(run: Path) -> dict[str, Any]:
    """What a reward model scores on its held-out pairs."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    keys = ("sizes", "flipped", "noise")
    return {
        "accuracy": summary["accuracy"]["all"],
        "ece": summary["calibration"]["ece"],
        "length_bias": summary["length_bias"],
        "pairs": {key: manifest["env"][key] for key in keys if key in manifest["env"]},
    }


def sampled(folder: Path, runs: list[str]) -> list[dict[str, Any]]:
    """The last evaluation's notes on two problems, drawn blindly, of each run; and the same before training."""
    found = []
    for name in runs:
        files = sorted((folder / name / "traces").glob("eval-validation-*.parquet"))
        for file in (files[0], files[-1]):
            traces = read_traces(file, ["step", "problem", "text", "parts", "finish"])
            for place in random.Random("notes").sample(range(len(traces)), 2):
                row = traces.iloc[place]
                parts = {key: json.loads(row["parts"])[key] for key in ("proxy", "gold")}
                found.append(
                    {"run": name, "step": int(row["step"]), "problem": row["problem"], "text": row["text"]} | parts
                )
    return found


def table(results: Mapping[str, Any]) -> str:
    """The README's tables, in Markdown."""
    lines = [
        "| run | KL at the end, nats | proxy, first to last | gold: first, best (step), last | its fitted peak, nats "
        "| parted |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in results["runs"].items():
        gold, best = found["gold"], found["best"]
        change = f"{gold[0]:.3f}, {gold[best]:.3f} ({found['step'][best]}), {gold[-1]:.3f}"
        cells = (name, f"{found['kl'][-1]:.1f}", f"{found['proxy'][0]:.2f} to {found['proxy'][-1]:.2f}", change,
                 _peak(found.get("fit")), found["parted"] or "no")  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| reward model | held-out pairs right | longer text preferred: labels, model | pairs |",
        "|---|---|---|---|",
    ]
    for name, found in results["reward_models"].items():
        accuracy, bias = found["accuracy"], found["length_bias"]
        cells = (name, f"{accuracy['mean']:.3f} ({accuracy['low']:.3f} to {accuracy['high']:.3f})",
                 f"{bias['chosen_longer']:.2f}, {bias['judge_prefers_longer']:.2f}", str(accuracy["n"]))  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    if best_of := results.get("best_of_n"):
        lines += ["", "| best of n | KL, nats | proxy | gold |", "|---|---|---|---|"]
        for n, kl, proxy, gold in zip(best_of["n"], best_of["kl"], best_of["proxy"], best_of["gold"], strict=True):
            lines.append(f"| {n} | {kl:.2f} | {proxy:.2f} | {gold:.3f} |")
    return "\n".join(lines)


def _peak(law: Mapping[str, Any] | None) -> str:
    """Where a fitted law has its best gold, in nats, with its interval; ∞ where gold never falls."""
    if law is None:
        return ""
    value, low, high = (
        "∞" if (found := law["peak_kl"][key]) is None else f"{found:.1f}" for key in ("value", "low", "high")
    )
    return f"{value} ({low} to {high})"


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Proxy and gold against the square root of the KL, a line a run."""
    with matplotlib.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 4), layout="constrained")
        panels = {"proxy": "proxy: the reward model's score", "gold": "gold: the rule"}
        for ax, (part, title) in zip(figure.subplots(1, 2), panels.items(), strict=True):
            for name, found in results["runs"].items():
                colour, label = KINDS[name.partition("-")[0]]
                ax.plot(np.sqrt(found["kl"]), found[part], marker="o", markersize=4, color=colour, label=label)
                if part == "gold" and (law := found.get("fitted")):
                    ax.plot(np.sqrt(law["kl"]), law["gold"], ":", color=colour, label="fit of Gao et al.")
            if best_of := results.get("best_of_n"):
                ax.plot(np.sqrt(best_of["kl"]), best_of[part], "--", color="black", label="best of n, untrained policy")
            ax.set(title=title, xlabel="√KL from the starting model (nats, whole completions)")
            ax.grid(axis="y", color="0.92")
            ax.set_axisbelow(True)
        handles, labels = figure.axes[1].get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        figure.axes[1].legend(once.values(), once, frameon=False, fontsize=9)
        figure.savefig(path, dpi=150)


def main(folder: Path, out: Path) -> dict[str, Any]:
    """Write the study's files into ``out`` and return what results.json holds."""
    finished = sorted(path.parent.name for path in folder.glob("*/summary.json"))
    runs = [name for name in finished if name.partition("-")[0] in KINDS]
    results: dict[str, Any] = {
        "runs": {name: trained(folder / name) for name in runs},
        "reward_models": {name: reward_model(folder / name) for name in finished if name.startswith("rm-")},
    }
    if "best_of_n" in finished:
        results["best_of_n"] = sampled_best(folder / "best_of_n")
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(to_json(results), encoding="utf-8")
    for name in runs:
        shutil.copyfile(folder / name / "metrics.jsonl", out / f"metrics-{name}.jsonl")
    if "audit" in finished:
        shutil.copyfile(folder / "audit" / "audit.md", out / "audit.md")
    lines = [json.dumps(row, ensure_ascii=False) for row in sampled(folder, runs)]
    (out / "traces-sample.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    draw(results, out / "curves.png")
    print(table(results))
    return results


if __name__ == "__main__":
    main(*from_command_line(__doc__, HERE))
