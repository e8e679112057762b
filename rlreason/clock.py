"""Where a step's time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Wall-clock seconds by phase, added up until they are taken. Phases don't nest.

    A phase is a range of that name in a profile, too (``rlreason.profiling``). On a CUDA ``device`` it ends when the
    device has done its work, so that what was only queued isn't charged to the next one.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._cuda = torch.device(device).type == "cuda"
        self._spent: dict[str, float] = {}

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            with torch.profiler.record_function(phase):  # some microseconds where nothing is profiled
                yield
                if self._cuda:
                    torch.cuda.synchronize()
        finally:
            self._spent[phase] = self._spent.get(phase, 0.0) + time.perf_counter() - begin

    def take(self) -> dict[str, float]:
        """``timing/<phase>`` in seconds since the last call."""
        spent, self._spent = self._spent, {}
        return {f"timing/{phase}": seconds for phase, seconds in spent.items()}
