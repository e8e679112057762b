"""python -m experiments.verifiers.measure FOLDER_WITH_MBPP

Scorecards of our verifier beside Math-Verify, and the sandbox's figures; writes results.json and prints the README's
tables. A figure of ours is the median of ``REPEATS``, its range beside it.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from envs.sandbox import Sandbox
from envs.sandbox.bench import bench
from envs.sandbox.problems import json_rows, problem_from_row
from envs.verify import Item, MathVerifier, Verifier
from envs.verify.__main__ import Row, read_rows, score
from experiments.verifiers.plain import MathVerify
from rlreason.analysis.study import to_json
from rlreason.manifest import manifest

HERE = Path(__file__).resolve().parent
REPO = HERE.parent.parent
REPEATS = 3


def ordinary(count: int) -> list[Row]:
    """What a run's checks are like: numbers, fractions, surds, pairs, formulas; half of them right."""
    draw = random.Random(0)
    rows = []
    for place in range(count):
        form = draw.choice(_FORMS)
        a, b, c = draw.randint(1, 99_999), draw.randint(2, 99), draw.randint(2, 50)
        right = bool(draw.getrandbits(1))
        gold, answer = form(a, b, c)[0], form(a + (not right), b, c)[1]
        rows.append(Row(str(place), Item(gold, rf"So the answer is $\boxed{{{answer}}}$.", whole=True), right))
    return rows


_FORMS: list[Callable[[int, int, int], tuple[str, str]]] = [
    lambda a, b, c: (f"{a}", f"{a:,}"),
    lambda a, b, c: (f"{a / 100:.2f}", rf"\frac{{{a}}}{{100}}"),
    lambda a, b, c: (rf"\frac{{{a}}}{{{b}}}", f"{2 * a}/{2 * b}"),
    lambda a, b, c: (rf"{a}\sqrt{{{c}}}", rf"\sqrt{{{a * a * c}}}"),
    lambda a, b, c: (f"({a}, {b})", rf"\left({a},\,{b}\right)"),
    lambda a, b, c: (f"x = {a}", f"{a}"),
    lambda a, b, c: (rf"{a} \text{{ cm}}", f"{a} cm"),
    lambda a, b, c: (rf"{a}x^2 + {c}x", rf"x({a}x + {c})"),
    lambda a, b, c: (rf"[{b}, {100 + a})", rf"{b} \le x < {100 + a}"),
]


def scorecards() -> dict[str, Any]:
    """By data set and verifier, each repetition's scorecard."""
    data = {"labelled": read_rows(REPO / "tests" / "data" / "math_cases.jsonl"), "ordinary": ordinary(2000)}
    verifiers: dict[str, Verifier] = {"rlreason": MathVerifier(), "math_verify": MathVerify()}
    found: dict[str, Any] = {name: {side: [] for side in verifiers} for name in data}
    for repeat in range(REPEATS):
        for name, rows in data.items():
            for side, verifier in verifiers.items():
                if side == "rlreason" or repeat == 0:  # the library waits out its time limits: once is enough
                    found[name][side].append(score(rows, verifier))
    return found


def references(folder: Path) -> dict[str, Any]:
    """MBPP's own solutions, and stubs that return None."""
    problems = [problem_from_row(where, row) for where, row in json_rows(folder / "mbpp.jsonl")]
    found: dict[str, Any] = {}
    with Sandbox() as sandbox:
        for what in ("references", "stubs"):
            programs = [p.reference or "" if what == "references" else _stub(p.names) for p in problems]
            checks = [problem.check(program) for problem, program in zip(problems, programs, strict=True)]
            started = time.perf_counter()
            outcomes = sandbox.run(checks)
            seconds = time.perf_counter() - started
            counts = Counter(outcome.status for outcome in outcomes)
            found[what] = {"n": len(checks), "statuses": dict(counts), "per_second": len(checks) / seconds}
    return found


def _stub(names: Sequence[str]) -> str:
    return "\n".join(f"def {name}(*args, **kwargs):\n    return None" for name in names)


def _range(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def tables(results: dict[str, Any]) -> str:
    """The README's tables."""
    lines = [
        "| rows | verifier | right | false positives | false negatives | timeouts | checks/s | p50, ms | p99, ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, sides in results["scorecards"].items():
        for side, runs in sides.items():
            first = runs[0]
            counts = (len(first["false_positives"]), len(first["false_negatives"]), first["timeouts"])
            speeds = (("per_second", 0), ("p50_ms", 2), ("p99_ms", 1))
            cells = [f"{name}, {first['n']}", side, f"{100 * first['accuracy']:.1f} %", *map(str, counts)]
            cells += [_range([run[key] for run in runs], digits) for key, digits in speeds]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| mode | trivial programs/s | HumanEval-style checks/s | start of a jail, ms |", "|---|---|---|---|"]
    for mode, runs in results["sandbox"].items():
        keys = (("programs_per_second", 0), ("checks_per_second", 0), ("jail_start_ms", 0))
        lines.append(f"| {mode} | " + " | ".join(_range([r[key] for r in runs], digits) for key, digits in keys) + " |")
    lines += ["", "| MBPP | n | passed | others | per second |", "|---|---|---|---|---|"]
    for what, found in results["mbpp"].items():
        others = ", ".join(f"{status} {count}" for status, count in found["statuses"].items() if status != "ok")
        passed = found["statuses"].get("ok", 0)
        lines.append(f"| {what} | {found['n']} | {passed} | {others or '–'} | {found['per_second']:.0f} |")
    return "\n".join(lines)


def main(folder: Path) -> None:
    """Measure everything, write results.json, print the tables."""
    speeds: dict[str, Any] = {"full": [], "no-namespaces": []}
    for _ in range(REPEATS):
        for mode, runs in speeds.items():
            with Sandbox(mode=mode) as sandbox:  # type: ignore[arg-type]
                runs.append(asdict(bench(sandbox)))
    made = manifest(seed=0, model={}, env={}, root=REPO)
    results = {
        "machine": {key: made["machine"][key] for key in ("cpu", "cores", "memory_gib")},
        "git": made["git"],
        "scorecards": scorecards(),
        "sandbox": speeds,
        "mbpp": references(folder),
    }
    (HERE / "results.json").write_text(to_json(results), encoding="utf-8")
    print(tables(results))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m experiments.verifiers.measure FOLDER_WITH_MBPP (its mbpp.jsonl)")
    main(Path(sys.argv[1]))
