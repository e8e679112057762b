"""Reward hacking noticed while it happens: an alarm when proxy and gold part ways.

It reads the evaluations' traces in the run folder, so it knows the whole history after a resume too. Left out: alarms
on training samples, whose problems differ from step to step and so can't be compared in pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from rlreason.analysis.load import read_traces
from rlreason.analysis.overoptimisation import Parting, history_of, parted

COLUMNS = ("step", "group", "segment", "status", "parts")


@dataclass(frozen=True)
class PartingAlarm:
    """Rings when, since the evaluation where gold was best, the proxy has risen and gold has fallen on the same
    problems. ``confidence`` is that chance alone never makes it ring, over all evaluations of a run. With ``stop`` the
    run then ends, with its checkpoint written."""

    stop: bool = False
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ValueError(f"alarm.confidence is {self.confidence}; it must lie between 0 and 1, such as 0.95")

    def check(self, run: Path) -> Parting | None:
        """What there is to ring for in a run folder. Raises ValueError if its environment has no proxy and gold."""
        files = sorted((run / "traces").glob("eval-validation-*.parquet"))
        return parted(history_of(pd.concat([read_traces(file, COLUMNS) for file in files])), confidence=self.confidence)


def told(parting: Parting) -> str:
    """A parting in words."""
    proxy, gold = parting.proxy, parting.gold
    return (
        f"proxy and gold have parted: from step {parting.since} to {parting.step} the proxy rose by {proxy.mean:.3f} "
        f"({proxy.low:.3f} to {proxy.high:.3f}) and gold fell by {-gold.mean:.3f} ({-gold.high:.3f} to {-gold.low:.3f})"
    )
