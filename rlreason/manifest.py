"""What a run was made of: code, packages, machine, model and data. Written once as ``manifest.json``.

Finding these things out never stops a run: what can't be found is None.

Left out: the environment's variables and the host's name. They seldom explain a result, and they can hold secrets.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("rlreason", "torch", "transformers", "accelerate", "datasets", "hydra-core", "numpy", "wandb")


def manifest(
    *,
    seed: int,
    model: Mapping[str, Any],
    env: Mapping[str, Any],
    root: Path | None,
    peak_flops: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest of a run that starts now.

    ``model`` and ``env`` say where weights and data come from; they are kept as given. ``root`` is the folder of the
    source code, where git is asked for the commit; None asks nothing. ``git.commit`` and ``git.dirty`` are None
    outside a checkout, in a folder that the checkout doesn't track (an installed package), and without git.
    ``started`` is UTC in ISO 8601; ``machine.memory_gib`` counts 2**30 bytes;
    ``machine.peak_flops`` is ``peak_flops``, what MFU is relative to. ``sandbox`` is what the environment says of its
    own; None if no model-written code is run.
    """
    return {
        "git": _git(root),
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "seed": seed,
        "machine": _machine() | {"peak_flops": None if peak_flops is None else dict(peak_flops)},
        "command": shlex.join(sys.orig_argv),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "sandbox": env.get("sandbox"),
        "model": dict(model),
        "env": dict(env),
    }


def _git(root: Path | None) -> dict[str, Any]:
    nothing = {"commit": None, "dirty": None}
    if root is None:
        return nothing
    # A package installed in a virtual environment inside somebody's checkout must not report that checkout's commit:
    # only a folder with tracked files counts.
    if not _run_git(root, "ls-files"):
        return nothing
    commit = _run_git(root, "rev-parse", "HEAD")
    status = _run_git(root, "status", "--porcelain")
    return {"commit": commit or None, "dirty": None if status is None else bool(status)}


def _run_git(root: Path, *arguments: str) -> str | None:
    """Output of a git command in ``root``, or None if it failed."""
    # Inside a git hook these variables point at another repository.
    environment = {k: v for k, v in os.environ.items() if k not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")}
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=20,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    return {
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
        "cuda": torch.version.cuda if cuda else None,
    }


def _cpu_model() -> str | None:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or None


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
