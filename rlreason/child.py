"""Commands as child processes, one at a time: their output on the screen and in a log, signals passed on to them.

A child runs in a session of its own, so that a Ctrl-C on the terminal reaches it once, through us, and not twice: the
second one would end it at once. The lock is inherited by the children: a job that outlives a killed parent holds it, so
that nobody starts a second one in its folder.

Left out: running several at once, and other systems than POSIX ones.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

from rlreason.config import ConfigError
from rlreason.signals import SIGNALS

_TAIL = 15  # lines


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (minus the signal that killed it), and the last lines that it printed."""

    code: int
    tail: tuple[str, ...]


class Runner:
    """Runs commands within its ``with`` block, and holds ``lock`` meanwhile: ConfigError if somebody else does.

    ``signal`` is the last SIGINT or SIGTERM received, or 0. It has been passed on to the child; the caller starts no
    other one.
    """

    def __init__(self, lock: Path) -> None:
        self.signal = 0
        self._lock = lock
        self._child: subprocess.Popen[bytes] | None = None
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> Runner:
        self._held = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._held, 20, 0).decode()
            os.close(self._held)
            raise ConfigError(
                f"{self._lock.parent} is at work: process {holder}, started from here before, still runs. Wait until it "
                "has ended, or end it by SIGTERM, which lets it save; then start this again"
            ) from None
        self._name_holder(os.getpid())
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._pass_on) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._held)

    def run(self, command: Sequence[str], log: Path) -> Ended:
        """Run a command to its end. Its output, both streams together, goes to the end of ``log`` and on the screen."""
        tail: deque[str] = deque(maxlen=_TAIL)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            file.write(f"$ {shlex.join(command)}\n".encode())
            file.flush()
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},  # each line when it is printed
                start_new_session=True,
                pass_fds=[self._held],
            )
            self._child = child
            self._name_holder(child.pid)  # whoever finds the lock held needs to know by whom: the child may outlive us
            try:
                if self.signal:  # it came while the child was being started
                    child.send_signal(self.signal)
                assert child.stdout is not None
                for line in child.stdout:
                    file.write(line)
                    file.flush()
                    text = line.decode("utf-8", "replace")
                    tail.append(text.rstrip())
                    _show(text)
                return Ended(child.wait(), tuple(tail))
            finally:
                self._child = None
                if child.poll() is None:  # we are failing: nobody would read its output
                    child.terminate()
                    child.wait()
                if child.stdout is not None:
                    child.stdout.close()

    def _name_holder(self, process: int) -> None:
        os.ftruncate(self._held, 0)
        os.pwrite(self._held, str(process).encode(), 0)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        if self._child is not None:
            self._child.send_signal(number)


def _show(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except (OSError, ValueError):
        pass  # nobody is looking, or the terminal lacks a letter; the log has it all
