"""What the scripts in experiments/ share: their command line, where a run came from, and results as readable JSON."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


def from_command_line(description: str, here: Path) -> tuple[Path, Path]:
    """From the command line, the folder given to run.sh, and where the results go: ``here`` unless ``--out`` says."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder given to run.sh")
    parser.add_argument("--out", type=Path, default=here, help="where the results go (default: beside this script)")
    arguments = parser.parse_args()
    return arguments.folder, arguments.out


def origin(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's manifest, what a reader of the results needs; of paths, the files' names."""
    machine, model = manifest["machine"], manifest["model"]
    env = {**manifest["env"].get("env", {}), **manifest["env"]}  # what a data set took from an environment
    if "sha256" in env:
        env["sha256"] = {Path(file).name: digest for file, digest in env["sha256"].items()}
    return {
        "machine": {key: machine[key] for key in ("cpu", "cores", "torch_threads", "memory_gib", "gpus")},
        "git": manifest["git"],
        "packages": manifest["packages"],
        "model": {key: model[key] for key in ("source", "gguf_sha256", "parameters", "dtype") if key in model},
        "data": {key: env[key] for key in ("source", "sha256", "sizes", "format", "worked_example") if key in env},
    }


def numbers(column: pd.Series[float]) -> list[float | None]:
    """A column as JSON knows it: None where there is no number."""
    return [None if np.isnan(value) else value for value in column.tolist()]


def to_json(results: Mapping[str, Any]) -> str:
    """JSON with each list of numbers on one line, numbers to six digits."""
    rounded = json.loads(json.dumps(results), parse_float=lambda text: float(f"{float(text):.6g}"))
    text = json.dumps(rounded, indent=1, allow_nan=False, ensure_ascii=False)
    return re.sub(r"\[[^\[\]{}]*\]", lambda found: re.sub(r"\s*\n\s*", " ", found[0]), text) + "\n"
