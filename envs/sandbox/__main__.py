"""``python -m envs.sandbox score|doctor|bench``: score samples; does this machine contain programs, and how fast?"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from envs.sandbox.bench import bench
from envs.sandbox.checks import Check, Limits, SandboxUnavailable
from envs.sandbox.jail import bubblewraps
from envs.sandbox.pool import Sandbox, bubblewrap_version
from envs.sandbox.probe import probe
from envs.sandbox.problems import CodeProblem, json_rows, problem_from_row
from envs.sandbox.syscalls import libseccomp_version


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0; 1 if the sandbox can't be had; 2 for bad input."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "doctor":
            return doctor()
        if options.command == "bench":
            return speed(options)
        return score(options)
    except SandboxUnavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def score(options: argparse.Namespace) -> int:
    """Run every sample; pass@1 is the mean over problems of the mean over their samples, as in OpenAI's human-eval."""
    samples = _read(options.problems, options.samples)
    limits = Limits() if options.timeout is None else Limits(cpu_seconds=options.timeout)
    with Sandbox(workers=options.workers, limits=limits, mode=options.mode, unsafe=options.unsafe) as sandbox:
        started = time.perf_counter()
        outcomes = sandbox.run([check for _, check in samples])
        seconds = time.perf_counter() - started
    passed: dict[int | str, list[bool]] = defaultdict(list)
    for (problem, _), outcome in zip(samples, outcomes, strict=True):
        passed[problem.task_id].append(outcome.status == "ok")
    rate = statistics.fmean(statistics.fmean(results) for results in passed.values())
    if options.json:
        rows = [
            {"task_id": problem.task_id, "status": outcome.status, "passed": outcome.status == "ok"}
            for (problem, _), outcome in zip(samples, outcomes, strict=True)
        ]
        print(json.dumps({"pass@1": rate, "per_second": len(samples) / seconds, "samples": rows}))
        return 0
    for (problem, _), outcome in zip(samples, outcomes, strict=True):
        print(f"{problem.task_id}\t{outcome.status}\t{outcome.passed}/{outcome.total}\t{outcome.detail}")
    print(f"pass@1 {rate:.4f} ({len(passed)} problems, {len(samples)} samples, {len(samples) / seconds:.0f}/s)")
    return 0


def doctor() -> int:
    """Attack the jails of both modes and print what came of it."""
    found = ", ".join(f"{path} ({bubblewrap_version(path)})" for path in bubblewraps())
    print(f"bubblewrap   {found or 'missing'}")
    print(f"libseccomp   {libseccomp_version() or 'missing'}")
    reports = [probe("full"), probe("no-namespaces")]
    print(f"landlock     {max(report.landlock for report in reports) or 'missing'} (ABI)")
    for report in reports:
        print(f"\nmode {report.launch.mode}: {'holds' if report.holds else 'does not hold'}")
        if report.failure:
            print(f"  {report.failure}")
        for each in report.probes:
            print(f"  {'ok  ' if each.contained else 'FAIL'}  {each.name}: {each.detail}")
    holds = [report.launch.mode for report in reports if report.holds]
    print(
        f"\nmode auto takes {holds[0]}"
        if holds
        else "\nnothing contains programs here; only unsafe=true would run them"
    )
    return 0 if holds else 1


def speed(options: argparse.Namespace) -> int:
    """Measure the sandbox."""
    with Sandbox(workers=options.workers, mode=options.mode) as sandbox:
        result = bench(sandbox, seconds=options.seconds)
    if options.json:
        print(json.dumps(asdict(result)))
    else:
        print(f"mode {result.mode}, {result.workers} workers")
        print(f"{result.programs_per_second:.0f} trivial programs/s")
        print(f"{result.checks_per_second:.0f} HumanEval-style checks/s")
        print(f"a jail starts in {result.jail_start_ms:.0f} ms")
    return 0


def _read(problems_file: Path, samples_file: Path) -> list[tuple[CodeProblem, Check]]:
    """The samples' problems and checks. ValueError for a bad row, before anything runs."""
    problems: dict[str, CodeProblem] = {}
    for where, row in json_rows(problems_file):
        problem = problem_from_row(where, row)
        if str(problem.task_id) in problems:
            raise ValueError(f"{where}: a second problem {problem.task_id!r}; remove one of them")
        problems[str(problem.task_id)] = problem
    samples: list[tuple[CodeProblem, Check]] = []
    for where, row in json_rows(samples_file):
        if not isinstance(row, dict) or "task_id" not in row:
            raise ValueError(f"{where}: a sample is an object with 'task_id', and 'completion' or 'solution'")
        found = problems.get(str(row["task_id"]))
        if found is None:
            raise ValueError(f"{where}: {problems_file} has no problem {row['task_id']!r}")
        if isinstance(row.get("completion"), str):
            program = found.complete(row["completion"])
        elif isinstance(row.get("solution"), str):
            program = found.extract(row["solution"])
        else:
            raise ValueError(f"{where}: neither 'completion' nor 'solution' is there, as a string")
        samples.append((found, found.check(program)))
    if not samples:
        raise ValueError(f"{samples_file} has no samples")
    return samples


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m envs.sandbox", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    scoring = commands.add_parser("score", help="run samples against problems, print pass@1")
    scoring.add_argument(
        "--problems", type=Path, required=True, help="HumanEval, MBPP or stdin/stdout rows; .jsonl[.gz]"
    )
    scoring.add_argument("--samples", type=Path, required=True, help="rows of task_id and completion or solution")
    scoring.add_argument("--timeout", type=float, help="CPU seconds for one program (default 6)")
    scoring.add_argument("--unsafe", action="store_true", help="run programs even if this machine can't contain them")
    commands.add_parser("doctor", help="attack the jails: does this machine contain programs?")
    measuring = commands.add_parser("bench", help="measure programs per second and the start of a jail")
    measuring.add_argument("--seconds", type=float, default=3.0, help="how long to measure each of the two rates")
    for command in (scoring, measuring):
        command.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
        command.add_argument("--workers", type=int, help="programs at a time (default: one per core)")
        command.add_argument("--mode", choices=("auto", "full", "no-namespaces"), default="auto")
    return parser


if __name__ == "__main__":
    sys.exit(main())
