"""Rows of a batch in one sequence: by hand, and what attention makes of them."""

from __future__ import annotations

import torch
from helpers import device, make_rollout, random_ids

from rlreason.batch import collate
from rlreason.packing import attend_packed, pack
from rlreason.types import Batch


def make_batch() -> Batch:
    """Two prompts, of 3 and 2 tokens; completions of 3, 1, 2 tokens."""
    rows = [(0, [10, 11, 12], [20, 21, 22]), (1, [13, 14], [23]), (0, [10, 11, 12], [24, 25])]
    return collate([make_rollout(*row) for row in rows], device=device())


def test_layout_by_hand() -> None:
    first, prompt_of = (torch.tensor(x, device=device()) for x in ([0, 1], [0, 1, 0]))
    packing = pack(make_batch(), first, prompt_of, torch.float32)
    # two prompts, then completions without their last token: of row 1 nothing is left
    assert packing.tokens.tolist() == [[10, 11, 12, 13, 14, 20, 21, 24]]
    assert packing.positions.tolist() == [[0, 1, 2, 0, 1, 3, 4, 3]]
    # each prompt's last token and all of the completions predict something
    assert packing.select.int().tolist() == [[0, 0, 1, 0, 1, 1, 1, 1]]
    # 20 by 12, 21 by 20, 22 by 21; 23 by 14; 24 by 12, 25 by 24, counted among the selected
    assert packing.source.tolist() == [0, 2, 3, 1, 0, 4]
    assert packing.prompts.present.int().tolist() == [[1, 1, 1], [1, 1, 0]]
    assert packing.completions.present.int().tolist() == [[1, 1], [0, 0], [1, 0]]
    assert packing.completions.begin == 5
    # second token of the first completion: its prompt, the one before it, itself; of a prompt of 2, two places
    assert (packing.completions.mask[0, 0, 1] == 0).tolist() == [True] * 5
    assert (packing.completions.mask[0, 0, 0] == 0).tolist() == [True, True, True, True, False]
    assert (packing.completions.mask[1, 0, 0] == 0).tolist() == [True, True, False, False, False]
    assert (packing.prompts.mask[1, 0, 1] == 0).tolist() == [True, True, False]


def test_tokens_of_the_environment_predict_nothing() -> None:
    batch = make_batch()
    batch.mask[0, 4] = False  # 21
    first, prompt_of = (torch.tensor(x, device=device()) for x in ([0, 1], [0, 1, 0]))
    packing = pack(batch, first, prompt_of, torch.float32)
    assert packing.select.int().tolist() == [[0, 0, 1, 0, 1, 0, 1, 1]]
    assert packing.source.tolist() == [0, 2, 1, 0, 3]


def test_completions_of_one_token_alone() -> None:
    """Of which nothing is run: their prompts predict them."""
    batch = collate([make_rollout(0, [10, 11, 12], [token]) for token in (20, 21)], device=device())
    first, prompt_of = (torch.tensor(x, device=device()) for x in ([0], [0, 0]))
    packing = pack(batch, first, prompt_of, torch.float32)
    assert packing.tokens.tolist() == [[10, 11, 12]]
    assert packing.source.tolist() == [0, 0]
    states = torch.randn(1, 2, 3, 4, device=device())
    mixed = attend_packed(packing, lambda q, k, v, mask: q, states, states, states)
    assert torch.equal(mixed, states.transpose(1, 2))


def test_nothing_arrives_at_the_wrong_place() -> None:
    """Attention that hands the values through: what comes out is what went in, and so with the gradients, whichever
    way the memory lies and whatever stands where there is no token."""
    groups = [0, 0, 3, 1, 1, 1]
    prompts = {group: random_ids(2 + group, seed=group) for group in groups}
    rows = [make_rollout(g, prompts[g], random_ids(n, seed=n)) for g, n in zip(groups, (4, 1, 7, 2, 9, 3), strict=True)]
    first, prompt_of = (torch.tensor(x, device=device()) for x in ([0, 2, 3], [0, 0, 1, 2, 2, 2]))
    packing = pack(collate(rows, device=device()), first, prompt_of, torch.float32)
    count = packing.tokens.shape[1]
    assert count == 2 + 5 + 3 + (3 + 0 + 6 + 1 + 8 + 2)

    def only_query(query: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return query * 2

    def only_own_key(query: torch.Tensor, key: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return key[:, :, -query.shape[2] :] * 2

    for attend, which in ((only_query, 0), (only_own_key, 1)):
        for heads_first in (True, False):
            shape = (1, 2, count, 4) if heads_first else (1, count, 2, 4)
            leaves = [torch.randn(shape, device=device(), requires_grad=True) for _ in range(3)]
            states = leaves if heads_first else [x.transpose(1, 2) for x in leaves]
            mixed = attend_packed(packing, attend, *states)
            assert torch.equal(mixed, 2 * states[which].transpose(1, 2))
            weight = torch.randn_like(mixed)
            (gradient,) = torch.autograd.grad((mixed * weight).sum(), leaves[which])
            assert torch.equal(gradient, 2 * (weight.transpose(1, 2) if heads_first else weight))
