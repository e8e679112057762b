from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from helpers import make_rollout, random_ids

from rlreason.batch import collate, micro_batches, mini_batches, same_prompts
from rlreason.types import Batch, Rollout, Segment

# --- collate


def test_collate_by_hand() -> None:
    rollouts = [
        make_rollout(3, [5, 6, 7], [8, 2], 1.5, correct=True, sampler_logp=[-0.25, -0.5]),
        make_rollout(3, [5, 6, 7], [9], -1.0, correct=False, sampler_logp=[-2.0], finish="length"),
        make_rollout(1, [4], [9, 9, 9, 9, 2], 0.5, sampler_logp=[-1.0, -2.0, -3.0, -4.0, -5.0]),
    ]
    batch = collate(rollouts)
    assert batch.tokens.tolist() == [[5, 6, 7, 8, 2, 0], [5, 6, 7, 9, 0, 0], [4, 9, 9, 9, 9, 2]]
    assert batch.attention.tolist() == [[True] * 5 + [False], [True] * 4 + [False] * 2, [True] * 6]
    assert batch.mask.tolist() == [
        [False, False, False, True, True, False],
        [False, False, False, True, False, False],
        [False, True, True, True, True, True],
    ]
    assert batch.sampler_logp.tolist() == [
        [0, 0, 0, -0.25, -0.5, 0],
        [0, 0, 0, -2.0, 0, 0],
        [0, -1.0, -2.0, -3.0, -4.0, -5.0],
    ]
    assert batch.prompt_length.tolist() == [3, 3, 1]
    assert batch.rollout.tolist() == [0, 1, 2]
    assert batch.group.tolist() == [3, 3, 1]
    assert batch.reward.tolist() == [1.5, -1.0, 0.5]
    assert batch.correct[:2].tolist() == [1.0, 0.0]
    assert math.isnan(batch.correct[2])
    assert batch.truncated.tolist() == [False, True, False]
    assert batch.graded.tolist() == [True] * 3
    assert batch.live.tolist() == [True] * 3
    assert (batch.tokens.dtype, batch.attention.dtype, batch.mask.dtype) == (torch.int64, torch.bool, torch.bool)
    assert (batch.sampler_logp.dtype, batch.reward.dtype) == (torch.float32, torch.float32)
    for later in (batch.old_logp, batch.ref_logp, batch.value, batch.token_reward, batch.advantage, batch.returns):
        assert later is None


def test_rows_of_an_error_are_neither_graded_nor_live() -> None:
    rollouts = [make_rollout(0, [5], [6], status=s) for s in ("ok", "error", "timeout", "unparseable")]
    batch = collate(rollouts)
    assert batch.graded.tolist() == [True, False, True, True]
    assert batch.live.tolist() == [True, False, True, True]


@pytest.mark.parametrize("masked", [True, False])
def test_masked_truncated_rows_are_graded_but_not_live(masked: bool) -> None:
    rollouts = [
        make_rollout(0, [5], [6, 2]),
        make_rollout(0, [5], [6, 7], finish="length"),
        make_rollout(0, [5], [6, 7], finish="length", status="error"),
    ]
    batch = collate(rollouts, mask_truncated=masked)
    assert batch.truncated.tolist() == [False, True, True]
    assert batch.graded.tolist() == [True, True, False]
    assert batch.live.tolist() == [True, not masked, False]


def test_two_equal_prompts_stay_two_groups() -> None:
    batch = collate([make_rollout(g, [5, 6], [7, 2]) for g in (0, 1, 1, 0)])
    assert batch.group.tolist() == [0, 1, 1, 0]


def test_each_segment_is_a_row_and_environment_tokens_are_not_trained_on() -> None:
    segments = [
        Segment([5], [6, 7, 8], [-1.0, -9.0, -3.0], [True, False, True]),
        Segment([5, 6, 7, 8], [2], [-4.0], [True]),
    ]
    two_turns: Rollout = replace(make_rollout(2, [5], [6], 1.0), segments=segments)
    batch = collate([make_rollout(0, [4], [4]), two_turns])
    assert batch.rollout.tolist() == [0, 1, 1]
    assert batch.group.tolist() == [0, 2, 2]
    assert batch.reward.tolist() == [0, 1, 1]
    assert batch.mask[1].tolist() == [False, True, False, True, False]
    assert batch.attention[1].tolist() == [True] * 4 + [False]
    assert batch.sampler_logp[1].tolist() == [0, -1.0, 0, -3.0, 0]  # nothing where the policy did not write
    assert batch.prompt_length.tolist() == [1, 1, 4]


def test_collate_of_nothing() -> None:
    batch = collate([])
    assert batch.tokens.shape == (0, 0)
    assert batch.reward.shape == (0,)
    assert batch.live.dtype == torch.bool
    assert [len(rows) for rows in mini_batches(batch, 2)] == [0, 0]
    assert micro_batches(batch, torch.arange(0), 100) == []


# --- cuts


def random_batch(groups: int, seed: int, *, shuffled: bool = True) -> Batch:
    """Groups of 1 to 6 rows, each with a prompt of its own, in mixed order."""
    chance = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=chance))

    rollouts = []
    for group in range(groups):
        prompt = random_ids(number(1, 30), seed=group)
        rollouts += [make_rollout(5 * group, prompt, random_ids(number(1, 40), seed=i)) for i in range(number(1, 7))]
    order = torch.randperm(len(rollouts), generator=chance).tolist() if shuffled else range(len(rollouts))
    return collate([rollouts[i] for i in order])


def padded(batch: Batch, piece: torch.Tensor) -> int:
    return len(piece) * int(batch.attention[piece].sum(1).max())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [1, 60, 150, 400, 100_000])
def test_micro_batches_hold_every_row_once_within_the_budget(seed: int, budget: int) -> None:
    batch = random_batch(9, seed)
    rows = torch.arange(len(batch.group))[torch.arange(len(batch.group)) % 5 != 3]  # not all of the batch
    pieces = micro_batches(batch, rows, budget)
    assert sorted(torch.cat(pieces).tolist()) == rows.tolist()
    assert all(len(piece) == 1 or padded(batch, piece) <= budget for piece in pieces)
    # rows of a group are neighbours, over all pieces
    groups = batch.group[torch.cat(pieces)].tolist()
    runs = [g for i, g in enumerate(groups) if i == 0 or g != groups[i - 1]]
    assert len(runs) == len(set(groups))
    total = batch.attention.sum(1)
    longest = rows[total[rows] == total[rows].max()]
    assert groups[0] in batch.group[longest].tolist()  # the most memory is asked for first
    # a piece ends because the next row would not have fitted
    for piece, following in pairwise(pieces):
        assert padded(batch, torch.cat([piece, following[:1]])) > budget


def test_micro_batches_by_hand() -> None:
    # Rows of 4, 2, 3, 6 and 3 tokens; prompt 8 has the longest, so it goes first; of a prompt from long to short.
    lengths = [(7, 4), (8, 2), (7, 3), (8, 6), (9, 3)]
    batch = collate([make_rollout(g, [g], [6] * (n - 1)) for g, n in lengths])
    rows = torch.arange(5)
    # 12 tokens: two rows of 6 (rows 3, 1); then rows 0, 2, 4 padded to 4 make exactly 12.
    assert [piece.tolist() for piece in micro_batches(batch, rows, 12)] == [[3, 1], [0, 2, 4]]
    assert [piece.tolist() for piece in micro_batches(batch, rows, 11)] == [[3], [1, 0], [2, 4]]
    assert [piece.tolist() for piece in micro_batches(batch, rows, 5)] == [[3], [1], [0], [2], [4]]


def test_same_prompts_by_hand() -> None:
    """By the tokens: of two groups with one prompt, and of a group whose rollouts have prompts of their own."""
    prompts = [(0, [7, 8]), (0, [7]), (0, [7, 8]), (1, [7, 0]), (1, [7]), (2, [3])]  # padding is token 0
    first, prompt_of = same_prompts(collate([make_rollout(g, ids, [6]) for g, ids in prompts]))
    assert first.tolist() == [0, 1, 3, 5]
    assert prompt_of.tolist() == [0, 1, 0, 2, 1, 3]


def test_shared_prompts_count_once_in_a_micro_batch() -> None:
    # A group of 4 rows: prompt 10, completions of 5. Prompt once: 10 + 4 x 5 = 30; every row whole: 4 x 15 = 60.
    batch = collate([make_rollout(0, [5] * 10, [6] * 5) for _ in range(4)])
    rows = torch.arange(4)
    assert [len(piece) for piece in micro_batches(batch, rows, 30, shared_prompts=True)] == [4]
    assert [len(piece) for piece in micro_batches(batch, rows, 29, shared_prompts=True)] == [3, 1]
    assert [len(piece) for piece in micro_batches(batch, rows, 30)] == [2, 2]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [1, 2, 4, 9, 12])
def test_mini_batches_are_whole_groups(seed: int, count: int) -> None:
    batch = random_batch(9, seed)
    parts = mini_batches(batch, count)
    assert len(parts) == count
    assert sorted(torch.cat(parts).tolist()) == list(range(len(batch.group)))
    groups = [set(batch.group[part].tolist()) for part in parts]
    assert sum(len(g) for g in groups) == 9  # none is in two parts
    sizes = [len(g) for g in groups]
    assert max(sizes) - min(sizes) <= 1  # as even as they go


def test_mini_batches_go_by_group_and_not_by_place() -> None:
    batch = collate([make_rollout(g, [5], [6]) for g in (30, 10, 20, 10, 40, 30)])
    assert [part.tolist() for part in mini_batches(batch, 2)] == [[1, 2, 3], [0, 4, 5]]
