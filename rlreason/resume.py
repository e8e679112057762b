"""Whether a run folder is this run's own, for jobs that go on in the folder they are started in.

Left out: checkpoints; what trains asks ``checkpoint.py`` for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rlreason.config import ConfigError, check_same_run


def check_begun(config: Mapping[str, Any], out: Path) -> None:
    """Raise ConfigError if folder ``out`` holds another run than ``config`` describes, or if ``config["resume"]`` names
    a folder that holds none."""
    if (out / "config.yaml").is_file():
        saved = OmegaConf.to_container(OmegaConf.load(out / "config.yaml"))
        assert isinstance(saved, dict)
        check_same_run(config, {str(key): value for key, value in saved.items()}, out)
    elif config["resume"] is not None:
        raise ConfigError(f"resume={config['resume']} is no run folder: it has no config.yaml (looked in {Path.cwd()})")
