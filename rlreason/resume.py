"""Whether a run folder is this run's own, for jobs that go on in the folder they are started in: the same
configuration, and the same data.

Left out: checkpoints; what trains asks ``checkpoint.py`` for them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rlreason.config import ConfigError, check_same_run
from rlreason.files import as_json

_ELSEWHERE = frozenset({"sandbox"})
"""What the manifest of an environment says of the machine: a run may go on on another one."""

_SHOWN = 10

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""Of an object that has no text of its own: another in every process."""


def check_begun(config: Mapping[str, Any], out: Path) -> None:
    """Raise ConfigError if folder ``out`` holds another run than ``config`` describes, or if ``config["resume"]`` names
    a folder that holds none."""
    if (out / "config.yaml").is_file():
        saved = OmegaConf.to_container(OmegaConf.load(out / "config.yaml"))
        assert isinstance(saved, dict)
        check_same_run(config, {str(key): value for key, value in saved.items()}, out)
    elif config["resume"] is not None:
        raise ConfigError(f"resume={config['resume']} is no run folder: it has no config.yaml (looked in {Path.cwd()})")


def check_same_data(manifest: Mapping[str, Any], out: Path) -> None:
    """Raise ConfigError, with the keys that differ, if the run in folder ``out`` was started with other data than
    ``manifest`` describes. What only one of the two manifests has is not compared: versions write more or less."""
    path = out / "manifest.json"
    if not path.is_file():
        return
    try:
        then = json.loads(_ADDRESS.sub("", path.read_text(encoding="utf-8")))["env"]
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{path} is not a manifest ({error}); repair or remove it to resume") from error
    now = json.loads(_ADDRESS.sub("", as_json(manifest)))
    keys = sorted(then.keys() & now.keys() - _ELSEWHERE)
    different = [place for key in keys for place in _different(then[key], now[key], key)]
    if different:
        more = f" and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
        raise ConfigError(
            f"resume={out} was started with other data; what differs in its manifest: "
            f"{', '.join(different[:_SHOWN])}{more}. Put the old data back, or start a new run, from its weights with "
            "model=<checkpoint folder> if you like"
        )


def _different(then: Any, now: Any, place: str) -> list[str]:
    """The places, under ``place``, where two values differ."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        keys = sorted((then.keys() | now.keys()) - _ELSEWHERE)
        return [found for key in keys for found in _different(then.get(key), now.get(key), f"{place}.{key}")]
    return [] if then == now else [place]
