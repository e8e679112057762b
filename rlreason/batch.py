"""Rollouts and demonstrations into tensors: the only place that pads. Which of its tokens count. And the cuts of a
batch: mini-batches and micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from rlreason.types import Batch, Rollout, Segment


def collate(rollouts: Sequence[Rollout], *, mask_truncated: bool = False, device: torch.device | str = "cpu") -> Batch:
    """One row per segment, padded on the right with token 0 to the longest; (R, S) with R = S = 0 for no rollouts.

    Rows of an ``error`` are neither graded nor live. ``mask_truncated`` takes rollouts that ran into the length limit
    out of the loss (DAPO's overlong filtering) while they stay in their group's baseline. What a turn earned
    (``Grade.turn_rewards``) goes to ``token_reward`` on the turn's last token, and ``reward`` is what they leave.
    """
    rows = [(i, r, segment) for i, r in enumerate(rollouts) for segment in r.segments]
    padded = _padded([segment for _, _, segment in rows])
    owners = [r for _, r, _ in rows]
    graded = torch.tensor([r.grade.status != "error" for r in owners], dtype=torch.bool)
    truncated = torch.tensor([r.finish == "length" for r in owners], dtype=torch.bool)
    correct = [float("nan") if r.grade.correct is None else float(r.grade.correct) for r in owners]
    batch = Batch(
        **padded,
        rollout=torch.tensor([i for i, _, _ in rows], dtype=torch.long),
        group=torch.tensor([r.group for r in owners], dtype=torch.long),
        reward=torch.tensor([r.grade.reward - sum(r.grade.turn_rewards) for r in owners], dtype=torch.float32),
        token_reward=_turn_rewards(rollouts, padded["mask"]),
        correct=torch.tensor(correct, dtype=torch.float32),
        truncated=truncated,
        graded=graded,
        live=graded & ~truncated if mask_truncated else graded,
    )
    return _on(device, batch)


def stack(segments: Sequence[Segment], groups: Sequence[int], *, device: torch.device | str = "cpu") -> Batch:
    """One row per segment, padded as ``collate`` does, for training without rewards: all rows count, and those of equal
    ``groups`` belong together."""
    count = len(segments)
    batch = Batch(
        **_padded(segments),
        rollout=torch.arange(count),
        group=torch.tensor(list(groups), dtype=torch.long),
        reward=torch.zeros(count),
        correct=torch.full((count,), float("nan")),
        truncated=torch.zeros(count, dtype=torch.bool),
        graded=torch.ones(count, dtype=torch.bool),
        live=torch.ones(count, dtype=torch.bool),
    )
    return _on(device, batch)


def _padded(segments: Sequence[Segment]) -> dict[str, torch.Tensor]:
    """The fields of a batch that speak of tokens."""
    width = max((len(s.prompt_ids) + len(s.completion_ids) for s in segments), default=0)
    tokens = torch.zeros((len(segments), width), dtype=torch.long)
    attention = torch.zeros((len(segments), width), dtype=torch.bool)
    mask = torch.zeros((len(segments), width), dtype=torch.bool)
    sampler_logp = torch.zeros((len(segments), width))
    for row, segment in enumerate(segments):
        start, end = len(segment.prompt_ids), len(segment.prompt_ids) + len(segment.completion_ids)
        tokens[row, :end] = torch.tensor(segment.prompt_ids + segment.completion_ids)
        attention[row, :end] = True
        mask[row, start:end] = torch.tensor(segment.mask, dtype=torch.bool)
        sampler_logp[row, start:end] = torch.tensor(segment.sampler_logp)
    return {
        "tokens": tokens,
        "attention": attention,
        "mask": mask,
        "prompt_length": torch.tensor([len(s.prompt_ids) for s in segments], dtype=torch.long),
        "sampler_logp": sampler_logp.masked_fill(~mask, 0.0),
    }


def _turn_rewards(rollouts: Sequence[Rollout], mask: torch.Tensor) -> torch.Tensor | None:
    """(R, S) with each turn's reward on its last token; None if no rollout has any. A turn is a run of the mask."""
    if not any(rollout.grade.turn_rewards for rollout in rollouts):
        return None
    earned = torch.zeros(mask.shape)
    goes_on = torch.zeros_like(mask)
    goes_on[:, :-1] = mask[:, 1:]
    ends = iter((mask & ~goes_on).nonzero().tolist())  # row by row
    for rollout in rollouts:
        turns = [next(ends) for segment in rollout.segments for _ in range(_turns(segment))]
        for (row, token), reward in zip(turns, rollout.grade.turn_rewards or [0.0] * len(turns), strict=True):
            earned[row, token] = reward
    return earned


def _turns(segment: Segment) -> int:
    return sum(here and not before for before, here in pairwise([False, *segment.mask]))


def _on(device: torch.device | str, batch: Batch) -> Batch:
    return Batch(**{k: v.to(device) for k, v in vars(batch).items() if v is not None})


def live_tokens(batch: Batch) -> torch.Tensor:
    """The tokens that count: written by the policy, in a live row. (R, S) bool."""
    return batch.mask & batch.live[:, None]


def same_prompts(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """(first, prompt_of): the first row of each distinct prompt, in order, and for each row (R,) which of them it has.

    By the tokens, not by the group: the later segments of a group's rollouts have prompts of their own.
    """
    length = batch.prompt_length
    rows = torch.arange(len(length), device=length.device)
    if not len(rows):
        return rows, rows
    inside = torch.arange(int(length.max()), device=length.device) < length[:, None]
    prompts = torch.where(inside, batch.tokens[:, : inside.shape[1]], -1)
    distinct, found = prompts.unique(dim=0, return_inverse=True)
    first = torch.full((len(distinct),), len(rows), device=rows.device).scatter_reduce(0, found, rows, "amin")
    order = first.argsort()
    return first[order], order.argsort()[found]


def mini_batches(batch: Batch, count: int) -> list[torch.Tensor]:
    """Row indices of ``count`` mini-batches of whole groups, in order of the groups, as even as they go.

    Some are empty if there are fewer groups than ``count``.
    """
    _, inverse = batch.group.unique(return_inverse=True)
    groups = int(inverse.max()) + 1 if len(inverse) else 0
    part = inverse * count // max(groups, 1)
    return [(part == i).nonzero().squeeze(1) for i in range(count)]


def micro_batches(
    batch: Batch, rows: torch.Tensor, max_tokens: int, *, shared_prompts: bool = False
) -> list[torch.Tensor]:
    """Cut ``rows`` into pieces of at most ``max_tokens`` padded tokens (at least one row each).

    Rows of one prompt stay neighbours, so that they can share it; prompts go from long rows to short ones, so that the
    padding is small and the most memory is asked for first. With ``shared_prompts`` a prompt counts once in a piece, as
    it is then computed.
    """
    length, total = batch.prompt_length.tolist(), batch.attention.sum(1).tolist()
    prompt = same_prompts(batch)[1].tolist()
    longest: dict[int, int] = {}
    for row in rows.tolist():
        longest[prompt[row]] = max(longest.get(prompt[row], 0), total[row])

    def cost(piece: list[int]) -> int:
        if not shared_prompts:
            return len(piece) * max(total[row] for row in piece)
        prompts = len({prompt[row] for row in piece}) * max(length[row] for row in piece)
        return prompts + len(piece) * max(total[row] - length[row] for row in piece)

    pieces: list[list[int]] = []
    for row in sorted(rows.tolist(), key=lambda row: (-longest[prompt[row]], prompt[row], -total[row])):
        if pieces and cost([*pieces[-1], row]) <= max_tokens:
            pieces[-1].append(row)
        else:
            pieces.append([row])
    return [torch.tensor(piece, device=rows.device) for piece in pieces]
