"""Where a step's time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Wall-clock seconds by phase, added up until they are taken."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._spent[phase] = self._spent.get(phase, 0.0) + time.perf_counter() - begin

    def take(self) -> dict[str, float]:
        """``timing/<phase>`` in seconds since the last call."""
        spent, self._spent = self._spent, {}
        return {f"timing/{phase}": seconds for phase, seconds in spent.items()}
