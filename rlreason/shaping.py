"""Shaping: what is added to the reward after the environment's verdict, token by token.

A shaping is a frozen dataclass, ``Batch -> (R, S)``: rewards on tokens that the policy wrote, without its
``coefficient``. They end up in ``batch.token_reward``, where every estimator counts them; ``batch.reward``, what is
correct, and dynamic sampling stay the environment's.

Left out: potentials and other shaping of an environment's own, which belongs into its ``grade``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch

from rlreason.types import Batch


class Shaping(Protocol):
    """What the learner asks of a shaping. ``needs``: which of ``old_logp`` and ``ref_logp`` the batch must have."""

    needs: ClassVar[frozenset[str]]

    @property
    def coefficient(self) -> float: ...

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Rewards (R, S), 0 off the mask."""
        ...


@dataclass(frozen=True)
class KLReward:
    """The KL penalty of RLHF, in the reward: log pi_ref - log pi_old on each token (Ziegler et al. 2019, equation 2;
    Ouyang et al. 2022). Here the plain difference (k1) is right: its expectation is the KL's, and no gradient flows."""

    coefficient: float

    needs: ClassVar[frozenset[str]] = frozenset({"old_logp", "ref_logp"})

    def __call__(self, batch: Batch) -> torch.Tensor:
        if batch.old_logp is None or batch.ref_logp is None:
            raise ValueError("KLReward needs batch.old_logp and batch.ref_logp: have policy.annotate fill them in")
        return torch.where(batch.mask, batch.ref_logp - batch.old_logp, 0.0)


@dataclass(frozen=True)
class SoftOverlong:
    """DAPO's soft overlong punishment (Yu et al. 2025, equation 13): nothing up to ``max_length`` x (1 - ``zone``)
    tokens, then falling in a line to -1 at ``max_length``, on a row's last token. ``zone`` is the share of the length
    that is punished; the paper's 4,096 of 20,480 tokens are its default."""

    coefficient: float
    max_length: int
    zone: float = 0.2

    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if self.max_length < 1 or not 0 < self.zone <= 1:
            raise ValueError(
                f"max_length is {self.max_length} and zone {self.zone}; the first must be at least 1 (use "
                "sampling.max_completion_length), the second above 0 and at most 1"
            )

    def __call__(self, batch: Batch) -> torch.Tensor:
        to_come = batch.mask.flip(1).cumsum(1).flip(1)  # (R, S) the policy's tokens from here to the end
        width = self.zone * self.max_length
        penalty = ((self.max_length - width - batch.mask.sum(1)) / width).clamp(-1, 0)  # (R,)
        return torch.where(batch.mask & (to_come == 1), penalty[:, None], 0.0)


def shaped(batch: Batch, shapings: Sequence[Shaping]) -> Batch:
    """The batch with ``token_reward`` (R, S): the environment's, if there is any, and every shaping's."""
    if not shapings:
        return batch
    total = torch.zeros_like(batch.sampler_logp) if batch.token_reward is None else batch.token_reward
    for shaping in shapings:
        total = total + shaping.coefficient * shaping(batch)
    return replace(batch, token_reward=total)
