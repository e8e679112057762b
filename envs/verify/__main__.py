"""``python -m envs.verify score FILE.jsonl``: how good a verifier is on labelled answers, and how fast.

Rows are ``{"id", "gold", "completion" or "prediction", "expected"}``: ``completion`` is a whole answer text,
``prediction`` the bare answer; ``"finish": "length"`` marks a completion that was cut off. Any class with the
``Verifier`` protocol can be put under it: ``--verifier path.to.Class``.

Left out: choosing which rows to trust. Labels are taken as they are.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.jsonl import json_lines, malformed
from envs.verify.verdict import Verdict, check_gold
from envs.verify.verifier import Item, MathVerifier, Verifier

_EXAMPLE = r'{"id": "1", "gold": "1/2", "completion": "... \\boxed{0.5}", "expected": true}'
_LATENCIES = 300
"""So many rows, evenly spread, are checked one by one for p50 and p99."""


@dataclass(frozen=True)
class Row:
    """A labelled answer."""

    id: str
    item: Item
    expected: bool


def read_rows(path: Path) -> list[Row]:
    """The labelled rows of a file. Raises FileNotFoundError, and ValueError naming file and line for a bad row or a
    right answer that can't be read."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    rows = []
    for where, row in json_lines(path, path.read_bytes(), _EXAMPLE):
        if not isinstance(row, dict):
            raise malformed(where, "this is not a JSON object", _EXAMPLE)
        if ("completion" in row) == ("prediction" in row):
            raise malformed(where, "it needs either 'completion' or 'prediction'", _EXAMPLE)
        text = row["completion"] if "completion" in row else row["prediction"]
        gold, expected = row.get("gold"), row.get("expected")
        if isinstance(gold, int | float) and not isinstance(gold, bool):
            gold = str(gold)
        if not isinstance(gold, str) or not isinstance(text, str) or not isinstance(expected, bool):
            raise malformed(where, "'gold' and the answer must be strings, 'expected' true or false", _EXAMPLE)
        try:
            check_gold(gold)
        except ValueError as error:
            raise malformed(where, str(error), _EXAMPLE) from None
        item = Item(gold, text, whole="completion" in row, finished=row.get("finish") != "length")
        rows.append(Row(str(row.get("id", where)), item, expected))
    if not rows:
        raise ValueError(f"{path}: there are no rows")
    return rows


def score(rows: Sequence[Row], verifier: Verifier) -> dict[str, Any]:
    """Accuracy, mistakes by id, timeouts, throughput (checks a second of one call over all rows, workers warm) and
    the latency of single checks in milliseconds."""
    items = [row.item for row in rows]
    verifier.check([Item("1", "1")] * 64)  # workers start
    start = time.perf_counter()
    verdicts: list[Verdict] = verifier.check(items)
    seconds = time.perf_counter() - start
    close = getattr(verifier, "close", None)
    if callable(close):  # new workers, which remember nothing of these rows
        close()
        verifier.check([Item("1", "1")] * 64)
    latencies = []
    for item in items[:: max(1, len(items) // _LATENCIES)]:
        begun = time.perf_counter()
        verifier.check([item])
        latencies.append(1000 * (time.perf_counter() - begun))
    both = list(zip(rows, verdicts, strict=True))
    return {
        "n": len(rows),
        "accuracy": statistics.fmean(verdict.correct == row.expected for row, verdict in both),
        "false_positives": [row.id for row, verdict in both if verdict.correct and not row.expected],
        "false_negatives": [row.id for row, verdict in both if not verdict.correct and row.expected],
        "timeouts": sum(verdict.status == "timeout" for verdict in verdicts),
        "errors": sum(verdict.status == "error" for verdict in verdicts),
        "per_second": len(rows) / seconds,
        "p50_ms": statistics.median(latencies),
        "p99_ms": sorted(latencies)[min(len(latencies) - 1, int(0.99 * len(latencies)))],
    }


def _show(result: dict[str, Any], rows: Sequence[Row]) -> str:
    by_id = {row.id: row for row in rows}
    lines = [
        f"{result['n']} rows: accuracy {result['accuracy']:.4f}, {len(result['false_positives'])} false positives, "
        f"{len(result['false_negatives'])} false negatives, {result['timeouts']} timeouts, {result['errors']} errors",
        f"{result['per_second']:.0f} checks/s; one check: p50 {result['p50_ms']:.2f} ms, p99 {result['p99_ms']:.1f} ms",
    ]
    for kind in ("false_positives", "false_negatives"):
        for id in result[kind]:
            item = by_id[id].item
            lines.append(f"{kind.replace('_', ' ')[:-1]} {id}: gold {item.gold[:80]!r}, answer {item.text[-120:]!r}")
    return "\n".join(lines)


def _load(path: str) -> Verifier:
    module, _, name = path.rpartition(".")
    try:
        verifier = getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(
            f"--verifier {path}: {error}; it must be the path of a class without required arguments"
        ) from error
    if not callable(getattr(verifier, "check", None)):
        raise ValueError(f"--verifier {path}: it has no method check(items); see envs.verify.Verifier")
    return verifier


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m envs.verify", description="Score a verifier on labelled answers.")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("score", help="accuracy, mistakes and speed on labelled rows")
    command.add_argument("file", type=Path, help="JSON lines: " + _EXAMPLE)
    command.add_argument("--verifier", help="path.to.Class of another verifier")
    command.add_argument("--workers", type=int, help="worker processes (default: one for each core)")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    try:
        verifier = _load(options.verifier) if options.verifier else MathVerifier(workers=options.workers)
        rows = read_rows(options.file)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    result = score(rows, verifier)
    print(json.dumps(result) if options.json else _show(result, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
