"""+profile=torch: which operators a few training steps spend their time in.

Each profiled step leaves a trace and a table in ``<run folder>/profile/``:

- ``step-000002.json.gz``: every operator on a time line, the phases of ``timing/*`` above them; open it in
  https://ui.perfetto.dev or chrome://tracing.
- ``step-000002.txt``: the 30 operators that cost the CPU most by themselves, what they call taken off, and the 30 GPU
  kernels that ran longest. A phase's own row is its Python.

A step is rollout, update and sync; evaluation, recording and checkpoints are not in it. Profiling slows a step down,
so its ``timing/*`` are not those of the others. Left out: memory, shapes and Python stacks, which make traces too large
to open; torch's own table, which takes a minute for a step of half a million operators; and the other processes of a
run of several: process 0 stands for them.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

ROWS = 30
ON_CPU = frozenset({"cpu_op", "user_annotation", "cuda_runtime", "cuda_driver"})
ON_GPU = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})


@dataclass(frozen=True)
class TorchProfile:
    """Profile ``count`` steps from the ``start``-th on that this process takes, a resumed run's first one being 1
    again. The first of all is seldom typical: caches are cold."""

    start: int = 2
    count: int = 2

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"profile.{name} is {value!r}; it must be a whole number of at least 1")

    def open(self, out: Path, *, steps_left: int) -> StepProfiler:
        """A profiler that writes into run folder ``out``. Raises ValueError if the run ends before it would begin."""
        if 0 < steps_left < self.start:
            raise ValueError(
                f"profile.start={self.start}, but {steps_left} step(s) are left: lower it or raise max_steps"
            )
        return StepProfiler(out / "profile", range(self.start, self.start + self.count))


class StepProfiler:
    """Profiles what happens between ``begin`` and ``end``, if its turn has come: it counts the calls from 1, and
    ``turns`` says which."""

    def __init__(self, folder: Path, turns: range) -> None:
        self._folder = folder
        self._turns = turns
        self._taken = 0
        self._running: tuple[int, profile] | None = None

    def begin(self, step: int) -> None:
        self._taken += 1
        if self._taken in self._turns:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            running = profile(activities=activities)
            running.start()
            self._running = step, running

    def end(self) -> None:
        """Write what was seen, if anything."""
        if self._running is None:
            return
        step, seen = self._running
        self.close()
        self._folder.mkdir(exist_ok=True)
        trace = self._folder / f"step-{step:06d}.json"
        seen.export_chrome_trace(str(trace))
        with trace.open("rb") as plain, gzip.open(f"{trace}.gz", "wb", compresslevel=3) as packed:
            shutil.copyfileobj(plain, packed)
        events = json.loads(trace.read_bytes())["traceEvents"]
        trace.with_suffix(".txt").write_text(table(events), encoding="utf-8")
        trace.unlink()

    def close(self) -> None:
        """Stop, writing nothing; for ``finally``. Calling again does nothing."""
        running, self._running = self._running, None
        if running is not None:
            running[1].stop()


@dataclass
class Spent:
    """Milliseconds and calls of one operator; ``own`` without what it called."""

    own: float = 0.0
    total: float = 0.0
    calls: int = 0


def spent(events: Sequence[Mapping[str, Any]], categories: frozenset[str]) -> dict[str, Spent]:
    """By name, of a Chrome trace's complete events in ``categories``; within a thread, events nest."""
    found: dict[str, Spent] = {}
    open_: dict[Any, list[tuple[float, Spent]]] = {}  # by thread: when each ends, and what it is
    chosen = [e for e in events if e.get("ph") == "X" and e.get("cat") in categories]
    for event in sorted(chosen, key=lambda e: (e["ts"], -e["dur"])):
        begin, took = event["ts"], event["dur"]
        around = open_.setdefault((event["pid"], event["tid"]), [])
        while around and around[-1][0] <= begin:
            around.pop()
        if around:
            around[-1][1].own -= took / 1e3
        cost = found.setdefault(event["name"], Spent())
        cost.own += took / 1e3
        cost.total += took / 1e3
        cost.calls += 1
        around.append((begin + took, cost))
    return found


def table(events: Sequence[Mapping[str, Any]]) -> str:
    """The costliest operators on the CPU and, if there are any, kernels on the GPU, as text."""
    lines: list[str] = []
    for title, categories in (("operators on the CPU", ON_CPU), ("kernels on the GPU", ON_GPU)):
        found = spent(events, categories)
        if not found:
            continue
        whole = sum(cost.own for cost in found.values())
        lines.append(f"{title}, {whole:.1f} ms in all")
        lines.append(f"{'own ms':>12} {'share':>7} {'with calls':>12} {'calls':>9}  name")
        for name, cost in sorted(found.items(), key=lambda item: -item[1].own)[:ROWS]:
            lines.append(f"{cost.own:12.3f} {cost.own / whole:7.1%} {cost.total:12.3f} {cost.calls:9d}  {name[:100]}")
        lines.append("")
    return "\n".join(lines)
