"""Importance weights against the difference between the rollout engine, which sampled, and the trainer.

A policy term of ``rlreason.losses`` multiplies each token's loss by such a weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch

from rlreason.batch import live_tokens
from rlreason.types import Batch

Metrics = dict[str, torch.Tensor]
Level = Literal["token", "sequence"]


class Mismatch(Protocol):
    """Corrects for an engine that samples from slightly other probabilities than the trainer computes, by a weight on
    each token that depends on pi_old / pi_sampler."""

    def __call__(self, old_logp: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """The weight (R, S), without gradient and 1 off the live tokens; its mean and extremes as metrics."""
        ...


@dataclass(frozen=True)
class TruncatedImportance:
    """w = min(pi_old / pi_sampler, ``cap``) (truncated importance sampling: Yao et al. 2025, "Your efficient RL
    framework secretly brings you off-policy RL training"); TRL's ``token_truncate``.

    ``level="sequence"`` takes the ratio of the whole row, the product over its live tokens, which is the unbiased one
    and has the larger variance; TRL's ``sequence_truncate``.
    """

    cap: float = 2.0
    level: Level = "token"

    def __post_init__(self) -> None:
        check_level(self.level)
        if self.cap <= 0:
            raise ValueError(f"cap is {self.cap}; it must be above 0 (2 is usual)")

    def __call__(self, old_logp: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """See ``Mismatch``; the metrics are of the weight after truncation, as in TRL."""
        return _reported(_mismatch_ratio(old_logp, batch, self.level).clamp(max=self.cap), batch)


@dataclass(frozen=True)
class MaskedImportance:
    """w = pi_old / pi_sampler where it lies between ``low`` and ``cap``, else 0: what the two disagree on isn't learned
    from (IcePop, Ling team 2025, "Every step evolves", arXiv:2510.18855, by token; Liu et al. 2025, "When speed kills
    stability", by sequence). TRL's ``token_mask`` and ``sequence_mask``; ``level`` as in ``TruncatedImportance``.
    """

    cap: float = 2.0
    low: float = 0.0
    level: Level = "token"

    def __post_init__(self) -> None:
        check_level(self.level)
        if not 0 <= self.low < 1 < self.cap:
            raise ValueError(f"low is {self.low} and cap {self.cap}; the first must lie below 1, the second above")

    def __call__(self, old_logp: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """See ``Mismatch``."""
        ratio = _mismatch_ratio(old_logp, batch, self.level)
        return _reported(torch.where((ratio >= self.low) & (ratio <= self.cap), ratio, 0.0), batch)


def over_rows(per_token: torch.Tensor, batch: Batch, *, mean: bool = False) -> torch.Tensor:
    """The sum or mean over a row's live tokens, on each of them; 0 elsewhere. (R, S) -> (R, S)."""
    live = live_tokens(batch)
    total = torch.where(live, per_token, 0.0).sum(1, keepdim=True)
    return torch.where(live, total / live.sum(1, keepdim=True).clamp(min=1) if mean else total, 0.0)


def _mismatch_ratio(old_logp: torch.Tensor, batch: Batch, level: Level) -> torch.Tensor:
    """pi_old / pi_sampler (R, S), 1 off the live tokens, without gradient."""
    difference = torch.where(live_tokens(batch), old_logp - batch.sampler_logp, 0.0).detach()
    return (over_rows(difference, batch) if level == "sequence" else difference).exp()


def _reported(weight: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, Metrics]:
    live = live_tokens(batch)
    shown = torch.where(live, weight, 0.0)
    name = "sampling/importance_sampling_ratio"
    return torch.where(live, weight, 1.0), {f"{name}/{part}": shown for part in ("mean", "min", "max")}


def check_level(level: str) -> None:
    """Raise ValueError for what is no ``Level``."""
    if level not in get_args(Level):
        raise ValueError(f"the level is {level!r}; choose one of {get_args(Level)}")
