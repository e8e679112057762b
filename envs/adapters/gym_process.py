"""The trainer's end of ``gym_worker``: a process that makes problems and scores answers, restarted when it is lost.

Left out: several processes. A score takes microseconds; the few that run long end at their limit.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

_ROOT = Path(__file__).resolve().parents[2]
_START_SECONDS = 120.0
_ENTRY_SECONDS = 120.0

Outcome = Literal["scored", "raised", "timeout", "error"]


class _Lost(Exception):
    """The process ended, or did not answer in time."""


class GymProcess:
    """A data set of reasoning-gym in a process of its own. Thread-safe; used after a ``fork``, it starts another one.

    ``cpu_seconds`` and ``memory_mb`` bound one score. Raises ValueError, with the library's words, if it refuses the
    settings, and RuntimeError if the process can't be started.
    """

    def __init__(
        self, dataset: str, params: Mapping[str, Any], *, seed: int, size: int, cpu_seconds: float, memory_mb: int
    ) -> None:
        self._settings = {
            "dataset": dataset,
            "params": dict(params),
            "seed": seed,
            "size": size,
            "cpu_seconds": cpu_seconds,
            "memory_mb": memory_mb,
        }
        # Only a backstop for a process that hangs without computing: elapsed time is not the policy's doing.
        self._score_seconds = 10 * cpu_seconds + 10
        self._lock = threading.Lock()
        self._running: list[_Connection] = []
        self._close = weakref.finalize(self, _end_all, self._running)
        atexit.register(self._close)
        with self._lock:
            self._connection()

    def entry(self, index: int) -> tuple[str, str | None]:
        """Question and answer. Raises RuntimeError if the library can't make them."""
        for _ in range(2):  # the first may meet a process that somebody ended
            try:
                kind, *rest = self._ask(["entry", index], _ENTRY_SECONDS)
            except _Lost:
                continue
            if kind == "entry":
                return rest[0], rest[1]
            if kind == "raised":
                break
            rest = [f"its process died ({rest[0]})"]
        else:
            rest = ["its process does not answer"]
        raise RuntimeError(f"reasoning-gym can't make problem {index} of {self._settings['dataset']}: {rest[0]}")

    def score(self, index: int, answer: str) -> tuple[Outcome, float]:
        """How it went, and the score that the library gave (0 where it gave none).

        ``raised`` and ``timeout`` are due to the answer, ``error`` to a process that can't be started. An answer that a
        process was lost over is tried once more, since that may have been somebody else's doing.
        """
        for _ in range(2):
            try:
                kind, *rest = self._ask(["score", index, answer], self._score_seconds)
            except _Lost:
                continue
            except RuntimeError:
                return "error", 0.0
            if kind == "score":
                return "scored", rest[0]
            return ("raised", 0.0) if kind == "raised" else ("timeout", 0.0)
        return "timeout", 0.0

    def _ask(self, request: list[Any], seconds: float) -> list[Any]:
        with self._lock:
            connection = self._connection()
            try:
                return connection.ask(request, seconds)
            except BaseException:  # an interrupt too: its answer would be taken for the next one's
                _end_all(self._running)
                raise

    def _connection(self) -> _Connection:
        if self._running and self._running[0].owner != os.getpid():
            self._running.clear()  # the parent's; ours to leave alone
        if not self._running:
            connection = _Connection()
            self._running.append(connection)
            try:
                kind, *rest = connection.ask(self._settings, _START_SECONDS)
            except _Lost as error:
                _end_all(self._running)
                raise RuntimeError(f"reasoning-gym's process can't be started: {error}") from error
            if kind == "refused":
                _end_all(self._running)
                raise ValueError(rest[0])
        return self._running[0]


class _Connection:
    """A worker process, and one question to it at a time."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        # A group of its own: Ctrl-C is the trainer's to handle, and killing the group ends the child with its parent.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "envs.adapters.gym_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=_ROOT,
            env={**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            bufsize=0,
        )

    def ask(self, request: Any, seconds: float) -> list[Any]:
        """Its answer. Raises _Lost."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            rest = memoryview(json.dumps(request).encode() + b"\n")
            while rest:
                rest = rest[self._process.stdin.write(rest) :]
        except OSError as error:
            raise _Lost(str(error)) from error
        received, deadline = b"", time.monotonic() + seconds
        descriptor = self._process.stdout.fileno()
        while not received.endswith(b"\n"):
            if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise _Lost(f"no answer within {seconds:g} s")
            piece = os.read(descriptor, 1 << 16)
            if not piece:
                raise _Lost("it ended")
            received += piece
        answer = json.loads(received)
        assert isinstance(answer, list)
        return answer

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()


def _end_all(connections: list[_Connection]) -> None:
    while connections:
        connection = connections.pop()
        if connection.owner == os.getpid():
            connection.end()
