"""python -m experiments.verifiers.collect RUN_FOLDER

Copies of a run on MBPP: metrics.jsonl, and traces-sample.jsonl with six completions drawn blindly besides two that
passed all tests, if there are any. They hold the problem's text, of MBPP (Austin et al. 2021, CC BY 4.0,
https://github.com/google-research/google-research/tree/master/mbpp), and nothing of its solutions.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from rlreason.analysis.load import read_traces

HERE = Path(__file__).resolve().parent
COLUMNS = ["step", "split", "problem", "prompt", "text", "finish", "reward", "correct", "status", "parts"]


def collect(run: Path) -> None:
    """Write both files beside this one."""
    shutil.copy(run / "metrics.jsonl", HERE / "metrics.jsonl")
    traces = read_traces(run)
    passed = traces[traces["correct"] == True]  # noqa: E712  a column that may hold None
    chosen = [*traces.sample(6, random_state=0).to_dict("records"), *passed.head(2).to_dict("records")]
    lines = [json.dumps({key: row[key] for key in COLUMNS if key in row}, default=str) for row in chosen]
    (HERE / "traces-sample.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(traces)} traces, {len(passed)} passed all tests")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m experiments.verifiers.collect RUN_FOLDER")
    collect(Path(sys.argv[1]))
