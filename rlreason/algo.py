"""The algorithm's hyperparameters, flat, under TRL's names where the concept is the same.

An algorithm is no class: it is an estimator, loss terms and an aggregation that the config puts together
(``conf/algo/*.yaml``), with these numbers interpolated into them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, get_args

import torch

from rlreason.advantages import Estimator
from rlreason.losses import Aggregation, Term
from rlreason.types import Batch

Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Algo:
    """One training algorithm.

    ``num_prompts`` groups of ``num_generations`` samples a step, over all processes; ``num_mini_batches`` optimiser
    steps over them, ``num_iterations`` times. ``max_attempts`` > 1 turns dynamic sampling on.
    ``mask_truncated_completions`` takes completions that hit the length limit out of the loss. ``warmup_steps`` and
    the schedule count training steps; ``linear`` and ``cosine`` go towards 0 at ``max_steps``. The terms read
    ``beta``, ``epsilon`` and ``epsilon_high``. Terms of coefficient 0 are dropped, and what they need is not computed.

    Raises ValueError, naming the key, for a combination that can't learn.
    """

    num_prompts: int
    num_generations: int
    num_iterations: int
    num_mini_batches: int
    max_attempts: int
    mask_truncated_completions: bool
    learning_rate: float
    lr_scheduler_type: Schedule
    warmup_steps: int
    weight_decay: float
    adam_beta1: float
    adam_beta2: float
    max_grad_norm: float
    beta: float
    epsilon: float
    epsilon_high: float
    estimator: Estimator
    terms: Mapping[str, Term]
    aggregation: Aggregation

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type in ("int", "float") and not isinstance(value, int if field.type == "int" else int | float):
                raise ValueError(f"algo.{field.name} is {value!r}; it must be a number of type {field.type}")
        for key in ("num_prompts", "num_generations", "num_iterations", "num_mini_batches", "max_attempts"):
            if getattr(self, key) < 1:
                raise ValueError(f"algo.{key} is {getattr(self, key)}; it must be at least 1")
        if self.num_generations < self.estimator.min_group:
            raise ValueError(
                f"algo.num_generations is {self.num_generations}, but {type(self.estimator).__name__} compares the "
                f"samples of a group with each other: use at least {self.estimator.min_group}, or algo=ppo"
            )
        if self.max_attempts > 1 and self.num_generations < 2:
            raise ValueError("dynamic sampling (algo.max_attempts > 1) needs algo.num_generations of at least 2")
        if self.num_mini_batches > self.num_prompts:
            raise ValueError(
                f"algo.num_mini_batches={self.num_mini_batches} exceeds algo.num_prompts={self.num_prompts}: "
                "a mini-batch holds whole groups"
            )
        if self.beta < 0:
            raise ValueError(f"algo.beta is {self.beta}; it must be 0 (no KL) or more")
        if not self.learning_rate > 0:
            raise ValueError(f"algo.learning_rate is {self.learning_rate}; it must be above 0")
        if not self.max_grad_norm > 0:
            raise ValueError(f"algo.max_grad_norm is {self.max_grad_norm}; it must be above 0 (inf turns it off)")
        if self.lr_scheduler_type not in get_args(Schedule):
            raise ValueError(
                f"algo.lr_scheduler_type is {self.lr_scheduler_type!r}; choose one of {get_args(Schedule)}"
            )
        if not self.active_terms:
            raise ValueError("every term of algo.terms has coefficient 0: there is nothing to learn from")
        needs_critic = "value" in self.estimator.needs
        has_critic = any("value" in term.needs for term in self.active_terms)
        if needs_critic and not has_critic:
            raise ValueError(f"{type(self.estimator).__name__} needs a critic: give algo.terms a ValueLoss")

    @property
    def active_terms(self) -> list[Term]:
        return [term for term in self.terms.values() if term.coefficient != 0]

    @property
    def term_needs(self) -> frozenset[str]:
        return frozenset().union(*(term.needs for term in self.active_terms))

    @property
    def single_step(self) -> bool:
        """One optimiser step a batch, so that the old policy is the current one."""
        return self.num_iterations * self.num_mini_batches == 1

    @property
    def annotations(self) -> frozenset[str]:
        """What ``policy.annotate`` has to fill in before the update."""
        needs = (self.term_needs | self.estimator.needs) & {"ref_logp", "value"}
        return needs if self.single_step else needs | {"old_logp"}

    @property
    def skips_zero_advantage(self) -> bool:
        """Whether rows of zero advantage contribute nothing, so that they need not be computed."""
        return all(term.zero_without_advantage for term in self.active_terms)

    def trains_on(self, batch: Batch) -> torch.Tensor:
        """(R,) bool: rows that can change the gradient. Those that count and, unless a term wants all, have an
        advantage."""
        needed = batch.live
        if self.skips_zero_advantage and batch.advantage is not None:
            needed = needed & (batch.advantage != 0).any(1)
        return needed
