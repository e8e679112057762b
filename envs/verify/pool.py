"""Workers that can be killed, and the checks that go through them.

``Pool.check`` hands chunks of checks to processes (``worker``) and collects verdicts in order. A check that uses up
its CPU time or memory ends its worker and counts as ``timeout``; the rest of its chunk goes to the next worker. The
wall clock (three times the CPU time) is only a backstop for a process that does not get to run or hangs without
running: such a check is tried once more, since a busy machine is not the policy's doing.

Workers are plain subprocesses with two pipes, not ``multiprocessing``: nothing is imported from the trainer's main
module, nothing forks a process that holds torch and threads, and no signal handler or main thread is needed.

Left out: several machines, and asyncio.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from envs.verify.verdict import Verdict

CHUNK = 32
_STARTS = 3
_START_SECONDS = 120.0
_ROOT = Path(__file__).resolve().parents[2]


class _Worker:
    """A worker process and what it is working on: places of checks, in order, of which the first is under way."""

    def __init__(self, cpu_seconds: float, memory_mb: int) -> None:
        # A group of its own: Ctrl-C is the trainer's to handle, and killing the group ends the child with its parent.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "envs.verify.worker", str(cpu_seconds), str(memory_mb)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=_ROOT,
            env={**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            bufsize=0,
        )
        self.ready = False
        self.begun = False
        self.places: deque[int] = deque()
        self.since = time.monotonic()
        self.received = b""

    def send(self, pairs: Sequence[tuple[str, str]], places: Sequence[int]) -> None:
        assert self.process.stdin is not None
        self.places = deque(places)
        self.begun = False
        self.since = time.monotonic()
        rest = memoryview(json.dumps(pairs).encode() + b"\n")
        while rest:
            rest = rest[self.process.stdin.write(rest) :]

    def messages(self) -> list[list[object]] | None:
        """What it has said; None if it is gone."""
        assert self.process.stdout is not None
        piece = os.read(self.process.stdout.fileno(), 1 << 16)
        if not piece:
            return None
        *lines, self.received = (self.received + piece).split(b"\n")
        return [json.loads(line) for line in lines]

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process.wait()


class Pool:
    """``workers`` processes (None: as many as cores may be used), started with the first check.

    ``cpu_seconds`` and ``memory_mb`` are the limits of one check; memory is counted on top of what an idle worker has.
    May be used from any thread, one call after another, and by each process of a job for itself; it does not survive
    ``fork``. Raises ValueError for limits that make no sense.
    """

    def __init__(self, workers: int | None = None, cpu_seconds: float = 1.0, memory_mb: int = 1024) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"verifier: workers is {workers}; it must be at least 1")
        if cpu_seconds <= 0 or memory_mb < 16:
            raise ValueError(
                f"verifier: cpu_seconds is {cpu_seconds} and memory_mb is {memory_mb}; they must be above 0 and at "
                "least 16"
            )
        self._size = workers or len(os.sched_getaffinity(0))
        self._cpu_seconds = cpu_seconds
        self._memory_mb = memory_mb
        self._wall_seconds = 3 * cpu_seconds
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self._close = weakref.finalize(self, _kill_all, self._workers)
        atexit.register(self._close)

    def close(self) -> None:
        """End the workers. The next check starts new ones."""
        with self._lock:
            _kill_all(self._workers)

    def check(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """A verdict for each (right answer, given answer), in order.

        Raises ValueError for a right answer that can't be read. A check ends as ``error`` only if no worker can be
        started.
        """
        with self._lock:
            try:
                return _Run(self, pairs).verdicts()
            except BaseException:
                _kill_all(self._workers)  # they may still be at work on what nobody waits for
                raise

    def _start(self) -> _Worker:
        worker = _Worker(self._cpu_seconds, self._memory_mb)
        self._workers.append(worker)
        return worker


class _Run:
    """One call of ``Pool.check``."""

    def __init__(self, pool: Pool, pairs: Sequence[tuple[str, str]]) -> None:
        self.pool = pool
        self.pairs = pairs
        self.found: list[Verdict | None] = [None] * len(pairs)
        self.waiting = deque(range(len(pairs)))
        self.tried: set[int] = set()
        self.selector = selectors.DefaultSelector()
        self.failed_starts = 0

    def verdicts(self) -> list[Verdict]:
        with self.selector:
            for worker in list(self.pool._workers):
                self._watch(worker)
            while self.waiting or any(worker.places for worker in self.pool._workers):
                if self.failed_starts >= _STARTS and not self.pool._workers:
                    return [verdict or Verdict(False, "error") for verdict in self.found]
                self._staff()
                self._listen()
                self._end_stuck()
        assert all(verdict is not None for verdict in self.found)
        return [verdict for verdict in self.found if verdict is not None]

    def _staff(self) -> None:
        """Enough workers for what is left, each with a chunk."""
        wanted = min(self.pool._size, len(self.waiting))
        idle = sum(not worker.places for worker in self.pool._workers)
        while self.failed_starts < _STARTS and len(self.pool._workers) < self.pool._size and idle < wanted:
            self._watch(self.pool._start())
            idle += 1
        for worker in [worker for worker in self.pool._workers if worker.ready and not worker.places]:
            if not self.waiting:
                return
            # Small chunks at the end, so that all workers end together.
            size = max(1, min(CHUNK, len(self.waiting) // (2 * self.pool._size)))
            places = [self.waiting.popleft() for _ in range(size)]
            try:
                worker.send([self.pairs[place] for place in places], places)
            except OSError:
                self._gone(worker, started=False)

    def _listen(self) -> None:
        for key, _ in self.selector.select(timeout=0.1):
            worker: _Worker = key.data
            messages = worker.messages()
            if messages is None:
                self._gone(worker, started=worker.ready)
                continue
            for message in messages:
                if worker in self.pool._workers:
                    self._take(worker, message)

    def _take(self, worker: _Worker, message: list[object]) -> None:
        kind, *content = message
        worker.since = time.monotonic()
        if kind == "ready":
            worker.ready = True
            self.failed_starts = 0
        elif kind == "begun":
            worker.begun = True
        elif kind == "died" and worker.places and not worker.begun:
            # Somebody killed it idle or as it read: its chunk is lost, or waits for the next child.
            self._gone(worker, started=True)
        elif kind == "died":
            worker.ready = False
            if worker.places:  # a signal or out of memory: its own doing, unless somebody else killed it
                place = worker.places.popleft()
                self._give_up(place, retry=content[0] == -signal.SIGKILL)
            self.waiting.extendleft(reversed(worker.places))
            worker.places.clear()
        elif kind == "error":
            raise ValueError(content[0])
        else:
            correct, status, answer = content
            self.found[worker.places.popleft()] = Verdict(bool(correct), status, answer)  # type: ignore[arg-type]

    def _give_up(self, place: int, *, retry: bool) -> None:
        """The check at ``place`` did not come to its end."""
        if retry and place not in self.tried:
            self.tried.add(place)
            self.waiting.append(place)
        else:
            self.found[place] = Verdict(False, "timeout")

    def _end_stuck(self) -> None:
        now = time.monotonic()
        for worker in list(self.pool._workers):
            limit = self.pool._wall_seconds if worker.ready else _START_SECONDS
            if (worker.places or not worker.ready) and now - worker.since > limit:
                self._gone(worker, started=worker.ready)

    def _gone(self, worker: _Worker, *, started: bool) -> None:
        """A worker that ended, or hangs: what it was at is tried once more, by another one."""
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(worker.process.stdout)  # type: ignore[arg-type]
        self.pool._workers.remove(worker)
        worker.kill()
        self.failed_starts += not started
        if started and worker.places:
            self._give_up(worker.places.popleft(), retry=True)
        self.waiting.extendleft(reversed(worker.places))

    def _watch(self, worker: _Worker) -> None:
        assert worker.process.stdout is not None
        self.selector.register(worker.process.stdout, selectors.EVENT_READ, worker)


def _kill_all(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().kill()
