from __future__ import annotations

import math
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch

from rlreason.advantages import GAE, GroupRelative
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


@pytest.mark.parametrize("scale_rewards", ["group", "none"])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 0.3, -2.7, 1 / 3])
def test_equal_rewards_give_exactly_zero(scale_rewards: Any, reward: float) -> None:
    # At some of these sizes the float mean of a reward differs from the reward by rounding; without an epsilon that
    # remainder would become a full-sized advantage.
    for size in range(2, 65):
        out = GroupRelative(scale_rewards=scale_rewards, epsilon_std=0)(make_batch([[0, 1]] * size, [reward] * size))
        close(out.advantage, torch.zeros(size, 2), 0)


def test_groups_without_a_comparison_give_zero() -> None:
    # Group 0 has one rollout (of two rows), group 1 one graded one, group 2 none.
    batch = make_batch(
        [[1]] * 6,
        [5, 5, 1, 0, 1, 0],
        group=[0, 0, 1, 1, 2, 2],
        rollout=[0, 0, 1, 2, 3, 4],
        graded=[1, 1, 1, 0, 0, 0],
    )
    close(GroupRelative()(batch).advantage, torch.zeros(6, 1), 0)
    assert GroupRelative.min_group == 2
    assert GroupRelative.needs == frozenset()


def test_group_relative_on_an_empty_batch() -> None:
    out = GroupRelative()(make_batch([], []))
    assert out.advantage is not None
    assert out.advantage.shape == (0, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_graded_reward_must_be_finite(bad: float) -> None:
    batch = make_batch([[1]] * 3, [0, 1, bad], value=[[0.0]] * 3)
    for estimator in (GroupRelative(), GAE()):
        with pytest.raises(ValueError, match=r"row 2 \(rollout 2\) was graded with reward (nan|inf)"):
            estimator(batch)


def test_misconfigured_estimators_are_refused() -> None:
    with pytest.raises(ValueError, match="scale_rewards is 'batch'; choose one of"):
        GroupRelative(scale_rewards="batch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="epsilon_std is -1"):
        GroupRelative(epsilon_std=-1)
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


def rows_of(batch: Batch, rows: slice) -> Batch:
    cut = {name: x[rows] for name, x in vars(batch).items() if isinstance(x, torch.Tensor)}
    return replace(batch, **cut)


@pytest.mark.parametrize("cut", [1, 4, 6])
def test_gae_of_two_processes_equals_one(cut: int) -> None:
    # The second process has 5, 2 or no rows.
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(6, 8, generator=generator) < 0.7
    value = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    batch = make_batch(mask.tolist(), [0, 1, 0, 1, 1, 0], live=[1, 1, 0, 1, 1, 1], value=value, dtype=torch.float64)
    expected = GAE()(batch)

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

        parts[rank] = GAE()(mine, reduce)

    threads = [
        threading.Thread(target=process, args=(0, rows_of(batch, slice(0, cut)))),
        threading.Thread(target=process, args=(1, rows_of(batch, slice(cut, 6)))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("advantage", "returns"):
        close(torch.cat([getattr(part, name) for part in parts]), getattr(expected, name), 1e-12)
    alone = GAE()(rows_of(batch, slice(0, cut))).advantage
    if cut < 6:  # whitening each process by itself is something else
        assert alone is not None
        assert expected.advantage is not None
        assert (alone - expected.advantage[:cut]).abs().max() > 1e-3


def test_gae_says_what_is_missing_or_misplaced() -> None:
    with pytest.raises(ValueError, match=r"GAE needs batch\.value"):
        GAE()(make_batch(MASK, [1]))
    batch = make_batch(MASK, [1], value=VALUE, token_reward=[[0, 0, 0.5, 0, 0, 0]])
    with pytest.raises(ValueError, match=r"token_reward\[0, 2\] is 0\.5 on a token that the policy didn't write"):
        GAE()(batch)
    assert GAE.needs == {"value"}
    assert GAE.min_group == 1
