"""One side of a comparison: a process of its own, with its model loaded, driven over a pipe.

Each side works only when told to, so that A B A B can be interleaved on one machine while the other side sleeps. It
times itself: what the pipe costs is not in the seconds. Beside each timing stands how fast a plain matrix product was
just before it, so that a reader sees when the machine itself was slow.

A side is a function ``(link, settings)``, named ``module:function`` so that the driver need not import what only the
worker needs. It loads, warms up, calls ``link.ready()``, and does one unit of work per order.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Order:
    """Do unit ``index``, from 0: both sides find the same problems under it. What ``variant`` means, the side says."""

    index: int
    variant: str = ""


@dataclass(frozen=True)
class Run:
    """What a unit of work took. ``tokens``: completion tokens it was about; ``details`` are plain values for JSON."""

    seconds: float
    tokens: int
    details: Mapping[str, Any] = field(default_factory=dict)


class Unavailable(Exception):
    """This side can't run here; the message says why and what to do. The case is left out, not failed."""


class Link:
    """The worker's end of the pipe."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._loaded = 0
        self._speed = 0.0

    def ready(self) -> None:
        """Loaded and warmed up."""
        self._loaded = resident_bytes()
        self._connection.send(None)

    def wait(self) -> Order | None:
        """The next order, when it comes; None when there will be no more."""
        order: Order | None = self._connection.recv()
        if order is not None:
            self._speed = matmul_flops(1024, 0.1)
            reset_peak()
        return order

    def orders(self) -> Iterator[Order]:
        while (order := self.wait()) is not None:
            yield order

    def report(self, seconds: float, tokens: int, **details: Any) -> None:
        """Answer the order. The peak of memory since it came is added to ``details``."""
        memory = {"loaded_bytes": self._loaded, "peak_bytes": peak_bytes()}
        self._connection.send(Run(seconds, tokens, {**details, **memory, "matmul_gflops": round(self._speed / 1e9)}))


class Worker:
    """The driver's end: starts a side and waits until it is ready. Its output goes to ``log``.

    Raises Unavailable if the side says that it can't run here, RuntimeError with the end of its log if it dies.
    """

    def __init__(self, side: str, settings: Mapping[str, Any], log: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._side, self._log = side, log
        self._process = context.Process(target=_serve, args=(theirs, side, dict(settings), log))
        self._process.start()
        theirs.close()  # so that a worker that died is an EOFError here
        try:
            self._receive()
        except BaseException:
            self.close()
            raise

    def run(self, order: Order) -> Run:
        self._connection.send(order)
        run = self._receive()
        assert isinstance(run, Run)
        return run

    def close(self) -> None:
        """Let the side end by itself; after a minute, make it."""
        with suppress(OSError):  # it is dead
            self._connection.send(None)
        self._connection.close()
        self._process.join(60)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self) -> Run | None:
        try:
            answer: Run | Unavailable | None = self._connection.recv()
        except EOFError:
            self._process.join()
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-15:]) if self._log.is_file() else ""
            raise RuntimeError(
                f"{self._side} died with exit code {self._process.exitcode} (-9: usually out of memory); the end of "
                f"{self._log}:\n{tail}"
            ) from None
        if isinstance(answer, Unavailable):
            raise answer
        return answer


def _serve(connection: Connection, side: str, settings: dict[str, Any], log: Path) -> None:
    """A worker's main."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    module, _, name = side.partition(":")
    try:
        getattr(importlib.import_module(module), name)(Link(connection), settings)
    except Unavailable as reason:
        connection.send(reason)
    except Exception:  # the top of a process: whatever it was goes to the log, whose end the other process shows
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # not sys.exit: vLLM's threads may be waiting for each other


class Stopwatch:
    """Seconds by phase; on a GPU a phase ends when the device has done its work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        synchronize()
        begin = time.perf_counter()
        yield
        synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin


def device() -> str:
    """What every side runs on."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matmul_flops(size: int, budget: float) -> float:
    """FLOP/s of bfloat16 products of square matrices, repeated for ``budget`` seconds (at least twice)."""
    import torch

    square = torch.randn(size, size, device=device()).to(torch.bfloat16)
    square @ square
    synchronize()
    count, begin = 0, time.perf_counter()
    while count < 2 or time.perf_counter() - begin < budget:
        square @ square
        synchronize()
        count += 1
    return count * 2 * size**3 / (time.perf_counter() - begin)


def resident_bytes() -> int:
    """Memory held now: of the device where there is a GPU, else of the process (Linux; 0 elsewhere)."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    return _status("VmRSS")


def reset_peak() -> None:
    """``peak_bytes`` counts from here on."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):  # without it, the peak counts from the start of the process
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM


def peak_bytes() -> int:
    """The most memory held since ``reset_peak``: of the device where there is a GPU, else of the process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status(key: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)
