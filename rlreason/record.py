"""The run folder: configuration, manifest, metrics and traces of one run, safe against being killed.

```
config.yaml                        the resolved configuration; stays as it is when the run is resumed
manifest.json                      what the run was made of; each resume is appended under `resumed`
metrics.jsonl                      one line a step: {"step": 1, <metric>: <finite number or null>, ...}
traces/step-000123.parquet         every rollout of a training step
traces/eval-<split>-000123.parquet every rollout of an evaluation after that step
summary.json                       written when the run ended well, and only then
```

A file is there whole or not at all: it is written beside its place and moved into it. Only ``metrics.jsonl`` grows,
and a process killed in the middle of a line leaves a torn last line, which readers and ``Record`` leave out. Traces
are written first, so a line of metrics implies that its traces exist.

What the traces hold, ``rlreason.traces`` says.

Left out: a background writer (a step's traces take milliseconds), and a lock against two writers: two runs never
share a folder, and of several processes only the main one records.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

from omegaconf import OmegaConf

from rlreason.console import Console
from rlreason.files import as_json, finite, write_atomic
from rlreason.traces import SplitName, Trained, write_traces
from rlreason.tracking import Tracker
from rlreason.types import Rollout

# What of a manifest can differ when the same run is taken up again.
_RESUME_KEYS = ("git", "started", "command", "python", "packages", "machine")


class Record:
    """Writes the run folder ``out`` and passes each step on to the console and the tracker.

    ``config`` is the resolved configuration, ``manifest`` comes from ``rlreason.manifest``, ``env`` is the
    environment's name for the traces. A folder that already holds a manifest is taken up again: its ``config.yaml``
    stays, and what this process is made of is appended to the manifest's ``resumed``. Call ``truncate`` then, before
    any step.
    """

    def __init__(
        self,
        out: Path,
        *,
        config: Mapping[str, Any],
        manifest: Mapping[str, Any],
        env: str,
        console: Console,
        tracker: Tracker,
    ) -> None:
        self.out = out
        self._env = env
        self._console = console
        self._tracker = tracker
        self._finished = False
        self._metrics = out / "metrics.jsonl"
        self._traces = out / "traces"
        self._traces.mkdir(parents=True, exist_ok=True)
        if not (out / "config.yaml").exists():
            # OmegaConf's own writer, since its reader takes an unquoted 1e-5 for a number and PyYAML's doesn't.
            write_atomic(out / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(config))).encode())
        self._write_manifest(manifest)
        self._last: int | None = None
        self._keep(lambda step: True)

    def step(
        self,
        step: int,
        metrics: Mapping[str, SupportsFloat | None],
        rollouts: Sequence[Rollout],
        trained: Sequence[Trained] | None = None,
    ) -> None:
        """Record a training step: its traces, then its line of metrics, then console and tracker.

        ``trained`` has an entry for each rollout. NaN and infinity become null in both files. Without rollouts there
        is no trace file. Raises ValueError if ``step`` isn't above every step recorded so far, if a metric is
        called ``step``, or if the lengths differ.
        """
        if self._last is not None and step <= self._last:
            raise ValueError(
                f"{self._metrics} already goes up to step {self._last}, so step {step} can't follow; "
                "after a resume, call truncate first"
            )
        if "step" in metrics:
            raise ValueError("a metric can't be called 'step': that is the line's own number")
        clean = {name: finite(value) for name, value in metrics.items()}
        if rollouts:
            path = self._traces / f"step-{step:06d}.parquet"
            write_traces(path, rollouts, step=step, split="train", env=self._env, trained=trained)
        line = json.dumps({"step": step, **clean}, allow_nan=False) + "\n"
        with self._metrics.open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        self._last = step
        self._console.step(step, clean, rollouts)
        self._tracker.log(step, clean)

    def evaluation(self, step: int, rollouts: Sequence[Rollout], split: SplitName) -> None:
        """Write the traces of an evaluation made after ``step``. Its metrics go into a line of ``step()``."""
        path = self._traces / f"eval-{split}-{step:06d}.parquet"
        write_traces(path, rollouts, step=step, split=split, env=self._env)

    def say(self, text: str) -> None:
        """Print a line of text without disturbing the progress bar."""
        self._console.say(text)

    def truncate(self, step: int) -> None:
        """Go back to ``step``: drop later metrics and traces, what an earlier process left half-written, and
        ``summary.json``, since the run isn't over. Being killed in here does no harm: call it again."""
        # Metrics first: a line without its traces must never be there, traces without their line may.
        self._keep(lambda recorded: recorded <= step)
        for path in self._traces.iterdir():
            later = path.suffix == ".parquet" and int(path.stem.rpartition("-")[2]) > step
            if later or path.suffix == ".tmp":
                path.unlink()
        for name in ("config.yaml", "manifest.json", "metrics.jsonl", "summary.json"):
            (self.out / f"{name}.tmp").unlink(missing_ok=True)
        (self.out / "summary.json").unlink(missing_ok=True)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json`` and close: the run ended well."""
        try:
            write_atomic(self.out / "summary.json", as_json(summary, indent=2).encode())
            self._finished = True
        finally:
            self.close()

    def close(self) -> None:
        """Close tracker and console, whatever happened; for ``finally``. Calling again does nothing."""
        try:
            self._tracker.close(failed=not self._finished)
        finally:
            self._console.close()

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        path = self.out / "manifest.json"
        content = dict(manifest)
        if path.exists():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{path} is not valid JSON ({error}); repair or remove it to resume") from error
            again = {key: manifest[key] for key in _RESUME_KEYS if key in manifest}
            content["resumed"] = [*content.get("resumed", []), again]
        write_atomic(path, as_json(content, indent=2).encode())

    def _keep(self, wanted: Callable[[int], bool]) -> None:
        """Keep the lines of metrics whose step is wanted, and drop a torn one."""
        if not self._metrics.exists():
            self._last = None
            return
        lines = [line for line in metric_lines(self._metrics) if wanted(json.loads(line)["step"])]
        content = "".join(line + "\n" for line in lines).encode()
        if content != self._metrics.read_bytes():
            write_atomic(self._metrics, content)
        self._last = max((json.loads(line)["step"] for line in lines), default=None)


def metric_lines(path: Path) -> list[str]:
    """The whole lines of a ``metrics.jsonl``, without a torn last one. Raises ValueError, with the line's number, if
    another line isn't a JSON object with a step."""
    raw = path.read_bytes().split(b"\n")
    torn = raw.pop()  # empty if the file ends as it should
    lines = []
    for number, line in enumerate(raw, start=1):
        try:
            text = line.decode()
            if not isinstance(json.loads(text)["step"], int):
                raise ValueError("its step is no integer")
        except (ValueError, KeyError, TypeError) as error:
            # After a power cut, the last line can have its length but not its content.
            if number == len(raw) and not torn:
                break
            raise ValueError(f"{path}:{number} is not a line of metrics ({error}); repair or remove it") from error
        lines.append(text)
    return lines
