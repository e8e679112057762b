"""A mirror of ``metrics.jsonl`` in Weights & Biases.

The run folder is the record; wandb is a copy for looking at. So whatever goes wrong in wandb (no network, no key, a
full disk, a bug of its own) costs one warning and never the run.

Left out: artifacts, tables of traces, gradients by ``wandb.watch``. Traces stay in the run folder.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

log = logging.getLogger(__name__)

MODES = ("offline", "online", "disabled")


class Tracker(Protocol):
    """Takes over each line of metrics. Never raises."""

    def log(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Mirror one line. Steps must rise from call to call; None values are left out."""
        ...

    def close(self, failed: bool = False) -> None:
        """End the run; calling again does nothing."""
        ...


class NoTracker:
    """A tracker that does nothing."""

    def log(self, step: int, metrics: Mapping[str, float | None]) -> None:
        pass

    def close(self, failed: bool = False) -> None:
        pass


@dataclass(frozen=True)
class Wandb:
    """How to mirror a run (``conf/logger/wandb.yaml``).

    ``mode``: ``offline`` writes below the run folder (``wandb sync`` uploads it later), ``online`` uploads as it
    goes, ``disabled`` never imports wandb. ``name`` None takes the last two parts of the run folder's path.
    """

    mode: str = "offline"
    project: str = "rlreason"
    entity: str | None = None
    name: str | None = None
    tags: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"logger.mode is {self.mode!r}; it must be one of {', '.join(MODES)}")
        if isinstance(self.tags, str):
            raise ValueError(f"logger.tags is the string {self.tags!r}; give a list, such as [{self.tags}]")

    def open(self, out: Path, config: Mapping[str, Any]) -> Tracker:
        """Start the run that mirrors the run folder ``out``, or continue it.

        The run's id is kept in ``out/wandb_id.txt``, so a resumed run continues the same one. Steps that are done
        again after a resume are identical by construction; wandb keeps those it has.
        """
        if self.mode == "disabled":
            return NoTracker()
        out = out.resolve()
        try:
            return _WandbRun(_start(self, out, config))
        except Exception as error:  # whatever wandb does, the run goes on
            _warn("start", error)
            return NoTracker()


def _start(config: Wandb, out: Path, resolved: Mapping[str, Any]) -> Any:
    import wandb

    # wandb would ask for a key on a terminal, and end the whole program if nobody answers.
    if config.mode == "online" and wandb.run is None and not wandb.login(prompt=False, verify=False):
        raise RuntimeError("not logged in: run `wandb login` once, or set WANDB_API_KEY, and unset WANDB_MODE")
    return wandb.init(
        project=config.project,
        entity=config.entity,
        name=config.name or "/".join(out.parts[-2:]),
        tags=list(config.tags) or None,
        dir=out,
        id=_run_id(out),
        resume="allow",
        # Never take over a run that the caller's own process has open, nor end it.
        reinit="create_new",
        mode="online" if config.mode == "online" else "offline",
        config=dict(resolved),
        settings=wandb.Settings(
            silent=True,
            quiet=True,
            console="off",
            disable_git=True,  # the manifest has it
            # Neither an unreachable server nor a slow upload may hold up a run for long. (Seconds.)
            init_timeout=30,
            finish_timeout=300,
        ),
    )


def _run_id(out: Path) -> str:
    path = out / "wandb_id.txt"
    if path.exists() and (stored := path.read_text(encoding="utf-8").strip()):
        return stored
    fresh = uuid.uuid4().hex[:12]
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(fresh + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return fresh


def _warn(doing: str, error: Exception) -> None:
    log.warning(
        "wandb failed to %s (%s: %s). The run goes on without it; its metrics are in metrics.jsonl. "
        "logger.mode=disabled turns wandb off.",
        doing,
        type(error).__name__,
        error,
    )


class _WandbRun:
    def __init__(self, run: Any) -> None:
        self._run = run
        self._silent = False

    def log(self, step: int, metrics: Mapping[str, float | None]) -> None:
        if self._silent or self._run is None:
            return
        try:
            # commit: a killed process then loses no line to wandb's own buffer.
            self._run.log({k: v for k, v in metrics.items() if v is not None}, step=step, commit=True)
        except Exception as error:  # see the module's docstring
            _warn("log", error)
            self._silent = True

    def close(self, failed: bool = False) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        try:
            run.finish(exit_code=1 if failed else 0)
        except Exception as error:  # see the module's docstring
            if not self._silent:
                _warn("finish", error)
