from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from rlreason.advantages import GAE, RLOO, Estimator, GroupRelative, MaxRL, ReinforcePlusPlus, Rewarded
from rlreason.types import Batch


def make_batch(
    mask: list[list[int]],
    reward: list[float],
    *,
    group: list[int] | None = None,
    rollout: list[int] | None = None,
    graded: list[int] | None = None,
    live: list[int] | None = None,
    value: Any = None,
    token_reward: Any = None,
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """A batch that holds what an estimator reads; the rest is filler."""
    rows, written = len(reward), torch.tensor(mask, dtype=torch.bool).reshape(len(mask), len(mask[0]) if mask else 0)
    everyone = [1] * rows

    def per_token(values: Any) -> torch.Tensor | None:
        return None if values is None else torch.as_tensor(values, dtype=dtype)

    return Batch(
        tokens=torch.zeros(written.shape, dtype=torch.int64),
        attention=torch.ones_like(written),
        mask=written,
        prompt_length=torch.ones(rows, dtype=torch.int64),
        rollout=torch.tensor(list(range(rows)) if rollout is None else rollout, dtype=torch.int64),
        group=torch.tensor([0] * rows if group is None else group, dtype=torch.int64),
        sampler_logp=torch.zeros(written.shape),
        reward=torch.tensor(reward, dtype=dtype),
        correct=torch.full((rows,), math.nan),
        truncated=torch.zeros(rows, dtype=torch.bool),
        graded=torch.tensor(everyone if graded is None else graded, dtype=torch.bool),
        live=torch.tensor(everyone if live is None else live, dtype=torch.bool),
        value=per_token(value),
        token_reward=per_token(token_reward),
    )


def close(actual: torch.Tensor | None, expected: Any, tolerance: float = 1e-6) -> None:
    assert actual is not None
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=tolerance)


# --- GroupRelative


def test_group_relative_by_hand() -> None:
    # Two groups, their rows mixed. Group 7: rewards 1, 0, 0, 3. Mean 1, deviations 0 -1 -1 2, squares sum to 6; with
    # Bessel's correction the variance is 6 / 3 = 2 (without it 6 / 4): std 1.4142136.
    #   -1 / (1.4142136 + 0.0001) = -0.7070568,  2 / 1.4143136 = 1.4141136
    # Group 2: rewards 1, 0. Mean 0.5, deviations +-0.5, variance 0.25 + 0.25 = 0.5, std 0.7071068.
    #   0.5 / 0.7072068 = 0.7070068
    batch = make_batch(
        mask=[[0, 1, 1], [0, 1, 0], [0, 0, 1], [0, 1, 1], [0, 1, 1], [0, 1, 1]],
        reward=[1, 1, 0, 0, 0, 3],
        group=[7, 2, 7, 2, 7, 7],
    )
    out = GroupRelative()(batch)
    close(
        out.advantage,
        [
            [0, 0, 0],
            [0, 0.7070068, 0],
            [0, 0, -0.7070568],
            [0, -0.7070068, -0.7070068],
            [0, -0.7070568, -0.7070568],
            [0, 1.4141136, 1.4141136],
        ],
    )
    assert batch.advantage is None
    assert out.reward is batch.reward
    assert out.returns is None


def test_group_relative_without_scaling_is_the_plain_difference() -> None:
    out = GroupRelative(scale_rewards="none")(make_batch([[0, 1]] * 4, [1, 0, 0, 3]))
    close(out.advantage, [[0, 0], [0, -1], [0, -1], [0, 2]], 0)


def test_a_rollout_of_several_rows_counts_once() -> None:
    # Three rollouts with rewards 3, 0, 0, the first in three rows: the mean is 1, not 9 / 5.
    batch = make_batch([[1, 1]] * 5, [3, 0, 3, 0, 3], rollout=[4, 5, 4, 6, 4])
    close(GroupRelative(scale_rewards="none")(batch).advantage, [[2, 2], [-1, -1], [2, 2], [-1, -1], [2, 2]], 0)
    # Deviations 2 -1 -1: the variance is 6 / 2 = 3. Over rows it would be another.
    up, down = 2 / (math.sqrt(3) + 1e-4), -1 / (math.sqrt(3) + 1e-4)
    close(GroupRelative()(batch).advantage, [[up, up], [down, down], [up, up], [down, down], [up, up]])


def test_ungraded_rows_leave_the_baseline_and_masked_out_ones_stay() -> None:
    # Graded: 2, 0, 1 (the last is not live): mean 1. The ungraded row's reward is meaningless, even NaN.
    batch = make_batch([[0, 1]] * 4, [2, math.nan, 0, 1], graded=[1, 0, 1, 1], live=[1, 0, 1, 0])
    close(GroupRelative(scale_rewards="none")(batch).advantage, [[0, 1], [0, 0], [0, -1], [0, 0]], 0)
    # With the dead row's reward at 4 the mean is 2, and that row's own advantage is computed too.
    batch = replace(batch, reward=torch.tensor([2.0, math.nan, 0.0, 4.0]))
    close(GroupRelative(scale_rewards="none")(batch).advantage, [[0, 0], [0, 0], [0, -2], [0, 2]], 0)


# --- RLOO and MaxRL


def test_rloo_by_hand() -> None:
    # Group 7: rewards 1, 0, 0, 3, each less the mean of the other three:
    #   1 - (0 + 0 + 3) / 3 = 0,  0 - (1 + 0 + 3) / 3 = -4 / 3 twice,  3 - (1 + 0 + 0) / 3 = 8 / 3
    # Group 2: rewards 1, 0, each less the other: 1, -1.
    batch = make_batch(
        mask=[[0, 1, 1], [0, 1, 0], [0, 0, 1], [0, 1, 1], [0, 1, 1], [0, 1, 1]],
        reward=[1, 1, 0, 0, 0, 3],
        group=[7, 2, 7, 2, 7, 7],
    )
    out = RLOO()(batch)
    close(
        out.advantage,
        [[0, 0, 0], [0, 1, 0], [0, 0, -4 / 3], [0, -1, -1], [0, -4 / 3, -4 / 3], [0, 8 / 3, 8 / 3]],
    )
    assert batch.advantage is None
    assert out.reward is batch.reward
    assert out.returns is None


@pytest.mark.parametrize("size", [2, 3, 8])
def test_rloo_leaves_one_out(size: int) -> None:
    rewards = torch.randn(size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    by_one = [rewards[i] - torch.cat([rewards[:i], rewards[i + 1 :]]).mean() for i in range(size)]
    out = RLOO()(make_batch([[1]] * size, rewards.tolist(), dtype=torch.float64))
    close(out.advantage, torch.stack(by_one)[:, None], 1e-12)


def test_maxrl_by_hand() -> None:
    # Group 0: rewards 1, 0, 0, 0 have mean 1/4: (1 - 1/4) / (1/4) = 3, and -1 for a wrong answer, as always. Group 1:
    # 1, 1, 0, 1 have mean 3/4: 1/3. Group 2: 0, 0: nothing, and not 0 / 0. Rewards between: 0.5, 1.5 have mean 1.
    batch = make_batch(
        [[1, 1]] + [[1, 0]] * 11,
        [1, 0, 0, 0, 1, 1, 0, 1, 0, 0, 0.5, 1.5],
        group=[0] * 4 + [1] * 4 + [2] * 2 + [3] * 2,
    )
    out = MaxRL()(batch)
    expected = [3, -1, -1, -1, 1 / 3, 1 / 3, -1, 1 / 3, 0, 0, -0.5, 0.5]
    close(out.advantage, [[3, 3]] + [[x, 0] for x in expected[1:]])
    assert batch.advantage is None
    assert out.reward is batch.reward


def test_maxrl_refuses_negative_rewards() -> None:
    batch = make_batch([[1]] * 3, [1, 0, -0.5], rollout=[4, 5, 6])
    with pytest.raises(ValueError, match=r"row 2 \(rollout 6\) has reward -0\.5; MaxRL divides by a group's mean"):
        MaxRL()(batch)
    # Of an ungraded row it means nothing.
    close(MaxRL()(replace(batch, graded=torch.tensor([True, True, False]))).advantage, [[1], [-1], [0]], 0)
    # What tokens earned counts too, over all of a rollout's rows: 1 - 0.5 - 0.75.
    batch = make_batch([[1]] * 3, [0, 1, 1], rollout=[0, 1, 1], token_reward=[[0], [-0.5], [-0.75]])
    with pytest.raises(ValueError, match=r"row 1 \(rollout 1\) has reward -0\.25"):
        MaxRL()(batch)


# --- what holds for all that compare the rollouts of a group

COMPARING: list[tuple[Estimator, Callable[[float, float, int], float]]] = [
    # The advantage, from reward, mean and number of rewards; a standard deviation can't be had from these.
    (GroupRelative(scale_rewards="none"), lambda reward, mean, n: reward - mean),
    (RLOO(), lambda reward, mean, n: (reward - mean) * n / (n - 1)),
    (MaxRL(), lambda reward, mean, n: (reward - mean) / mean),
]
NAMES = ["GRPO", "RLOO", "MaxRL"]


@pytest.mark.parametrize(("estimator", "advantage"), COMPARING, ids=NAMES)
def test_the_rows_of_a_rollout_count_once(estimator: Estimator, advantage: Callable[..., float]) -> None:
    # Three rollouts with rewards 3, 0, 0, the first in three rows: the mean is 1, not 9 / 5, of 3 and not of 5.
    up, down = advantage(3, 1, 3), advantage(0, 1, 3)
    batch = make_batch([[1, 1]] * 5, [3, 0, 3, 0, 3], rollout=[4, 5, 4, 6, 4])
    close(estimator(batch).advantage, [[up, up], [down, down], [up, up], [down, down], [up, up]])


@pytest.mark.parametrize(("estimator", "advantage"), COMPARING, ids=NAMES)
def test_only_graded_rollouts_are_compared(estimator: Estimator, advantage: Callable[..., float]) -> None:
    # Graded: 2, 0, 4 (the last is not live): mean 2, and the last row's own advantage is computed too.
    batch = make_batch([[0, 1]] * 4, [2, math.nan, 0, 4], graded=[1, 0, 1, 1], live=[1, 0, 1, 0])
    expected = [[0, 0], [0, 0], [0, advantage(0, 2, 3)], [0, advantage(4, 2, 3)]]
    close(estimator(batch).advantage, expected)


@pytest.mark.parametrize(("estimator", "advantage"), COMPARING, ids=NAMES)
def test_what_tokens_earned_counts_in_a_group(estimator: Estimator, advantage: Callable[..., float]) -> None:
    # A rollout of two rows (0 and 2): 1 + 0.5 - 0.25 = 1.25, where 7 is not the policy's token; one of 0 + 0.25; one
    # of 0. Their mean is 0.5. Every token gets its rollout's advantage, whichever token earned it.
    batch = make_batch(
        [[0, 1, 1], [1, 1, 0], [0, 1, 0], [0, 0, 1]],
        [1, 0, 1, 0],
        rollout=[0, 1, 0, 2],
        token_reward=[[7, 0.5, 0], [0.25, 0, 0], [0, -0.25, 7], [0, 0, 0]],
    )
    first, second, third = (advantage(total, 0.5, 3) for total in (1.25, 0.25, 0))
    out = estimator(batch)
    close(out.advantage, [[0, first, first], [second, second, 0], [0, first, 0], [0, 0, third]])
    assert out.reward is batch.reward
    # Scaled, by the deviations 0.75 -0.25 -0.5: variance (0.5625 + 0.0625 + 0.25) / 2 = 0.4375, std 0.6614378.
    scaled = GroupRelative()(batch).advantage
    assert scaled is not None
    close(scaled[:, 1], [0.75 / 0.6615378, -0.25 / 0.6615378, 0.75 / 0.6615378, 0])
    # Rewards that differ and come out equal are no signal: 1 - 1 and 0.
    level = make_batch([[1]] * 2, [1, 0], token_reward=[[-1], [0]])
    close(estimator(level).advantage, [[0], [0]], 0)


@pytest.mark.parametrize(
    "estimator",
    [GroupRelative(epsilon_std=0), GroupRelative(scale_rewards="none"), RLOO(), MaxRL()],
    ids=["GRPO", "centred", "RLOO", "MaxRL"],
)
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 0.3, -2.7, 1 / 3])
def test_equal_rewards_give_exactly_zero(estimator: Estimator, reward: float) -> None:
    # At some of these sizes the float mean of a reward differs from the reward by rounding; without an epsilon that
    # remainder would become a full-sized advantage.
    for size in range(2, 65):
        out = estimator(make_batch([[0, 1]] * size, [max(reward, estimator.least_reward)] * size))
        close(out.advantage, torch.zeros(size, 2), 0)


@pytest.mark.parametrize("estimator", [GroupRelative(), RLOO(), MaxRL()], ids=NAMES)
def test_groups_without_a_comparison_give_zero(estimator: Estimator) -> None:
    # Group 0 has one rollout (of two rows), group 1 one graded one, group 2 none.
    batch = make_batch(
        [[1]] * 6,
        [5, 5, 1, 0, 1, 0],
        group=[0, 0, 1, 1, 2, 2],
        rollout=[0, 0, 1, 2, 3, 4],
        graded=[1, 1, 1, 0, 0, 0],
    )
    close(estimator(batch).advantage, torch.zeros(6, 1), 0)
    assert estimator.min_group == 2


# --- Rewarded


def test_rewarded_by_hand() -> None:
    # At a threshold of 0.5: 1 and 0.5 are in; 0.25 is not; one of 1 isn't graded, one isn't live. A rollout of two rows
    # earned 0.25 and, by its tokens, 0.125 + 0.125: in; another 0.75 - 0.5: out.
    batch = make_batch(
        [[0, 1, 1], [0, 1, 0], [0, 1, 1], [0, 1, 1], [0, 1, 1], [0, 1, 1], [0, 0, 1], [0, 1, 1]],
        [1, 0.5, 0.25, 1, 1, 0.25, 0.25, 0.75],
        group=[0, 0, 0, 1, 1, 2, 2, 3],
        rollout=[0, 1, 2, 3, 4, 5, 5, 6],
        graded=[1, 1, 1, 0, 1, 1, 1, 1],
        live=[1, 1, 1, 1, 0, 1, 1, 1],
        token_reward=[[0, 0, 0]] * 5 + [[0, 0.125, 0], [0, 0, 0.125], [0, -0.5, 0]],
    )
    out = Rewarded(threshold=0.5)(batch)
    assert out.live.tolist() == [True, True, False, False, False, True, True, False]
    close(
        out.advantage,
        [[0, 1, 1], [0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 1, 1], [0, 0, 1], [0, 0, 0]],
        0,
    )
    assert batch.live.tolist() == [True, True, True, True, False, True, True, True]
    assert out.reward is batch.reward
    # The default asks for a whole reward.
    assert Rewarded()(batch).live.tolist() == [True] + [False] * 7
    assert Rewarded.min_group == 1


# --- ReinforcePlusPlus


def test_reinforce_plus_plus_by_hand() -> None:
    # Without token rewards every token's return is its rollout's reward: 1, 1 and 4. Mean 2, deviations -1 -1 2,
    # variance (1 + 1 + 4) / 2 = 3 with Bessel's correction. The third row is not live and enters neither moment, the
    # fourth is not graded.
    batch = make_batch(
        [[0, 1, 1], [0, 0, 1], [0, 1, 0], [0, 1, 1]],
        [1, 4, 5, math.nan],
        group=[0, 1, 2, 3],
        graded=[1, 1, 1, 0],
        live=[1, 1, 0, 0],
    )
    out = ReinforcePlusPlus()(batch)
    s = math.sqrt(3)
    close(out.advantage, [[0, -1 / s, -1 / s], [0, 0, 2 / s], [0, 3 / s, 0], [0, 0, 0]])
    assert batch.advantage is None
    assert out.reward is batch.reward
    assert out.returns is None


def test_reinforce_plus_plus_counts_token_rewards_from_each_token_on() -> None:
    # First row, reward 2, backwards: 2 - 1 = 1, then 1 (what the next token earned doesn't count twice), then
    # 1 + 0.5 = 1.5; its third token is the environment's. Second row: 0 + 0.5. Of 1.5 1 1 0.5 the mean is 1, the
    # variance (0.25 + 0.25) / 3 = 1 / 6, so 0.5 becomes 0.5 sqrt(6) = 1.2247449.
    batch = make_batch(
        [[1, 1, 0, 1], [0, 1, 0, 0]], [2, 0], token_reward=[[0.5, 0, 0, -1], [0, 0.5, 0, 0]], group=[0, 1]
    )
    close(ReinforcePlusPlus()(batch).advantage, [[1.2247449, 0, 0, 0], [0, -1.2247449, 0, 0]])


def test_reinforce_plus_plus_with_the_groups_mean_as_baseline() -> None:
    # Group 0: rewards 1, 0 become 0.5, -0.5; the first row has two tokens. Group 1: equal rewards, exactly 0, but the
    # last row's second token earned 1 besides, on top of the centred reward and not part of the baseline. Returns
    # 0.5 0.5 -0.5 0 1 0: mean 0.25, deviations 0.25 0.25 -0.75 -0.25 0.75 -0.25, squares sum to 4 x 0.0625 + 2 x 0.5625
    # = 1.375, variance 1.375 / 5 = 0.275.
    batch = make_batch(
        [[1, 1], [1, 0], [1, 0], [1, 1]],
        [1, 0, 3, 3],
        group=[0, 0, 1, 1],
        token_reward=[[0, 0], [0, 0], [0, 0], [1, 0]],
    )
    s = math.sqrt(0.275)
    expected = [[0.25 / s, 0.25 / s], [-0.75 / s, 0], [-0.25 / s, 0], [0.75 / s, -0.25 / s]]
    close(ReinforcePlusPlus(baseline="group")(batch).advantage, expected)


def test_reinforce_plus_plus_chains_the_rows_of_a_rollout() -> None:
    # Rows 0 and 2 are one rollout of reward 1, which is on its last token only. Backwards: 1 + 0.5 = 1.5, 1.5, 1.5,
    # 1.5 + 0.5 = 2; the other rollout's tokens: 2, 2. Mean 10.5 / 6 = 1.75, all deviations 0.25, variance
    # 6 x 0.0625 / 5 = 0.075: 0.25 / 0.2738613 = 0.9128709.
    batch = make_batch(
        [[1, 1]] * 3, [1, 2, 1], rollout=[0, 1, 0], token_reward=[[0.5, 0], [0, 0], [0, 0.5]], group=[0, 1, 0]
    )
    a = 0.9128709
    close(ReinforcePlusPlus()(batch).advantage, [[a, -a], [a, a], [-a, -a]])


def test_reinforce_plus_plus_needs_a_group_only_for_its_mean() -> None:
    assert ReinforcePlusPlus().min_group == 1
    assert ReinforcePlusPlus(baseline="group").min_group == 2


# --- what holds for all

ALL: list[Estimator] = [
    GroupRelative(),
    RLOO(),
    MaxRL(),
    Rewarded(),
    ReinforcePlusPlus(),
    ReinforcePlusPlus(baseline="group"),
    GAE(),
]


@pytest.mark.parametrize("estimator", ALL, ids=str)
def test_an_empty_batch(estimator: Estimator) -> None:
    for mask in (torch.zeros(0, 0), torch.zeros(0, 3)):
        batch = replace(make_batch([], [], value=mask), mask=mask.bool())
        advantage = estimator(batch).advantage
        assert advantage is not None
        assert advantage.shape == mask.shape


@pytest.mark.parametrize("estimator", ALL, ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_graded_reward_must_be_finite(estimator: Estimator, bad: float) -> None:
    batch = make_batch([[1]] * 3, [0, 1, bad], value=[[0.0]] * 3)
    with pytest.raises(ValueError, match=r"row 2 \(rollout 2\) was graded with reward (nan|inf)"):
        estimator(batch)


@pytest.mark.parametrize("estimator", ALL, ids=str)
def test_needs_and_least_reward_are_told_truly(estimator: Estimator) -> None:
    # Without what it doesn't name, and on a reward that it says it takes.
    batch = make_batch([[1]] * 2, [1, max(-1, estimator.least_reward)], value=[[0.0]] * 2)
    if "value" not in estimator.needs:
        batch = replace(batch, value=None)
    advantage = estimator(batch).advantage
    assert advantage is not None
    assert advantage[0] > advantage[1]
    assert estimator.needs == ({"value"} if isinstance(estimator, GAE) else set())
    assert estimator.least_reward == (0 if isinstance(estimator, MaxRL) else -math.inf)


@pytest.mark.parametrize("estimator", [ReinforcePlusPlus(), ReinforcePlusPlus(baseline="group"), GAE()], ids=str)
def test_token_rewards_must_be_on_the_policys_tokens(estimator: Estimator) -> None:
    batch = make_batch(MASK, [1], value=VALUE, token_reward=[[0, 0, 0.5, 0, 0, 0]])
    with pytest.raises(ValueError, match=r"token_reward\[0, 2\] is 0\.5 on a token that the policy didn't write"):
        estimator(batch)


def test_misconfigured_estimators_are_refused() -> None:
    with pytest.raises(ValueError, match="scale_rewards is 'batch'; choose one of"):
        GroupRelative(scale_rewards="batch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="epsilon_std is -1"):
        GroupRelative(epsilon_std=-1)
    with pytest.raises(ValueError, match="baseline is 'none'; choose one of"):
        ReinforcePlusPlus(baseline="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"gamma is 1\.5; it must lie between 0 and 1"):
        GAE(gamma=1.5)
    with pytest.raises(ValueError, match=r"gae_lambda is -0\.1"):
        GAE(gae_lambda=-0.1)


# --- GAE

# One row: a prompt token, a token of the policy, one of the environment, two of the policy, padding.
MASK = [[0, 1, 0, 1, 1, 0]]
VALUE = [[9.0, 0.5, 99.0, 0.4, 0.2, 7.0]]


def test_gae_by_hand() -> None:
    # gamma 0.9, lambda 0.8, so 0.72 in the recursion; reward 1 on the last token of the policy.
    #   t = 4: delta = 1 - 0.2             =  0.8                          A = 0.8
    #   t = 3: delta = 0.9 x 0.2 - 0.4     = -0.22   A = -0.22 + 0.72 x 0.8   = 0.356
    #   t = 1: delta = 0.9 x 0.4 - 0.5     = -0.14   A = -0.14 + 0.72 x 0.356 = 0.11632   (t = 2 is stepped over)
    # Returns add the values 0.5, 0.4, 0.2.
    batch = make_batch(MASK, [1], value=VALUE)
    out = GAE(gamma=0.9, gae_lambda=0.8, whiten_advantages=False)(batch)
    close(out.advantage, [[0, 0.11632, 0, 0.356, 0.8, 0]])
    close(out.returns, [[0, 0.61632, 0, 0.756, 1.0, 0]])
    assert batch.advantage is None
    assert batch.returns is None


def test_gae_adds_token_rewards() -> None:
    # As above with 0.1 more on t = 1 and 0.5 more on t = 4:
    #   t = 4: 1.3;  t = 3: -0.22 + 0.72 x 1.3 = 0.716;  t = 1: 0.1 - 0.14 + 0.72 x 0.716 = 0.47552
    batch = make_batch(MASK, [1], value=VALUE, token_reward=[[0, 0.1, 0, 0, 0.5, 0]])
    out = GAE(gamma=0.9, gae_lambda=0.8, whiten_advantages=False)(batch)
    close(out.advantage, [[0, 0.47552, 0, 0.716, 1.3, 0]])
    close(out.returns, [[0, 0.97552, 0, 1.116, 1.5, 0]])


def test_gae_does_not_bootstrap_a_truncated_row() -> None:
    batch = make_batch(MASK, [1], value=VALUE)
    plain = GAE(whiten_advantages=False)(batch)
    cut = GAE(whiten_advantages=False)(replace(batch, truncated=torch.tensor([True])))
    close(cut.advantage, plain.advantage, 0)
    close(cut.returns, plain.returns, 0)


def test_gae_monte_carlo_limit_is_return_minus_value() -> None:
    batch = make_batch(MASK, [2], value=VALUE, token_reward=[[0, 0.25, 0, 0.5, 0, 0]])
    out = GAE(gamma=1, gae_lambda=1, whiten_advantages=False)(batch)
    # What is still to come, from each token on: 2.75, 2.5, 2.
    close(out.advantage, [[0, 2.75 - 0.5, 0, 2.5 - 0.4, 2 - 0.2, 0]])
    close(out.returns, [[0, 2.75, 0, 2.5, 2, 0]])


def test_gae_with_lambda_zero_is_the_temporal_difference() -> None:
    out = GAE(gamma=0.9, gae_lambda=0, whiten_advantages=False)(make_batch(MASK, [1], value=VALUE))
    close(out.advantage, [[0, -0.14, 0, -0.22, 0.8, 0]])


def test_gae_whitens_over_live_tokens() -> None:
    # gamma = lambda = 1: the advantage is reward - value. Live rows: 3 - (2, 1, 0) = 1 2 3, and 5 - (0, 4, 0) = 5 1 5
    # of which only the last two tokens are the policy's: 1, 5. Mean of 1 2 3 1 5: 12 / 5 = 2.4; deviations
    # -1.4 -0.4 0.6 -1.4 2.6, squares 1.96 + 0.16 + 0.36 + 1.96 + 6.76 = 11.2, variance 11.2 / 4 = 2.8 (Bessel).
    # The third row is graded but not live: 102 - 0 = 102 enters neither moment.
    batch = make_batch(
        [[1, 1, 1], [0, 1, 1], [0, 0, 1]],
        [3, 5, 102],
        live=[1, 1, 0],
        value=[[2, 1, 0], [0, 4, 0], [0, 0, 0]],
    )
    out = GAE(gamma=1, gae_lambda=1)(batch)
    assert out.advantage is not None
    s = math.sqrt(2.8)
    close(out.advantage[:2], [[-1.4 / s, -0.4 / s, 0.6 / s], [0, -1.4 / s, 2.6 / s]])
    close(out.advantage[2], [0, 0, 99.6 / s], 1e-5)
    # The critic's target is not whitened.
    close(out.returns, [[3, 3, 3], [0, 5, 5], [0, 0, 102]])


def test_gae_gives_ungraded_rows_nothing() -> None:
    batch = make_batch([[0, 1, 1]] * 2, [1, math.nan], graded=[1, 0], live=[1, 0], value=[[0, 0, 0.5], [3, 3, 3]])
    out = GAE(gamma=1, gae_lambda=1, whiten_advantages=False)(batch)
    close(out.advantage, [[0, 1, 0.5], [0, 0, 0]])
    close(out.returns, [[0, 1, 1], [0, 0, 0]])
    whitened = GAE(gamma=1, gae_lambda=1)(batch)
    # 1 and 0.5: mean 0.75, variance 0.0625 x 2 / 1 = 0.125; +-0.25 / 0.3535534 = +-0.7071068
    close(whitened.advantage, [[0, 0.7071068, -0.7071068], [0, 0, 0]])


def test_gae_whitening_of_one_token_and_of_none() -> None:
    one = GAE()(make_batch([[0, 1]], [1], value=[[0, 0.25]]))
    close(one.advantage, [[0, 0]], 0)
    close(one.returns, [[0, 1]], 0)
    none = GAE()(make_batch([[0, 0]], [1], value=[[5, 5]]))
    close(none.advantage, [[0, 0]], 0)
    close(none.returns, [[0, 0]], 0)
    dead = GAE()(make_batch([[0, 1]], [1], live=[0], value=[[0, 0.25]]))
    assert dead.advantage is not None
    assert dead.advantage.isfinite().all()
    close(dead.returns, [[0, 1]], 0)
    empty = GAE()(make_batch([], [], value=torch.zeros(0, 0)))
    assert empty.advantage is not None
    assert empty.advantage.shape == (0, 0)


def slow_gae(
    mask: Any, reward: Any, value: Any, extra: Any, gamma: float, lam: float
) -> tuple[list[float], list[float]]:
    """One row by the definition: A_k = sum over later actions of (gamma lambda)^distance x delta."""
    actions = [t for t, written in enumerate(mask) if written]
    deltas = []
    for k, t in enumerate(actions):
        last = k == len(actions) - 1
        r = extra[t] + (reward if last else 0.0)
        deltas.append(r + (0.0 if last else gamma * value[actions[k + 1]]) - value[t])
    advantage, returns = [0.0] * len(mask), [0.0] * len(mask)
    for k, t in enumerate(actions):
        advantage[t] = sum((gamma * lam) ** (j - k) * deltas[j] for j in range(k, len(actions)))
        returns[t] = advantage[t] + value[t]
    return advantage, returns


def test_gae_equals_the_slow_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(20, 15, generator=generator) < 0.6
    mask[3] = False
    value = torch.randn(20, 15, generator=generator, dtype=torch.float64)
    extra = torch.randn(20, 15, generator=generator, dtype=torch.float64) * mask
    reward = torch.randn(20, generator=generator, dtype=torch.float64)
    batch = make_batch(mask.tolist(), reward.tolist(), value=value, token_reward=extra, dtype=torch.float64)
    out = GAE(gamma=0.97, gae_lambda=0.9, whiten_advantages=False)(batch)
    columns = zip(mask.tolist(), reward.tolist(), value.tolist(), extra.tolist(), strict=True)
    rows = [slow_gae(*row, gamma=0.97, lam=0.9) for row in columns]
    close(out.advantage, [advantage for advantage, _ in rows], 1e-12)
    close(out.returns, [returns for _, returns in rows], 1e-12)

    whitened = GAE(gamma=0.97, gae_lambda=0.9)(batch).advantage
    assert whitened is not None
    assert whitened[mask].mean().item() == pytest.approx(0, abs=1e-12)
    assert whitened[mask].std().item() == pytest.approx(1, abs=1e-7)


def test_gae_chains_the_rows_of_a_rollout() -> None:
    # The row of test_gae_by_hand as two turns, with another rollout's row and a turn without tokens between them: the
    # same numbers. The reward is the rollout's, on its last token only; that of the other, 2 - 1 = 1, stays its own.
    batch = make_batch(
        [[0, 1, 0], [0, 0, 1], [0, 0, 0], [1, 1, 0]],
        [1, 2, 1, 1],
        rollout=[3, 1, 3, 3],
        value=[[9.0, 0.5, 99.0], [7.0, 7.0, 1.0], [5.0, 5.0, 5.0], [0.4, 0.2, 7.0]],
    )
    out = GAE(gamma=0.9, gae_lambda=0.8, whiten_advantages=False)(batch)
    close(out.advantage, [[0, 0.11632, 0], [0, 0, 1], [0, 0, 0], [0.356, 0.8, 0]])
    close(out.returns, [[0, 0.61632, 0], [0, 0, 2], [0, 0, 0], [0.756, 1.0, 0]])
    # and those of test_gae_adds_token_rewards
    batch = replace(batch, token_reward=torch.tensor([[0, 0.1, 0], [0, 0, 0], [0, 0, 0], [0, 0.5, 0]]))
    out = GAE(gamma=0.9, gae_lambda=0.8, whiten_advantages=False)(batch)
    close(out.advantage, [[0, 0.47552, 0], [0, 0, 1], [0, 0, 0], [0.716, 1.3, 0]])


def test_gae_has_no_place_for_the_reward_of_a_last_row_without_tokens() -> None:
    out = GAE(whiten_advantages=False)(make_batch([[1], [0]], [1, 1], rollout=[0, 0], value=[[0.25], [9]]))
    close(out.advantage, [[-0.25], [0]], 0)


def test_gae_of_several_rows_equals_the_slow_definition() -> None:
    # Six rollouts of one to four rows, in any order; one isn't graded.
    generator = torch.Generator().manual_seed(2)
    rollout = [5, 2, 2, 0, 5, 1, 2, 5, 3, 1, 2, 4, 3]
    rows = len(rollout)
    mask = torch.rand(rows, 7, generator=generator) < 0.6
    mask[4] = False  # a turn without tokens
    mask[:, 3] |= torch.tensor([r not in rollout[i + 1 :] for i, r in enumerate(rollout)])  # a place for the reward
    value = torch.randn(rows, 7, generator=generator, dtype=torch.float64)
    extra = torch.randn(rows, 7, generator=generator, dtype=torch.float64) * mask
    reward = torch.randn(6, generator=generator, dtype=torch.float64)[torch.tensor(rollout)]
    graded = [int(r != 1) for r in rollout]
    batch = make_batch(
        mask.tolist(),
        reward.tolist(),
        rollout=rollout,
        graded=graded,
        value=value,
        token_reward=extra,
        dtype=torch.float64,
    )
    out = GAE(gamma=0.97, gae_lambda=0.9, whiten_advantages=False)(batch)
    advantage, returns = torch.zeros(2, rows, 7, dtype=torch.float64)
    for number in set(rollout) - {1}:
        turns = [i for i, r in enumerate(rollout) if r == number]
        written, expects, earned = (torch.cat([x[i] for i in turns]).tolist() for x in (mask, value, extra))
        whole = slow_gae(written, reward[turns[0]].item(), expects, earned, 0.97, 0.9)
        for filled, found in zip((advantage, returns), whole, strict=True):
            filled[turns] = torch.tensor(found, dtype=torch.float64).view(len(turns), 7)
    close(out.advantage, advantage, 1e-12)
    close(out.returns, returns, 1e-12)


# --- whitening


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 0.3, -2.7, 1 / 3, 1000.1])
@pytest.mark.parametrize(
    "estimator", [ReinforcePlusPlus(), ReinforcePlusPlus(baseline="group"), GAE(gamma=1, gae_lambda=1)], ids=str
)
def test_whitening_a_whole_batch_of_equal_rewards_gives_exactly_zero(estimator: Estimator, reward: float) -> None:
    # The float mean of equal numbers can differ from them by rounding, which whitening would blow up to size 1. The
    # critic expects the same everywhere, so that all of GAE's advantages are equal too.
    generator = torch.Generator().manual_seed(0)
    for size, width in [*((size, 5) for size in range(2, 65)), (64, 512)]:
        mask = torch.rand(size, width, generator=generator) < 0.7
        batch = make_batch(mask.tolist(), [reward] * size, value=torch.full((size, width), 0.7))
        close(estimator(batch).advantage, torch.zeros(size, width), 0)


@pytest.mark.parametrize("estimator", [ReinforcePlusPlus(), GAE(gamma=1, gae_lambda=1)], ids=str)
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.01), (1000.0, 1000.5)])
def test_whitening_keeps_small_differences(estimator: Estimator, low: float, high: float) -> None:
    # Deviations of half the difference d, variance d^2 / 2: +-(d / 2) / sqrt(d^2 / 2 + 1e-8) = +-0.70704 for d = 0.01.
    d = high - low
    a = d / 2 / math.sqrt(d * d / 2 + 1e-8)
    close(estimator(make_batch([[1], [1]], [low, high], value=torch.zeros(2, 1))).advantage, [[-a], [a]], 1e-6)


def rows_of(batch: Batch, rows: slice) -> Batch:
    cut = {name: x[rows] for name, x in vars(batch).items() if isinstance(x, torch.Tensor)}
    return replace(batch, **cut)


@pytest.mark.parametrize(
    "estimator", [GAE(), ReinforcePlusPlus(), ReinforcePlusPlus(baseline="group")], ids=["GAE", "batch", "group"]
)
@pytest.mark.parametrize("cut", [1, 4, 8])
def test_whitening_of_two_processes_equals_one(estimator: Estimator, cut: int) -> None:
    # The second process has 7, 4 or no rows. A process holds whole groups, and so whole rollouts.
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(8, 8, generator=generator) < 0.7
    batch = make_batch(
        mask.tolist(),
        [0, 1, 1, 0, 1, 0, 0, 1],
        group=[0, 1, 1, 1, 2, 2, 2, 2],
        rollout=[0, 1, 1, 2, 3, 4, 5, 6],
        live=[1, 1, 1, 0, 1, 1, 1, 1],
        value=torch.randn(8, 8, generator=generator, dtype=torch.float64),
        token_reward=torch.randn(8, 8, generator=generator, dtype=torch.float64) * mask,
        dtype=torch.float64,
    )
    expected = estimator(batch)

    barrier = threading.Barrier(2, timeout=30)
    sent: list[torch.Tensor | None] = [None, None]
    parts: list[Batch | None] = [None, None]

    def process(rank: int, mine: Batch) -> None:
        def reduce(tensor: torch.Tensor) -> torch.Tensor:
            sent[rank] = tensor
            barrier.wait()
            total = torch.stack([x for x in sent if x is not None]).sum(dim=0)
            barrier.wait()
            return total

        parts[rank] = estimator(mine, reduce)

    threads = [
        threading.Thread(target=process, args=(0, rows_of(batch, slice(0, cut)))),
        threading.Thread(target=process, args=(1, rows_of(batch, slice(cut, 8)))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("advantage", "returns") if isinstance(estimator, GAE) else ("advantage",):
        close(torch.cat([getattr(part, name) for part in parts]), getattr(expected, name), 1e-12)
    alone = estimator(rows_of(batch, slice(0, cut))).advantage
    if cut < 8:  # whitening each process by itself is something else
        assert alone is not None
        assert expected.advantage is not None
        assert (alone - expected.advantage[:cut]).abs().max() > 1e-3


def test_gae_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match=r"GAE needs batch\.value"):
        GAE()(make_batch(MASK, [1]))
    assert GAE.min_group == 1
