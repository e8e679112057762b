"""Commands as child processes, one at a time: their output on the screen and in a log, signals passed on to them.

A child runs in a session of its own, so that a Ctrl-C on the terminal reaches it once, through us, and not twice: the
second one would end it at once. It writes into the log itself and inherits the lock: a job that outlives a killed
parent has somewhere to write to, and nobody starts a second one in its folder.

Left out: running several at once, and other systems than POSIX ones.
"""

from __future__ import annotations

import codecs
import fcntl
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

from rlreason.config import ConfigError
from rlreason.signals import SIGNALS

_TAIL = 15  # lines
_POLL = 0.1  # seconds between two looks at the log


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
                f"{self._lock.parent} is at work: process {holder}, started from there, still runs. Wait until it has "
                "ended, or end it by SIGTERM, which lets it save; then start this again"
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
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            file.write(f"$ {shlex.join(command)}\n".encode())
            file.flush()
            begin = file.tell()
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
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
            text = "".join(self._follow(child, log, begin))
        finally:
            self._child = None
            if child.poll() is None:  # we are failing
                child.terminate()
                child.wait()
            self._name_holder(os.getpid())
        return Ended(child.returncode, tuple(text.splitlines()[-_TAIL:]))

    def _follow(self, child: subprocess.Popen[bytes], log: Path, begin: int) -> Iterator[str]:
        """What the child writes, shown as it comes."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        with log.open("rb") as file:
            file.seek(begin)
            ended = False
            while not ended:
                ended = child.poll() is not None  # asked before reading: then nothing follows
                text = decoder.decode(file.read(), final=ended)
                show(text)
                yield text
                if not ended:
                    time.sleep(_POLL)

    def _name_holder(self, process: int) -> None:
        os.ftruncate(self._held, 0)
        os.pwrite(self._held, str(process).encode(), 0)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        if self._child is not None:
            self._child.send_signal(number)


def show(text: str) -> None:
    """Write to the screen, if there still is one: display never stops the work."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except (OSError, ValueError):
        pass  # nobody is looking, or the terminal lacks a letter; the log has it all
