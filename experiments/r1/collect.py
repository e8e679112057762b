"""python experiments/r1/collect.py FOLDER [--out FOLDER]

Reads the pipeline that run.sh left in FOLDER; writes results.json, metrics-<stage>.jsonl, traces-sample.jsonl and
stages.png beside this file (or into --out), and prints the tables of the README.

The sampled traces hold four problem texts of GSM8K (Cobbe et al. 2021, MIT licence,
https://github.com/openai/grade-school-math), and neither its solutions nor anything else of it.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from rlreason.analysis.compare import mean_difference
from rlreason.analysis.load import read_traces
from rlreason.analysis.study import from_command_line, origin, to_json
from rlreason.stats import estimate

HERE = Path(__file__).resolve().parent
PUBLISHED = 0.024  # the best figure for this model that we know of
TRACES = 4


def evaluated(folder: Path) -> dict[str, Any]:
    """Accuracy on the test set with its interval, the count behind it, and the mean length of the thought in tokens,
    which is the length of the completion times the thought's share of its characters; 0 where there is none."""
    traces = read_traces(folder, ["correct", "text", "completion_tokens", "finish"])
    thoughts = [text.partition("<think>")[2].partition("</think>")[0] for text in traces["text"]]
    share = [len(thought) / max(1, len(text)) for thought, text in zip(thoughts, traces["text"], strict=True)]
    return {
        "accuracy": asdict(estimate(traces["correct"].astype(float))),
        "right": int(traces["correct"].sum()),
        "thought": asdict(estimate(traces["completion_tokens"] * share)),
        "cut_off": float((traces["finish"] == "length").mean()),
    }


def gained(before: Path, after: Path) -> dict[str, Any]:
    """The change in accuracy from one stage to the next, paired by problem, with its interval."""
    first, second = (
        read_traces(folder, ["group", "correct"]).set_index("group")["correct"] for folder in (before, after)
    )
    return asdict(mean_difference(second.astype(float) - first.astype(float), of_shares=True))


def minutes(attempts: list[dict[str, Any]]) -> float:
    """How long a stage took, its starts and restarts together."""
    ends = [(datetime.fromisoformat(a["began"]), datetime.fromisoformat(a["ended"])) for a in attempts if a["ended"]]
    return sum((end - begin).total_seconds() for begin, end in ends) / 60


def sampled(folder: Path, stages: list[str]) -> list[dict[str, Any]]:
    """The same few test problems after each stage, drawn blindly."""
    problems = sorted(read_traces(folder / "final" / "test" / stages[0], ["group"])["group"])
    drawn = random.Random("r1 traces").sample(problems, TRACES)
    found = []
    for stage in stages:
        columns = ["group", "problem", "prompt", "text", "answer", "gold", "correct", "completion_tokens"]
        traces = read_traces(folder / "final" / "test" / stage, columns)
        chosen = traces[traces["group"].isin(drawn)].astype(object)
        for row in chosen.where(chosen.notna(), None).to_dict("records"):
            question = json.loads(row.pop("prompt"))[-1]["content"]
            correct = bool(row.pop("correct"))
            found.append({"stage": stage, **row, "question": question, "correct": correct})
    return found


def table(results: Mapping[str, Any]) -> str:
    """The README's tables, in Markdown; accuracies in per cent with their intervals."""
    lines = ["| after | right of 1,319, % | right | change, points | thought, tokens | cut off, % | minutes |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for name, found in results["test"].items():
        change = results["gained"].get(name)
        spent = results["stages"].get(name, {}).get("minutes")
        cells = (name, _percent(found["accuracy"]), str(found["right"]), _percent(change) if change else "",
                 f"{found['thought']['mean']:.0f}", f"{100 * found['cut_off']:.0f}",
                 f"{spent:.0f}" if spent is not None else "")  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(found: Mapping[str, float]) -> str:
    return f"{100 * found['mean']:.1f} ({100 * found['low']:.1f} to {100 * found['high']:.1f})"


def main(folder: Path, out: Path) -> dict[str, Any]:
    """Write the study's files into ``out`` and return what results.json holds."""
    lineage = json.loads((folder / "lineage.json").read_text(encoding="utf-8"))["stages"]
    tested = sorted((folder / "final" / "test").iterdir(), key=lambda path: ["start", *lineage].index(path.name))
    results: dict[str, Any] = {
        "published": PUBLISHED,
        "test": {path.name: evaluated(path) for path in tested},
        "gained": {after.name: gained(before, after) for before, after in pairwise(tested)},
        "stages": {
            name: {
                "job": entry["job"],
                "minutes": minutes(entry["attempts"]),
                "selection": entry.get("selection"),
                **origin(json.loads((folder / name / "manifest.json").read_text(encoding="utf-8"))),
            }
            for name, entry in lineage.items()
        },
        "rejection": json.loads((folder / "rejection" / "summary.json").read_text(encoding="utf-8")),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(to_json(results), encoding="utf-8")
    for name in lineage:
        shutil.copyfile(folder / name / "metrics.jsonl", out / f"metrics-{name}.jsonl")
    lines = [json.dumps(row, ensure_ascii=False) for row in sampled(folder, [path.name for path in tested])]
    (out / "traces-sample.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if (folder / "stages.png").is_file():
        shutil.copyfile(folder / "stages.png", out / "stages.png")
    print(table(results))
    return results


if __name__ == "__main__":
    main(*from_command_line(__doc__, HERE))
