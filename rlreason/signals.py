"""SIGINT and SIGTERM as a wish that the loop grants at the end of a step."""

from __future__ import annotations

import contextlib
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def leave(number: int, step: int, out: Path, *, speak: bool) -> NoReturn:
    """End the process after signal ``number``, all being saved; say how to go on, on the process that may ``speak``."""
    if speak:
        print(f"Stopped after step {step}; the same command with resume={out} goes on.", flush=True)
    raise SystemExit(128 + number)


class StopSignal:
    """Within the ``with`` block, ``number`` is the first signal received, or 0. A second one ends the process as it
    would have without us: somebody is in a hurry. Off the main thread signals are left alone."""

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()
        # The reader of a pipe has left, or the signal came in the middle of another print: saving goes on all the same.
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            print(
                f"\n{signal.Signals(number).name}: finishing this step, then saving. Again to stop at once.", flush=True
            )

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
