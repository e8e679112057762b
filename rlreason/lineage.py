"""What came from what in a pipeline: ``lineage.json``, written anew after everything that happens.

```
stages.<name>           job, overrides, command, log; attempts: began, ended (UTC), exit code of each start
                        inputs: path and sha256 of what the stage took from others, by {stage.product}
                        output: path and sha256 of what it hands on; selection: how its checkpoint was chosen,
                        with every candidate's values; metrics: its summary.json
evaluations.<folder>    the same of each evaluation, but for selection
```

Left out: the weights and data that came from outside; their hashes are in the stages' own ``manifest.json``.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlreason.config import ConfigError
from rlreason.files import write_atomic
from rlreason.models import sha256

Digest = dict[str, str]


class Lineage:
    """The file ``path``, read if it is there. ``content`` may be changed at will; ``save`` writes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.content: dict[str, Any] = {"stages": {}, "evaluations": {}}
        if path.is_file():
            try:
                self.content = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ConfigError(f"{path} is not valid JSON ({error}); repair it, or start a new pipeline") from error

    def save(self) -> None:
        write_atomic(self._path, json.dumps(self.content, ensure_ascii=False, indent=2).encode())

    def entry(
        self,
        kind: str,
        name: str,
        *,
        job: str,
        overrides: Sequence[str],
        inputs: Mapping[str, Path],
        done: bool,
    ) -> dict[str, Any]:
        """The entry of a job. Where it is ``done``, ConfigError if it was made by other overrides or from other inputs
        than these: its result would not be what the recipe says."""
        asked = {
            "job": job,
            "overrides": list(overrides),
            "inputs": {what: {"path": str(path), "sha256": digest(path)} for what, path in inputs.items()},
        }
        entry: dict[str, Any] = self.content[kind].setdefault(name, {"attempts": []})
        if done and _essence(entry) != _essence(asked):
            raise ConfigError(
                f"{self._path.parent / name} is done, but by other overrides or from other inputs than now:\n"
                f"  then: {_essence(entry)}\n  now:  {_essence(asked)}\n"
                "Give the same as then, or remove that folder, and those that build on it, to make it again"
            )
        entry |= asked
        return entry


def begin(entry: dict[str, Any], command: Sequence[str], log: Path) -> None:
    """Note that the job of an entry starts now."""
    entry |= {"command": shlex.join(command), "log": str(log)}
    entry["attempts"].append({"began": _now(), "ended": None, "exit_code": None})


def end(entry: dict[str, Any], code: int) -> None:
    """Note that the job of an entry has ended."""
    entry["attempts"][-1] |= {"ended": _now(), "exit_code": code}


def digest(path: Path) -> Digest:
    """SHA-256 by name: of a file; of the weights below a folder; of the traces below one without weights."""
    if path.is_file():
        return {path.name: sha256(path)}
    files = sorted(path.rglob("*.safetensors")) or sorted(path.rglob("*.parquet"))
    return {str(file.relative_to(path)): sha256(file) for file in files}


def _essence(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a job's result. Paths don't: a folder may be moved."""
    inputs = {what: found["sha256"] for what, found in entry.get("inputs", {}).items()}
    return {"job": entry.get("job"), "overrides": entry.get("overrides"), "inputs": inputs}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
