"""Attention by plain matrix products over grouped key/value heads, as an attention implementation of transformers.

PyTorch's fused CPU kernel is slow on short rows, and Hugging Face's eager one copies the keys and values of every
group of query heads. Here the query heads of a group are stacked instead, so nothing is repeated. Its memory grows
with query length x key length: fine for rows of a few hundred tokens and for decoding, not for long contexts, where
``sdpa`` is the choice.

Left out: logit soft-capping (Gemma 2) and attention sinks (gpt-oss); models that ask for them are refused, and run
with ``model.attn_implementation=eager``.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from rlreason import kernels
from rlreason.packing import attend_packed, current_packing

NAME = "grouped"
CHUNK = 256
"""Queries at a time in a causal model: what a chunk can't see yet is not computed."""


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention.

    query (B, H, Q, D), key and value (B, K, L, D) with H a multiple of K, attention_mask additive
    (B, 1, Q, L) or None for no masking at all; returns (B, Q, H, D). The signature is transformers' own. Raises
    ValueError for what it does not compute.
    """
    for name in ("softcap", "s_aux", "sinks"):
        if options.get(name) is not None:
            raise ValueError(f"this model uses {name} in its attention: run it with model.attn_implementation=eager")

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        queries, keys = query.shape[2], key.shape[2]
        if queries <= CHUNK or mask is None or not getattr(module, "is_causal", False):
            return _attend(module, query, key, value, mask, scaling, dropout)
        mixed = []
        for begin in range(0, queries, CHUNK):
            end = min(begin + CHUNK, queries)
            seen = keys - queries + end  # the last query sees every key, the one before it one less, ...
            part = (query[:, :, begin:end], key[:, :, :seen], value[:, :, :seen], mask[..., begin:end, :seen])
            mixed.append(_attend(module, *part, scaling, dropout))
        return torch.cat(mixed, dim=2)

    packing = current_packing()
    if packing is not None:
        return attend_packed(packing, attend, query, key, value), None
    return attend(query, key, value, attention_mask).transpose(1, 2).contiguous(), None


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    dropout: float,
) -> torch.Tensor:
    """(B, H, Q, D)."""
    rows, heads, queries, width = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    stacked = query.reshape(rows, kv_heads, heads // kv_heads * queries, width)
    dropped = dropout if module.training else 0.0
    if not dropped and kernels.usable(query) and (mask is None or mask.dtype == query.dtype):
        mixed: torch.Tensor = _Attention.apply(stacked, key, value, mask, queries, scaling)
    else:
        scores = torch.matmul(stacked * scaling, key.transpose(2, 3))  # (B, K, H/K*Q, L)
        if mask is not None:
            scores = scores.view(rows, kv_heads, -1, queries, keys) + mask.unsqueeze(2)
            scores = scores.view(rows, kv_heads, -1, keys)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        mixed = torch.matmul(torch.nn.functional.dropout(weights, dropped), value)
    return mixed.view(rows, heads, queries, width)


class _Attention(torch.autograd.Function):
    """The same with one kernel for scale, mask and softmax, of which only the rounded weights are kept."""

    @staticmethod
    def forward(
        ctx: Any,
        stacked: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        queries: int,
        scaling: float,
    ) -> torch.Tensor:
        scores = torch.matmul(stacked, key.transpose(2, 3))
        by_query = scores.view(len(scores), -1, queries, scores.shape[-1])
        weights = kernels.attention_softmax_(by_query, mask, scaling).view_as(scores)
        ctx.save_for_backward(stacked, key, value, weights)
        ctx.scaling = scaling
        return torch.matmul(weights, value)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        stacked, key, value, weights = ctx.saved_tensors
        grad_value = torch.matmul(weights.transpose(2, 3), grads[0])
        grad = torch.matmul(grads[0], value.transpose(2, 3))
        grad = kernels.attention_softmax_backward_(grad, weights, ctx.scaling)
        return torch.matmul(grad, key), torch.matmul(grad.transpose(2, 3), stacked), grad_value, None, None, None


def register() -> None:
    """Make ``attn_implementation="grouped"`` known to transformers."""
    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
