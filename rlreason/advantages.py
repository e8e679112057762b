"""Advantage estimators: what a reward says about each token.

An estimator is a frozen dataclass, ``Batch -> Batch``, that fills in ``advantage`` (and ``returns``, with a critic).
The reward stays the reward, and no row is dropped here: rows that must not be trained on lose their weight in the
loss. ``needs`` names the batch's fields that ``policy.annotate`` has to fill in first, ``min_group`` is the smallest
group that gives a signal; the config is refused where ``num_generations`` is smaller.

Several processes: an estimator that needs sums over the whole batch gets ``reduce``, which adds a tensor up over the
processes. Every process must make the call, also with no rows, or the others would wait for it.

Left out: Dr. GRPO's ``scale_rewards="none"`` is here, but scaling by the whole batch's standard deviation, RLOO and
REINFORCE++ are not: they are further estimators of the same shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol, get_args

import torch

from rlreason.types import Batch

Reduce = Callable[[torch.Tensor], torch.Tensor]
ScaleRewards = Literal["group", "none"]


def identity(tensor: torch.Tensor) -> torch.Tensor:
    """The ``reduce`` of a single process."""
    return tensor


class Estimator(Protocol):
    """What the training loop asks of an estimator."""

    needs: ClassVar[frozenset[str]]
    min_group: ClassVar[int]

    def __call__(self, batch: Batch, reduce: Reduce = identity) -> Batch:
        """The batch with ``advantage`` (R, S), 0 where the mask is False."""
        ...


@dataclass(frozen=True)
class GroupRelative:
    """GRPO's advantage: how much better a rollout was than the others of its group.

    A_i = (r_i - mean(r)) / (std(r) + ``epsilon_std``), over the graded rollouts of the group (Shao et al. 2024,
    "DeepSeekMath", section 4.1.2). The standard deviation has Bessel's correction (n - 1) and 1e-4 is added to it, as
    in TRL's GRPOTrainer. ``scale_rewards="none"`` leaves the division out (Liu et al. 2025, "Understanding
    R1-Zero-like training", Dr. GRPO: the division favours questions that are nearly always or nearly never solved).

    A rollout with several rows counts once in the baseline, and each of its rows gets its advantage. Rows that are
    not ``graded`` leave the baseline and get 0. Rows that are graded but not ``live`` (a truncated answer that is
    masked out) stay in it, and get an advantage that the loss gives no weight. Equal rewards, or a single graded
    rollout, give exactly 0.

    ``reduce`` is not used: a process holds whole groups.
    """

    scale_rewards: ScaleRewards = "group"
    epsilon_std: float = 1e-4

    needs: ClassVar[frozenset[str]] = frozenset()
    min_group: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.scale_rewards not in get_args(ScaleRewards):
            raise ValueError(f"scale_rewards is {self.scale_rewards!r}; choose one of {get_args(ScaleRewards)}")
        if self.epsilon_std < 0:
            raise ValueError(f"epsilon_std is {self.epsilon_std}; it must be 0 or more")

    def __call__(self, batch: Batch, reduce: Reduce = identity) -> Batch:
        """Fill in ``advantage`` (R, S). Raises ValueError if a graded reward is NaN or infinite."""
        _check_rewards(batch)
        first = _first_rows(batch.rollout)  # (R,)
        advantage = torch.zeros_like(batch.reward)  # (R,)
        for group in torch.unique(batch.group):
            rows = (batch.group == group) & batch.graded  # (R,)
            rewards = batch.reward[rows & first]  # (graded rollouts of the group,)
            # Not by the deviations: the float mean of equal rewards can differ from each of them, and dividing
            # that rounding error by a standard deviation of the same size would make a signal of it.
            if len(rewards) < 2 or rewards.max() == rewards.min():
                continue
            centred = batch.reward[rows] - rewards.mean()
            scale = rewards.std() + self.epsilon_std if self.scale_rewards == "group" else 1.0
            advantage[rows] = centred / scale
        return replace(batch, advantage=torch.where(batch.mask, advantage[:, None], 0.0))


@dataclass(frozen=True)
class GAE:
    """PPO's advantage: generalised advantage estimation with a critic (Schulman et al. 2016, equation 16).

    ``value[r, t]`` is the critic's estimate for the state in which token t is about to be written. With u the next
    token after t that the policy wrote, delta_t = r_t + gamma V_u - V_t and A_t = delta_t + gamma lambda A_u. Tokens
    that the environment wrote are part of the state and no actions, so they are stepped over and cost no discount.
    ``returns`` = advantage + value is the critic's target, taken before whitening.

    The reward sits on the last token that the policy wrote in the row, on top of ``token_reward``. Rows of one rollout
    are episodes of their own that each end with its reward. A row without policy tokens has no place for it.

    Nothing is bootstrapped at the end of a row, not even of a truncated one: the length limit belongs to the task,
    and the verdict on what was written until then is final, so no reward is missing that V would have to stand for.

    Rows that are not ``graded`` get 0 in both. ``whiten_advantages`` shifts and scales to mean 0 and standard deviation
    1 (Bessel's correction) over the live policy tokens of all processes, as TRL's PPOTrainer does.
    The defaults of ``gamma`` and ``gae_lambda`` are TRL's too.
    """

    gamma: float = 1.0
    gae_lambda: float = 0.95
    whiten_advantages: bool = True

    needs: ClassVar[frozenset[str]] = frozenset({"value"})
    min_group: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1")

    def __call__(self, batch: Batch, reduce: Reduce = identity) -> Batch:
        """Fill in ``advantage`` and ``returns`` (R, S).

        Raises ValueError if ``value`` is missing, a graded reward is NaN or infinite, or ``token_reward`` pays for a
        token that the policy didn't write.
        """
        if batch.value is None:
            raise ValueError("GAE needs batch.value, which is None: give the policy a critic, or use a group estimator")
        _check_rewards(batch)
        acted = batch.mask & batch.graded[:, None]  # (R, S)
        value = torch.where(acted, batch.value.detach(), 0.0)  # (R, S)
        reward = _reward_per_token(batch, acted, value)  # (R, S)

        advantage = torch.zeros_like(value)  # (R, S)
        next_value = next_advantage = value.new_zeros(len(value))  # (R,)
        for t in reversed(range(value.shape[1])):
            here = acted[:, t]
            delta = reward[:, t] + self.gamma * next_value - value[:, t]
            next_advantage = torch.where(here, delta + self.gamma * self.gae_lambda * next_advantage, next_advantage)
            next_value = torch.where(here, value[:, t], next_value)
            advantage[:, t] = torch.where(here, next_advantage, 0.0)

        returns = advantage + value
        if self.whiten_advantages:
            advantage = _whiten(advantage, acted & batch.live[:, None], reduce)
        return replace(batch, advantage=torch.where(acted, advantage, 0.0), returns=returns)


def _check_rewards(batch: Batch) -> None:
    bad = batch.graded & ~batch.reward.isfinite()
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"row {row} (rollout {int(batch.rollout[row])}) was graded with reward {float(batch.reward[row])}; "
            "rewards must be finite: the environment's grade() returned this, or a wrong weight of a reward part"
        )


def _first_rows(rollout: torch.Tensor) -> torch.Tensor:
    """Which rows are the first of their rollout: (R,) int64 -> (R,) bool."""
    same_as_earlier: torch.Tensor = (rollout[:, None] == rollout[None, :]).tril(diagonal=-1)  # (R, R)
    return ~same_as_earlier.any(dim=1)


def _reward_per_token(batch: Batch, acted: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Rewards on the tokens that earned them: (R, S), in ``value``'s dtype."""
    to_come = acted.flip(1).cumsum(1).flip(1)  # (R, S) the policy's tokens from here to the end
    reward = torch.where(acted & (to_come == 1), batch.reward[:, None].to(value.dtype), 0.0)
    if batch.token_reward is None:
        return reward
    stray = (batch.token_reward != 0) & ~batch.mask & batch.graded[:, None]
    if stray.any():
        row, token = (int(i) for i in stray.nonzero()[0])
        raise ValueError(
            f"token_reward[{row}, {token}] is {float(batch.token_reward[row, token])} on a token that the policy "
            "didn't write; put it on the policy's last token before that"
        )
    return reward + torch.where(acted, batch.token_reward.to(value.dtype), 0.0)


def _whiten(advantage: torch.Tensor, counted: torch.Tensor, reduce: Reduce) -> torch.Tensor:
    """Mean 0 and standard deviation 1 over the counted tokens of all processes. (R, S), (R, S) -> (R, S)."""
    count, total = reduce(torch.stack([counted.sum().to(advantage.dtype), advantage[counted].sum()]))
    centred = advantage - total / count.clamp(min=1)
    # In a second round, not from the sum of squares, which cancels badly where the mean is large.
    variance = reduce(centred[counted].square().sum()) / (count - 1).clamp(min=1)
    whitened: torch.Tensor = centred * torch.rsqrt(variance + 1e-8)
    return whitened
