"""The algorithm's hyperparameters, flat, under TRL's names where the concept is the same.

An algorithm is no class: it is an estimator, loss terms and an aggregation that the config puts together
(``conf/algo/*.yaml``), with these numbers interpolated into them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch

from rlreason.advantages import Estimator
from rlreason.losses import Aggregation, Term
from rlreason.masters import Schedule, check_settings
from rlreason.shaping import Shaping
from rlreason.types import Batch


@dataclass(frozen=True)
class Algo:
    """One training algorithm.

    ``num_prompts`` groups of ``num_generations`` samples a step, over all processes; ``num_mini_batches`` optimiser
    steps over them, ``num_iterations`` times. ``max_attempts`` > 1 turns dynamic sampling on.
    ``mask_truncated_completions`` takes completions that hit the length limit out of the loss. ``warmup_steps`` and
    the schedule count training steps; ``linear`` and ``cosine`` go towards 0 at ``max_steps``.

    The terms read ``epsilon``, ``epsilon_high`` and ``beta`` (KL in the loss), the shapings ``kl_coef`` (KL in the
    reward) and ``overlong_coef``. Terms and shapings of coefficient 0 are dropped, and what they need is not computed.
    ``kl_target`` adapts both coefficients of the KL so that it comes to so many nats a token, ``None`` leaves them as
    they are. The KL is to the starting model, or, with ``ref_model_sync_steps``, to the policy of at most so many
    training steps ago.

    The critic is a head on the policy's trunk, or with ``critic_model`` a model of its own that begins as a copy of the
    policy's; ``critic_learning_rate`` None means ``learning_rate``. In the first ``critic_warmup_steps`` training steps
    it alone is trained.

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
    kl_coef: float
    kl_target: float | None
    ref_model_sync_steps: int | None
    overlong_coef: float
    epsilon: float
    epsilon_high: float
    critic_model: bool
    critic_learning_rate: float | None
    critic_warmup_steps: int
    estimator: Estimator
    terms: Mapping[str, Term]
    shaping: Mapping[str, Shaping]
    aggregation: Aggregation

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            kind, _, or_none = str(field.type).partition(" | ")
            if kind not in ("int", "float") or (or_none and value is None):
                continue
            if not isinstance(value, int if kind == "int" else int | float) or isinstance(value, bool):
                raise ValueError(f"algo.{field.name} is {value!r}; it must be a number of type {field.type}")
            if math.isnan(value) or (math.isinf(value) and field.name != "max_grad_norm"):
                raise ValueError(f"algo.{field.name} is {value}; it must be a finite number")
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
        check_settings(self, "algo")
        for key in ("beta", "kl_coef", "overlong_coef", "critic_warmup_steps"):
            if getattr(self, key) < 0:
                raise ValueError(f"algo.{key} is {getattr(self, key)}; it must be 0 (none) or more")
        for key in ("critic_learning_rate", "kl_target", "ref_model_sync_steps"):
            value = getattr(self, key)
            if value is not None and not value > 0:
                raise ValueError(f"algo.{key} is {value}; it must be above 0")
        if not self.active_terms:
            raise ValueError("every term of algo.terms has coefficient 0: there is nothing to learn from")
        estimator = type(self.estimator).__name__
        if "value" in self.estimator.needs and not self.has_critic:
            raise ValueError(f"{estimator} needs a critic: give algo.terms a ValueLoss, as algo=ppo does")
        if self.has_critic and "value" not in self.estimator.needs:
            raise ValueError(
                f"algo.terms has a critic's loss, but {estimator} says nothing about what a critic should expect: use "
                "GAE (algo=ppo), or start from an algorithm without a critic (algo=grpo)"
            )
        if self.active_shaping and self.estimator.least_reward > -math.inf:
            raise ValueError(
                f"{estimator} needs rewards of {self.estimator.least_reward:g} or more, and shaping takes from them: "
                "set algo.kl_coef and algo.overlong_coef to 0 (algo.beta puts the KL into the loss)"
            )
        if not self.needs_reference and (self.kl_target is not None or self.ref_model_sync_steps is not None):
            raise ValueError("algo.kl_target and algo.ref_model_sync_steps need a KL: give algo.beta or algo.kl_coef")
        if not self.has_critic and (self.critic_model or self.critic_learning_rate or self.critic_warmup_steps):
            raise ValueError("algo.critic_* has no effect without a critic: use algo=ppo")

    @property
    def active_terms(self) -> list[Term]:
        return [term for term in self.terms.values() if term.coefficient != 0]

    @property
    def active_shaping(self) -> list[Shaping]:
        return [shaping for shaping in self.shaping.values() if shaping.coefficient != 0]

    @property
    def term_needs(self) -> frozenset[str]:
        return frozenset().union(*(term.needs for term in self.active_terms))

    @property
    def shaping_needs(self) -> frozenset[str]:
        return frozenset().union(*(shaping.needs for shaping in self.active_shaping))

    @property
    def has_critic(self) -> bool:
        return "value" in self.term_needs

    @property
    def needs_reference(self) -> bool:
        return "ref_logp" in self.term_needs | self.shaping_needs

    @property
    def single_step(self) -> bool:
        """One optimiser step a batch, so that the old policy is the current one."""
        return self.num_iterations * self.num_mini_batches == 1

    @property
    def annotations(self) -> frozenset[str]:
        """What ``policy.annotate`` has to fill in before the update."""
        needs = (self.term_needs | self.shaping_needs | self.estimator.needs) & {"old_logp", "ref_logp", "value"}
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
