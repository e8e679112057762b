"""Float32 master weights and the AdamW that moves them: what every kind of training here shares.

A bfloat16 parameter's gradient is added to its master's after each backward pass, and the new master is copied back
after the step. Processes sum their gradients once a step, in float32.

Left out: other optimisers. One that needs less memory belongs where models are larger than these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from accelerate import Accelerator
from torch import nn

from rlreason.config import ConfigError

Schedule = Literal["constant", "linear", "cosine"]


class Settings(Protocol):
    """AdamW's numbers. ``warmup_steps`` and the schedule count training steps; ``linear`` and ``cosine`` go towards 0
    at the last one."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def lr_scheduler_type(self) -> Schedule: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def adam_beta1(self) -> float: ...
    @property
    def adam_beta2(self) -> float: ...
    @property
    def max_grad_norm(self) -> float: ...


@dataclass(frozen=True)
class AdamW:
    """``Settings`` by themselves, for jobs that have no algorithm; under TRL's names. ValueError, naming the key."""

    learning_rate: float
    lr_scheduler_type: Schedule = "constant"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        check_settings(self, "optim")


def check_settings(settings: Settings, key: str) -> None:
    """Raise ValueError, naming the key under ``key``, for numbers that can't train."""
    if not (math.isfinite(settings.learning_rate) and settings.learning_rate > 0):
        raise ValueError(f"{key}.learning_rate is {settings.learning_rate}; it must be above 0")
    if settings.warmup_steps < 0:
        raise ValueError(f"{key}.warmup_steps is {settings.warmup_steps}; it must be 0 (none) or more")
    if not settings.max_grad_norm > 0:
        raise ValueError(f"{key}.max_grad_norm is {settings.max_grad_norm}; it must be above 0 (inf turns it off)")
    if settings.lr_scheduler_type not in get_args(Schedule):
        raise ValueError(
            f"{key}.lr_scheduler_type is {settings.lr_scheduler_type!r}; choose one of {get_args(Schedule)}"
        )


@dataclass(frozen=True)
class Part:
    """Parameters with their masters, trained at one learning rate."""

    parameters: Sequence[nn.Parameter]
    masters: Sequence[torch.Tensor]
    learning_rate: float


class Masters:
    """The master weights of ``parts`` under one AdamW. ``max_steps`` is where a decaying learning rate ends."""

    def __init__(self, parts: Sequence[Part], settings: Settings, accelerator: Accelerator, *, max_steps: int) -> None:
        self.parts = parts
        self.settings = settings
        self.accelerator = accelerator
        self.max_steps = max_steps
        groups: list[dict[str, Any]] = []
        for part in parts:
            for parameter, master in zip(part.parameters, part.masters, strict=True):
                if master is not parameter:
                    parameter.register_post_accumulate_grad_hook(_AddTo(master))
            decayed = [m for m in part.masters if m.ndim >= 2]
            plain = [m for m in part.masters if m.ndim < 2]  # norms and biases
            for masters, decay in ((decayed, settings.weight_decay), (plain, 0.0)):
                if masters:
                    groups.append({"params": masters, "weight_decay": decay, "lr": part.learning_rate})
        betas = (settings.adam_beta1, settings.adam_beta2)
        self.optimizer = torch.optim.AdamW(groups, betas=betas, fused=True)
        self._rates: list[float] = [group["lr"] for group in groups]
        self._step = 0

    def begin_step(self, step: int) -> float:
        """Set the learning rates of training step ``step``, from 1; returns the first part's."""
        self._step = step
        factor = _schedule(self.settings, step, self.max_steps)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        return self.settings.learning_rate * factor

    def step(self, trained: Sequence[Part]) -> list[float]:
        """Sum the gradients of the parts in ``trained`` over the processes, clip each part's norm, step and publish.
        Returns the norm of each part of ``parts`` before clipping, parts without parameters left out. Takes no
        step and raises ConfigError, on every process, if a norm is not finite."""
        if self.accelerator.num_processes > 1:
            for part in trained:
                for master in part.masters:
                    if master.grad is None:
                        master.grad = torch.zeros_like(master)
                    master.grad = self.sum(master.grad)
        clip = self.settings.max_grad_norm
        norms = [float(torch.nn.utils.clip_grad_norm_(part.masters, clip)) for part in self.parts if part.masters]
        if not all(map(math.isfinite, norms)):  # of summed gradients: the same on every process
            raise ConfigError(
                f"training has diverged: the gradient of step {self._step} is not finite. Nothing of this step is "
                "saved, and earlier checkpoints are whole. Lower the learning rate and start a new run, from one of "
                "them with model=<checkpoint folder> if you like"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.publish()
        return norms

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the master weights into the parameters that compute."""
        for part in self.parts:
            for parameter, master in zip(part.parameters, part.masters, strict=True):
                if master is not parameter:
                    parameter.copy_(master)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor added up over the processes."""
        return self.accelerator.reduce(tensor.to(self.accelerator.device), "sum")


class _AddTo:
    """Moves a parameter's fresh gradient to its float32 master."""

    def __init__(self, master: torch.Tensor) -> None:
        self.master = master

    def __call__(self, parameter: torch.Tensor) -> None:
        if parameter.grad is None:
            return
        if self.master.grad is None:
            self.master.grad = parameter.grad.float()
        else:
            self.master.grad += parameter.grad
        parameter.grad = None


def _schedule(settings: Settings, step: int, max_steps: int) -> float:
    """Factor on the learning rate at training step ``step``, from 1."""
    if step <= settings.warmup_steps:
        return step / settings.warmup_steps
    progress = (step - 1 - settings.warmup_steps) / max(1, max_steps - settings.warmup_steps)
    match settings.lr_scheduler_type:
        case "linear":
            return max(0.0, 1 - progress)
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        case _:
            return 1.0
