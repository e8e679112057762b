from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from rlreason.shaping import KLReward, Shaping, SoftOverlong, shaped
from rlreason.types import Batch


def make_batch(mask: Any, **tensors: Any) -> Batch:
    """A batch that holds what a shaping reads; the rest is filler. ``tensors``: old_logp, ref_logp, token_reward."""
    written = torch.as_tensor(mask, dtype=torch.bool)
    rows = len(written)
    return Batch(
        tokens=torch.zeros(written.shape, dtype=torch.int64),
        attention=torch.ones_like(written),
        mask=written,
        prompt_length=torch.ones(rows, dtype=torch.int64),
        rollout=torch.arange(rows),
        group=torch.zeros(rows, dtype=torch.int64),
        sampler_logp=torch.zeros(written.shape),
        reward=torch.arange(rows, dtype=torch.float32),
        correct=torch.ones(rows),
        truncated=torch.zeros(rows, dtype=torch.bool),
        graded=torch.ones(rows, dtype=torch.bool),
        live=torch.ones(rows, dtype=torch.bool),
        **{name: torch.as_tensor(x, dtype=torch.float32) for name, x in tensors.items()},
    )


def close(actual: torch.Tensor | None, expected: Any, tolerance: float = 1e-6) -> None:
    assert actual is not None
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=tolerance)


# --- KLReward


def test_kl_reward_by_hand() -> None:
    # log pi_ref - log pi_old: a token that the policy likes better than the reference costs, whatever the coefficient,
    # which comes later. pi_ref / pi_old = 1/2, 4, 1; what the policy didn't write is 0, whatever lies there.
    old, ref = [0.5, 0.1, 0.3, 0.2], [0.25, 0.4, 0.3, 0.9]
    batch = make_batch(
        [[1, 1, 1, 0], [0, 1, 0, 0]],
        old_logp=[[math.log(p) for p in old], [math.nan, math.log(0.5), -math.inf, math.inf]],
        ref_logp=[[math.log(p) for p in ref], [math.nan, math.log(0.25), -math.inf, 0]],
    )
    for coefficient in (0.04, 1.0):
        reward = KLReward(coefficient)(batch)
        close(reward, [[-math.log(2), math.log(4), 0, 0], [0, -math.log(2), 0, 0]])


def test_kl_reward_is_the_kl_in_expectation() -> None:
    # Over tokens drawn from pi_old, each counted by its probability: -KL(pi_old || pi_ref), exactly.
    old = torch.tensor([-0.2, 0.4, 0.6, 0.9]).log_softmax(0)
    ref = torch.tensor([0.1, 0.7, -0.4, 0.5]).log_softmax(0)
    reward = KLReward(1.0)(make_batch([[1]] * 4, old_logp=old[:, None], ref_logp=ref[:, None]))
    divergence = torch.nn.functional.kl_div(ref, old, reduction="sum", log_target=True)
    assert divergence > 0.05
    assert (old.exp() * reward[:, 0]).sum().item() == pytest.approx(-divergence.item(), abs=1e-6)


def test_kl_reward_says_what_is_missing() -> None:
    whole = make_batch([[1]], old_logp=[[0]], ref_logp=[[0]])
    for batch in (replace(whole, old_logp=None), replace(whole, ref_logp=None)):
        with pytest.raises(ValueError, match=r"KLReward needs batch\.old_logp and batch\.ref_logp"):
            KLReward(0.1)(batch)
    assert KLReward.needs == {"old_logp", "ref_logp"}


# --- SoftOverlong


@pytest.mark.parametrize(
    ("length", "penalty"),
    [
        # max_length 10, zone 0.4: nothing up to 10 - 4 = 6 tokens, then (6 - length) / 4, and -1 from 10 on
        (1, 0),
        (5, 0),
        (6, 0),
        (7, -0.25),
        (8, -0.5),
        (9, -0.75),
        (10, -1),
        (11, -1),
    ],
)
def test_soft_overlong_by_hand(length: int, penalty: float) -> None:
    # After a prompt of 2 tokens, before padding, with a token of the environment's after the first one: neither of
    # them counts as length. The punishment is on the last token that the policy wrote.
    mask = torch.zeros(1, 15, dtype=torch.bool)
    mask[0, 2 : 2 + length] = True
    if length > 1:
        mask[0, 3], mask[0, 2 + length] = False, True
    expected = torch.zeros(1, 15)
    expected[0, mask[0].nonzero()[-1]] = penalty
    close(SoftOverlong(1.0, max_length=10, zone=0.4)(make_batch(mask)), expected)


def test_soft_overlong_of_the_papers_lengths() -> None:
    # 16,384 tokens are expected, 4,096 more punished, which is a fifth of the 20,480: the default zone.
    lengths = [16384, 16384 + 1024, 20480]
    mask = torch.arange(20480) < torch.tensor(lengths)[:, None]
    punished = SoftOverlong(1.0, max_length=20480)(make_batch(mask))
    close(punished.sum(1), [0, -0.25, -1], 1e-6)
    assert (punished != 0).sum(1).tolist() == [0, 1, 1]


def test_soft_overlong_over_the_whole_length_and_without_tokens() -> None:
    # zone 1: -length / max_length from the first token on. A row without tokens has none to punish.
    batch = make_batch([[1, 1, 0], [1, 1, 1], [0, 0, 0]])
    close(SoftOverlong(1.0, max_length=4, zone=1.0)(batch), [[0, -0.5, 0], [0, 0, -0.75], [0, 0, 0]])
    assert SoftOverlong.needs == frozenset()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SoftOverlong(1.0, max_length=0), r"max_length is 0 and zone 0\.2"),
        (lambda: SoftOverlong(1.0, max_length=8, zone=0), "max_length is 8 and zone 0; "),
        (lambda: SoftOverlong(1.0, max_length=8, zone=1.5), r"max_length is 8 and zone 1\.5"),
    ],
)
def test_misconfigured_shaping_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- shaped

OLD, REF = [[0, -1, -2, 0], [0, 0, -1, 0]], [[0, -1.5, -1, 0], [0, 0, -3, 0]]
SHAPINGS: list[Shaping] = [KLReward(0.5), SoftOverlong(2.0, max_length=4, zone=1.0)]


@pytest.mark.parametrize("token_reward", [None, [[0, 0, 1, 0], [0, 0, 0.25, 0]]])
def test_shaped_adds_to_what_tokens_earned(token_reward: Any) -> None:
    # KL: 0.5 x (-0.5, 1) and 0.5 x -2. Length: 2 x -2 / 4 on the first row's last token, 2 x -1 / 4 on the second's.
    #   first row: -0.25 and 0.5 - 1 = -0.5; second: -1 - 0.5 = -1.5; and the environment's on top
    batch = make_batch([[0, 1, 1, 0], [0, 0, 1, 0]], old_logp=OLD, ref_logp=REF)
    if token_reward is not None:
        batch = replace(batch, token_reward=torch.tensor(token_reward))
    before = {name: None if x is None else x.clone() for name, x in vars(batch).items()}
    earned = torch.zeros(2, 4) if token_reward is None else torch.tensor(token_reward)
    out = shaped(batch, SHAPINGS)
    close(out.token_reward, torch.tensor([[0, -0.25, -0.5, 0], [0, 0, -1.5, 0]]) + earned)
    # Nothing else is touched, neither in the new batch nor in the old one; the reward stays the environment's.
    for name, tensor in before.items():
        assert tensor is None or torch.equal(getattr(batch, name), tensor)
        assert name == "token_reward" or getattr(out, name) is getattr(batch, name)
    # One after the other is the same.
    close(shaped(shaped(batch, SHAPINGS[:1]), SHAPINGS[1:]).token_reward, out.token_reward, 1e-6)


def test_nothing_to_shape_with_leaves_the_batch_as_it_is() -> None:
    batch = make_batch([[1]])
    assert shaped(batch, []) is batch
    assert batch.token_reward is None
