"""Checkpoints: written under another name and renamed when whole, so a kill at any moment leaves none half-written.

``checkpoints/step-000123/`` is a model folder that ``from_pretrained`` of any tool loads (float32 weights, tokenizer,
template); ``training_state/`` in it holds optimiser, critic, random number generators, and the sampler's state if it
has any. With LoRA the folder's weights are merged ones, and ``adapter/`` holds the adapter, which is what training goes
on from. Left out: fsync. A killed process loses nothing, since the kernel holds what was written; a power failure may
cost the newest checkpoint.
"""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from omegaconf import OmegaConf

from rlreason.config import CONF

_NAME = re.compile(r"step-(\d+)")


class Weights(Protocol):
    """A model that writes a folder of its float32 master weights and reads them again, by name of the parameter."""

    def save(self, folder: str, masters: list[torch.Tensor]) -> None: ...
    def saved_weights(self, folder: str) -> dict[str, torch.Tensor]: ...


class Learner(Protocol):
    """What is saved: a model, its master weights, and the state of what trains them."""

    @property
    def policy(self) -> Weights: ...
    @property
    def masters(self) -> list[torch.Tensor]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], model_weights: dict[str, torch.Tensor]) -> None: ...


class Stateful(Protocol):
    """Something else that is saved: the sampler of a run."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def save(
    out: Path,
    step: int,
    learner: Learner,
    accelerator: Accelerator,
    sampler: Stateful | None = None,
    *,
    keep: int,
    every: int,
) -> Path:
    """Write the checkpoint of ``step`` into run folder ``out`` and remove all but the newest ``keep``. An older one
    whose step is no multiple of ``every`` was written for a signal: it goes first, so that a run which was stopped
    ends with the checkpoints of one which was not. Every process must call it."""
    folder = out / "checkpoints" / f"step-{step:06d}"
    work = folder.with_name(f".{folder.name}.tmp")
    state = work / "training_state"
    if accelerator.is_main_process:
        for left in folder.parent.glob(".step-*"):  # by a process that was killed
            shutil.rmtree(left)
        state.mkdir(parents=True)
        learner.policy.save(str(work), learner.masters)
        torch.save(learner.state_dict(), state / "learner.pt")
        if sampler is not None and (chosen := sampler.state_dict()):
            torch.save(chosen, state / "sampler.pt")
    accelerator.wait_for_everyone()
    torch.save(_random_state(), state / f"random-{accelerator.process_index}.pt")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        work.rename(folder)
        *older, newest = found(out)
        regular = [*(f for f in older if step_of(f) % every == 0), newest]
        for old in set(older) - set(regular[-keep:]):
            gone = old.rename(old.with_name(f".{old.name}.old"))  # first, so that no half of it has its name
            shutil.rmtree(gone)
    return folder


def found(out: Path) -> list[Path]:
    """The whole checkpoints of a run folder, oldest first."""
    folders = (out / "checkpoints").glob("step-*")
    return sorted((f for f in folders if _NAME.fullmatch(f.name)), key=step_of)


def step_of(folder: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(folder.name.removeprefix("step-"))


def latest(run: Path) -> Path:
    """The newest checkpoint of a run folder. Raises FileNotFoundError if there is none."""
    folders = found(run)
    if not folders:
        raise FileNotFoundError(f"{run} holds no checkpoint (looked for {run / 'checkpoints' / 'step-*'})")
    return folders[-1]


def weights_of(model: str) -> str:
    """Where the weights are of a name of ``conf/model``, a hub id, a run folder (its newest checkpoint) or a model
    folder. Raises FileNotFoundError for a folder that is not there, and for a run folder without a checkpoint."""
    preset = CONF / "model" / f"{model}.yaml"
    if "/" not in model and preset.is_file():
        return str(OmegaConf.select(OmegaConf.load(preset), "path"))
    if (Path(model) / "config.yaml").is_file():
        return str(latest(Path(model)))
    # Refused when it is loaded, too; but that may be hours later.
    if (model.startswith((".", "/", "~", "runs/")) or model.count("/") > 1) and not Path(model).is_dir():
        raise FileNotFoundError(f"there is no folder {model} (looked in {Path.cwd()})")
    return model


def load(folder: Path, learner: Learner, accelerator: Accelerator, sampler: Stateful | None = None) -> None:
    """Put ``learner``, its policy, ``sampler`` and this process's random number generators where ``save`` left them."""
    weights = learner.policy.saved_weights(str(folder))
    state = torch.load(folder / "training_state" / "learner.pt", map_location=accelerator.device, weights_only=False)
    learner.load_state_dict(state, weights)
    random_file = folder / "training_state" / f"random-{accelerator.process_index}.pt"
    if not random_file.exists():
        raise FileNotFoundError(
            f"{random_file} is missing: the run had fewer processes; resume with as many as it was started with"
        )
    _set_random_state(torch.load(random_file, weights_only=False))
    if sampler is not None and sampler.state_dict():
        sampler_file = folder / "training_state" / "sampler.pt"
        if not sampler_file.exists():
            raise FileNotFoundError(f"{sampler_file} is missing: the run would forget which problems were solved")
        sampler.load_state_dict(torch.load(sampler_file, weights_only=False))


def _random_state() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
