"""Rows of a batch without their padding, in one sequence: each distinct prompt once, then every row's completion.

Everything in a decoder but its attention treats tokens one by one, so it runs on the packed sequence as it is. For
attention the tokens are spread over two padded grids: prompts see themselves, completions their prompt and themselves.
Padding then costs attention alone, which for short rows is a small part.

Left out: models whose layers mix tokens in other ways, or whose positions are not rotary; ``policy.token_logprobs``
runs those on padded rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from rlreason.types import Batch

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""query (B, H, Q, D), key and value (B, K, L, D), additive mask (B, 1, Q, L) to (B, H, Q, D)."""


@dataclass(frozen=True)
class Grid:
    """Part of a packed sequence, from its token ``begin`` on, as a padded table (rows, width)."""

    begin: int
    present: torch.Tensor  # (rows, width) bool, whose true entries are the part's tokens, row by row
    place: torch.Tensor  # (rows, width) a token's place in the part; 0 where there is none
    mask: torch.Tensor  # (rows, 1, width, keys) additive: which keys a token sees

    def from_sequence(self, heads: int, head_stride: int, token_stride: int) -> torch.Tensor:
        """(rows, heads, width): the running numbers of this table's vectors among the sequence's."""
        head = torch.arange(heads, device=self.place.device)[:, None]
        return (self.begin + self.place[:, None]) * token_stride + head * head_stride

    def from_table(self, heads: int) -> torch.Tensor:
        """(tokens, heads): the running numbers of this part's vectors in a table (rows, heads, width)."""
        row, column = self.present.nonzero(as_tuple=True)
        head = torch.arange(heads, device=row.device)
        width = self.present.shape[1]
        return (row[:, None] * heads + head) * width + column[:, None]


@dataclass(frozen=True)
class Packing:
    """N tokens. A completion's last token predicts nothing and is not among them."""

    tokens: torch.Tensor  # (1, N)
    positions: torch.Tensor  # (1, N)
    select: torch.Tensor  # (1, N) bool, tokens that predict one of the batch's mask
    source: torch.Tensor  # (M,) which of the selected predicts the mask's tokens, row by row
    prompts: Grid  # a row each
    completions: Grid  # a row each
    prompt_of: torch.Tensor  # (R,) each completion's prompt


def pack(batch: Batch, first: torch.Tensor, prompt_of: torch.Tensor, dtype: torch.dtype) -> Packing:
    """The batch's rows, whose U distinct prompts are those of rows ``first`` (U,); ``prompt_of`` (R,) says whose is
    whose. The attention masks are of ``dtype``."""
    length, device = batch.prompt_length[:, None], batch.tokens.device
    at = torch.arange(batch.tokens.shape[1], device=device)
    in_prompt = at < length[first]  # (U, S)
    runs = (at >= length) & (at + 1 < batch.attention.sum(1, keepdim=True))  # (R, S)
    begin = int(in_prompt.sum())

    place = torch.where(at < length, _places(in_prompt)[prompt_of], _places(runs) + begin)  # (R, S) in the sequence
    predicting = place[:, :-1][batch.mask[:, 1:]]
    select = torch.zeros(begin + int(runs.sum()), dtype=torch.bool, device=device).index_fill_(0, predicting, True)

    # completions moved to the left, so that they start together
    offset = torch.arange(max(1, int(runs.sum(1).max())), device=device)
    moved = (length + offset).clamp(max=len(at) - 1)
    present = runs.gather(1, moved) & (length + offset < len(at))
    seen = present[:, None] & (offset[:, None] >= offset)
    width = int(length.max())
    prompt_seen = in_prompt[:, None, :width]
    return Packing(
        tokens=torch.cat([batch.tokens[first][in_prompt], batch.tokens[runs]])[None],
        positions=torch.cat([at.expand_as(in_prompt)[in_prompt], at.expand_as(runs)[runs]])[None],
        select=select[None],
        source=(select.cumsum(0) - 1)[predicting],
        prompts=Grid(
            begin=0,
            present=in_prompt[:, :width],
            place=_places(in_prompt[:, :width]),
            mask=_additive(prompt_seen & (at[:width, None] >= at[:width]), dtype),
        ),
        completions=Grid(
            begin=min(begin, len(select) - 1),  # if there are none, any token may stand for nothing
            present=present,
            place=_places(present),
            mask=_additive(torch.cat([prompt_seen[prompt_of].expand(-1, len(offset), -1), seen], -1), dtype),
        ),
        prompt_of=prompt_of,
    )


def _places(present: torch.Tensor) -> torch.Tensor:
    """The running number of each true entry, row by row; 0 for others."""
    return (present.flatten().cumsum(0).view_as(present) - 1).masked_fill_(~present, 0)


def _additive(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)
    return mask.unsqueeze(1)


_packing: ContextVar[Packing | None] = ContextVar("packing", default=None)


@contextmanager
def packed(packing: Packing) -> Iterator[None]:
    """A block in which a model with ``grouped`` attention takes its input, (1, N), for this packed sequence."""
    token = _packing.set(packing)
    try:
        yield
    finally:
        _packing.reset(token)


def current_packing() -> Packing | None:
    """The packing of the block that this is called in."""
    return _packing.get()


def attend_packed(
    packing: Packing, attend: Attend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """Attention of a packed sequence: query (1, H, N, D), key and value (1, K, N, D) to (1, N, H, D)."""
    (prompt_q, q), (prompt_k, k), (prompt_v, v) = (_Spread.apply(x, packing) for x in (query, key, value))
    k, v = (
        torch.cat([of_prompts.index_select(0, packing.prompt_of), own], 2)
        for of_prompts, own in ((prompt_k, k), (prompt_v, v))
    )
    of_prompts = attend(prompt_q, prompt_k, prompt_v, packing.prompts.mask)
    mixed: torch.Tensor = _Join.apply(packing, of_prompts, attend(q, k, v, packing.completions.mask))
    return mixed


class _Spread(torch.autograd.Function):
    """(1, heads, N, D) to a (rows, heads, width, D) for each grid. What it puts where there is no token is arbitrary,
    and so is the gradient that arrives there: nobody sees either."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, packing: Packing) -> tuple[torch.Tensor, ...]:
        ctx.packing, ctx.size = packing, x.shape
        _, heads, count, _ = x.shape
        flat = x[0] if x[0].is_contiguous() else x[0].transpose(0, 1)  # as a linear layer writes it
        strides = (count, 1) if x[0].is_contiguous() else (1, heads)
        return tuple(
            _take(flat, grid.from_sequence(heads, *strides)) for grid in (packing.prompts, packing.completions)
        )

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        heads = ctx.size[1]
        parts = [
            _take(grad, grid.from_table(heads))
            for grad, grid in zip(grads, (ctx.packing.prompts, ctx.packing.completions), strict=True)
        ]
        return torch.cat(parts).transpose(0, 1)[None], None


class _Join(torch.autograd.Function):
    """The other way: a (rows, heads, width, D) for each grid to (1, N, heads, D)."""

    @staticmethod
    def forward(ctx: Any, packing: Packing, *tables: torch.Tensor) -> torch.Tensor:
        ctx.packing, heads = packing, tables[0].shape[1]
        grids = (packing.prompts, packing.completions)
        return torch.cat([_take(x, grid.from_table(heads)) for x, grid in zip(tables, grids, strict=True)])[None]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        heads = grad.shape[2]
        grads = (
            _take(grad[0], grid.from_sequence(heads, 1, heads)).mul_(grid.present[:, None, :, None])
            for grid in (ctx.packing.prompts, ctx.packing.completions)
        )
        return None, *grads


def _take(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Vectors (..., D) of x by their running number, in the shape of ``index``."""
    return x.reshape(-1, x.shape[-1]).index_select(0, index.flatten()).view(*index.shape, x.shape[-1])
