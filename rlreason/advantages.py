"""Advantage estimators: what a reward says about each token.

An estimator is a frozen dataclass, ``Batch -> Batch``, that fills in ``advantage`` (and ``returns``, with a critic).
The reward stays the reward; what shaping added to it (``token_reward``) counts too. A row whose tokens must not be
trained on gets no weight in the loss for not being ``live``. ``needs`` names the batch's fields that
``policy.annotate`` has to fill in first, ``min_group`` is the smallest group that gives a signal, and
``least_reward`` the smallest reward that makes sense; the config is refused where they aren't met.

Several processes: an estimator that needs sums over the whole batch gets ``reduce``, which adds a tensor up over the
processes. Every process must make the call, also with no rows, or the others would wait for it.

Left out: GRPO scaled by the whole batch's standard deviation, which ``ReinforcePlusPlus(baseline="group")`` is but for
the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol, get_args

import torch

from rlreason.types import Batch

Reduce = Callable[[torch.Tensor], torch.Tensor]
ScaleRewards = Literal["group", "none"]
Baseline = Literal["batch", "group"]


def identity(tensor: torch.Tensor) -> torch.Tensor:
    """The ``reduce`` of a single process."""
    return tensor


class Estimator(Protocol):
    """What the training loop asks of an estimator."""

    needs: ClassVar[frozenset[str]]
    least_reward: ClassVar[float]

    @property
    def min_group(self) -> int: ...

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
    least_reward: ClassVar[float] = -math.inf

    def __post_init__(self) -> None:
        _check_choice("scale_rewards", self.scale_rewards, get_args(ScaleRewards))
        if self.epsilon_std < 0:
            raise ValueError(f"epsilon_std is {self.epsilon_std}; it must be 0 or more")

    def __call__(self, batch: Batch, reduce: Reduce = identity) -> Batch:
        """Fill in ``advantage`` (R, S). Raises ValueError if a graded reward is NaN or infinite."""

        def advantage(rewards: torch.Tensor) -> torch.Tensor:
            scale = rewards.std() + self.epsilon_std if self.scale_rewards == "group" else 1.0
            return (rewards - rewards.mean()) / scale

        return _within_groups(batch, advantage)


@dataclass(frozen=True)
class RLOO:
    """Leave-one-out: the baseline of a rollout is the mean reward of the others of its group (Ahmadian et al. 2024,
    "Back to basics", equation 7; Kool et al. 2019).

    A_i = r_i - mean(r_j, j != i) = n / (n - 1) (r_i - mean(r)) for n graded rollouts. Not touched by its own rollout,
    the baseline leaves the policy gradient unbiased; ``GroupRelative(scale_rewards="none")`` is (n - 1) / n of it.
    Otherwise as ``GroupRelative``.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    min_group: ClassVar[int] = 2
    least_reward: ClassVar[float] = -math.inf

    def __call__(self, batch: Batch, reduce: Reduce = identity) -> Batch:
        """Fill in ``advantage`` (R, S). Raises ValueError if a graded reward is NaN or infinite."""
        return _within_groups(batch, lambda rewards: (rewards - rewards.mean()) * (len(rewards) / (len(rewards) - 1)))


@dataclass(frozen=True)
class MaxRL:
    """Maximum likelihood instead of expected reward: A_i = (r_i - mean(r)) / mean(r) (Tajwar et al. 2026, "Maximum
    likelihood reinforcement learning", arXiv:2602.02710).

    For rewards of 0 and 1, n samples a group and a loss that adds a completion's tokens up (``ConstantLength``), the
    gradient is, in expectation, that of the sum of pass@k / k over k from 1 to n - 1, which is log p(correct) but for
    the terms from n on: hard problems weigh more, by up to 1 / p. (The paper's estimator reaches k = n by pushing down
    groups without any reward; here they give 0, as for the others.) Otherwise as ``GroupRelative``.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    min_group: ClassVar[int] = 2
    least_reward: ClassVar[float] = 0.0

    def __call__(self, batch: Batch, reduce: Reduce = identity) -> Batch:
        """Fill in ``advantage`` (R, S). Raises ValueError if a graded reward is NaN, infinite or below 0."""
        low = batch.graded & (_total_rewards(batch) < 0)
        if low.any():
            row = int(low.nonzero()[0])
            raise ValueError(
                f"row {row} (rollout {int(batch.rollout[row])}) has reward {float(_total_rewards(batch)[row])}; MaxRL "
                "divides by a group's mean reward, which must not be below 0"
            )
        return _within_groups(batch, lambda rewards: (rewards - rewards.mean()) / rewards.mean())


@dataclass(frozen=True)
class Rewarded:
    """Expert iteration: imitate the rewarded, ignore the rest (Anthony et al. 2017, in the form of STaR, Zelikman et
    al. 2022).

    The advantage is 1 for a rollout of reward ``threshold`` or more; the others are no longer live, so that with
    ``PolicyGradient`` and ``TokenMean`` the loss is that of supervised fine-tuning on the rewarded.
    """

    threshold: float = 1.0

    needs: ClassVar[frozenset[str]] = frozenset()
    min_group: ClassVar[int] = 1
    least_reward: ClassVar[float] = -math.inf

    def __call__(self, batch: Batch, reduce: Reduce = identity) -> Batch:
        """Fill in ``advantage`` (R, S), narrow ``live``. Raises ValueError if a graded reward is NaN or infinite."""
        _check_rewards(batch)
        good = batch.live & batch.graded & (_total_rewards(batch) >= self.threshold)  # (R,)
        return replace(batch, live=good, advantage=(batch.mask & good[:, None]).to(batch.reward.dtype))


@dataclass(frozen=True)
class ReinforcePlusPlus:
    """REINFORCE++: the return from each token on, whitened over the whole batch (Hu et al. 2025, "REINFORCE++: a simple
    and efficient approach for aligning large language models", arXiv:2501.03262).

    The mean over the live tokens of all processes is the baseline, so no group is needed. ``baseline="group"`` takes
    the group's mean off the reward first, which the paper calls REINFORCE++-baseline; a token's return is then the
    reward so centred, and what shaping adds from it on. Rows that are not ``graded`` get 0.
    """

    baseline: Baseline = "batch"

    needs: ClassVar[frozenset[str]] = frozenset()
    least_reward: ClassVar[float] = -math.inf

    def __post_init__(self) -> None:
        _check_choice("baseline", self.baseline, get_args(Baseline))

    @property
    def min_group(self) -> int:
        return 2 if self.baseline == "group" else 1

    def __call__(self, batch: Batch, reduce: Reduce = identity) -> Batch:
        """Fill in ``advantage`` (R, S). Raises ValueError if a graded reward is NaN or infinite, or ``token_reward``
        pays for a token that the policy didn't write."""
        _check_rewards(batch)
        reward = batch.reward
        if self.baseline == "group":
            reward = _compare(replace(batch, token_reward=None), lambda rewards: rewards - rewards.mean())
        acted = batch.mask & batch.graded[:, None]  # (R, S)
        per_token = _reward_per_token(replace(batch, reward=reward), acted)
        advantage = _lambda_advantage(batch, acted, per_token, torch.zeros_like(per_token), 1.0, 1.0)
        advantage = _whiten(advantage, acted & batch.live[:, None], reduce)
        return replace(batch, advantage=torch.where(acted, advantage, 0.0))


@dataclass(frozen=True)
class GAE:
    """PPO's advantage: generalised advantage estimation with a critic (Schulman et al. 2016, equation 16).

    ``value[r, t]`` is the critic's estimate for the state in which token t is about to be written. With u the next
    token after t that the policy wrote, delta_t = r_t + gamma V_u - V_t and A_t = delta_t + gamma lambda A_u. Tokens
    that the environment wrote are part of the state and no actions, so they are stepped over and cost no discount.
    ``returns`` = advantage + value is the critic's target, taken before whitening.

    The reward sits on the last token that the policy wrote in the rollout, on top of ``token_reward`` (what a turn or a
    token earned by itself). Rows of one rollout are its turns: after the last token of a row comes the first of the
    next. A last row without policy tokens has no place for the reward.

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
    least_reward: ClassVar[float] = -math.inf

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
        reward = _reward_per_token(batch, acted)  # (R, S)
        advantage = _lambda_advantage(batch, acted, reward, value, self.gamma, self.gae_lambda)
        returns = advantage + value
        if self.whiten_advantages:
            advantage = _whiten(advantage, acted & batch.live[:, None], reduce)
        return replace(batch, advantage=torch.where(acted, advantage, 0.0), returns=returns)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; choose one of {choices}")


def _check_rewards(batch: Batch) -> None:
    bad = batch.graded & ~batch.reward.isfinite()
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"row {row} (rollout {int(batch.rollout[row])}) was graded with reward {float(batch.reward[row])}; "
            "rewards must be finite: the environment's grade() returned this, or a wrong weight of a reward part"
        )


def _within_groups(batch: Batch, advantage_of: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
    """The batch with ``_compare``'s advantage on every token."""
    return replace(batch, advantage=torch.where(batch.mask, _compare(batch, advantage_of)[:, None], 0.0))


def _compare(batch: Batch, advantage_of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """What a row's rollout (R,) has by comparison with its group: ``advantage_of`` maps the rewards of a group's graded
    rollouts to their advantages. Where there is nothing to compare, it is exactly 0."""
    _check_rewards(batch)
    total = _total_rewards(batch)  # (R,)
    first = ~_earlier(batch.rollout).any(1)  # (R,) rows that are the first of their rollout
    advantage = torch.zeros_like(batch.reward)  # (R,)
    for group in torch.unique(batch.group):
        counted = (batch.group == group) & batch.graded & first  # (R,)
        rewards = total[counted]
        # Not by the deviations: the float mean of equal rewards can differ from each of them, and dividing
        # that rounding error by a standard deviation of the same size would make a signal of it.
        if len(rewards) < 2 or rewards.max() == rewards.min():
            continue
        advantage[counted] = advantage_of(rewards)
    # every row of a rollout has what its first row has
    _, owner = batch.rollout.unique(return_inverse=True)
    by_rollout = torch.zeros_like(advantage).index_add(0, owner, torch.where(first, advantage, 0.0))
    return torch.where(batch.graded, by_rollout[owner], 0.0)


def _earlier(rollout: torch.Tensor) -> torch.Tensor:
    """(R, R) bool: whether row j is an earlier row of row i's rollout."""
    same: torch.Tensor = rollout[:, None] == rollout[None, :]
    return same.tril(diagonal=-1)


def _total_rewards(batch: Batch) -> torch.Tensor:
    """What a row's rollout earned, (R,): its reward, and what its tokens earned besides."""
    if batch.token_reward is None:
        return batch.reward
    _, owner = batch.rollout.unique(return_inverse=True)
    of_row = torch.where(batch.mask, batch.token_reward, 0.0).sum(1).to(batch.reward.dtype)
    return batch.reward + torch.zeros_like(batch.reward).index_add(0, owner, of_row)[owner]


def _reward_per_token(batch: Batch, acted: torch.Tensor) -> torch.Tensor:
    """Rewards on the tokens that earned them, the rollout's on its last: (R, S)."""
    is_last = ~_earlier(batch.rollout).any(0)  # (R,) rows that no later row of their rollout follows
    to_come = acted.flip(1).cumsum(1).flip(1)  # (R, S) the policy's tokens from here to the end
    end = acted & (to_come == 1) & is_last[:, None]
    reward = torch.where(end, batch.reward[:, None], 0.0)
    if batch.token_reward is None:
        return reward
    stray = (batch.token_reward != 0) & ~batch.mask & batch.graded[:, None]
    if stray.any():
        row, token = (int(i) for i in stray.nonzero()[0])
        raise ValueError(
            f"token_reward[{row}, {token}] is {float(batch.token_reward[row, token])} on a token that the policy "
            "didn't write; put it on the policy's last token before that"
        )
    return reward + torch.where(acted, batch.token_reward.to(reward.dtype), 0.0)


def _lambda_advantage(
    batch: Batch, acted: torch.Tensor, reward: torch.Tensor, value: torch.Tensor, gamma: float, gae_lambda: float
) -> torch.Tensor:
    """Schulman et al. 2016, equation 16, backwards over each rollout: from the last token of its last row to the first
    of its first, tokens that are not ``acted`` stepped over. All (R, S)."""
    turn = _earlier(batch.rollout).sum(1)  # (R,) which row of its rollout
    _, owner = batch.rollout.unique(return_inverse=True)
    advantage = torch.zeros_like(value)
    coming_value = coming_advantage = value.new_zeros(len(value))  # (rollouts,) of the token after
    for number in turn.unique().flip(0):
        rows = (turn == number).nonzero().squeeze(1)
        here, earned, expected, found = acted[rows], reward[rows], value[rows], advantage[rows]
        next_value, next_advantage = coming_value[owner[rows]], coming_advantage[owner[rows]]
        for t in reversed(range(value.shape[1])):
            delta = earned[:, t] + gamma * next_value - expected[:, t]
            next_advantage = torch.where(here[:, t], delta + gamma * gae_lambda * next_advantage, next_advantage)
            next_value = torch.where(here[:, t], expected[:, t], next_value)
            found[:, t] = torch.where(here[:, t], next_advantage, 0.0)
        advantage[rows] = found
        coming_value = coming_value.index_copy(0, owner[rows], next_value)
        coming_advantage = coming_advantage.index_copy(0, owner[rows], next_advantage)
    return advantage


def _whiten(advantage: torch.Tensor, counted: torch.Tensor, reduce: Reduce) -> torch.Tensor:
    """Mean 0 and standard deviation 1 over the counted tokens of all processes. (R, S), (R, S) -> (R, S)."""
    count, total = reduce(torch.stack([counted.sum().to(advantage.dtype), advantage[counted].sum()]))
    centred = advantage - total / count.clamp(min=1)
    # In a second round, not from the sum of squares, which cancels badly where the mean is large.
    variance = reduce(centred[counted].square().sum()) / (count - 1).clamp(min=1)
    # Where all are equal, what is left is the rounding of their mean: no signal, and not to be made one.
    rounding = 1e-6 * (total / count.clamp(min=1)).abs().clamp(min=1)
    whitened: torch.Tensor = torch.where(variance.sqrt() > rounding, centred * torch.rsqrt(variance + 1e-8), 0.0)
    return whitened
