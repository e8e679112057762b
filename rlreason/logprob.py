"""log softmax at chosen tokens, with its entropy, in chunks of rows.

The plain formula keeps several float32 copies of [tokens, vocabulary] for the backward pass. ``log_softmax_at`` keeps
the logits as the model gave them and one number a row, and works through the rows in chunks, forward and backward.
``head_log_softmax_at`` keeps not even the logits: it starts from what the output layer reads, and computes a chunk's
logits where they are needed, a second time in the backward pass (as in Wijmans et al. 2024, "Cut Your Losses").
"""

from __future__ import annotations

from typing import Any

import torch

from rlreason import kernels

CHUNK = 128  # rows at a time: 25 MB of float32 at 49,152 tokens
LEAST = -1e30  # for logits of -inf: their probability is 0, and 0 * -inf would not be
HEAD_CHUNK = 1024  # rows of logits that exist at once: 300 MB of bfloat16 at 151,936 tokens


def log_softmax_at(
    logits: torch.Tensor, source: torch.Tensor, targets: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """log softmax(logits / temperature)[source, targets] and the entropy, in nats, of rows ``source``.

    logits (N, V) of any float type; source (M,) indices into N, targets (M,) into V. Both results are (M,) float32
    and have gradients.
    """
    logp, entropy = _LogSoftmaxAt.apply(logits, source, targets, temperature)
    return logp, entropy[source]


def head_log_softmax_at(
    hidden: torch.Tensor, weight: torch.Tensor, source: torch.Tensor, targets: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """``log_softmax_at(hidden @ weight.T, ...)`` without ever holding more than HEAD_CHUNK rows of those logits.

    hidden (N, H), weight (V, H). The gradient in ``weight`` is added up in float32.
    """
    logp, entropy = _HeadLogSoftmaxAt.apply(hidden, weight, source, targets, temperature)
    return logp, entropy[source]


class _LogSoftmaxAt(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, source: torch.Tensor, targets: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        stats = kernels.softmax_stats if kernels.usable(logits) else _stats
        top, total, expected = stats(logits, temperature)
        logp = logits[source, targets].float() / temperature - top[source] - total[source]
        ctx.save_for_backward(logits, source, targets, top, total, expected)
        ctx.temperature = temperature
        return logp, total - expected

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # With x = logits / temperature and p = softmax(x): d logp_v / dx = 1_v - p, dH / dx = -p (x - sum of p x).
        grad_logp, grad_entropy = grads  # (M,), (N,)
        logits, source, targets, top, total, expected = ctx.saved_tensors
        weight = torch.zeros_like(total).index_add_(0, source, grad_logp)  # (N,)
        backward = kernels.softmax_backward if kernels.usable(logits) else _backward
        grad = backward(logits, top, total, expected, weight, grad_entropy, ctx.temperature)
        grad.index_put_((source, targets), (grad_logp / ctx.temperature).to(grad.dtype), accumulate=True)
        return grad, None, None, None


class _HeadLogSoftmaxAt(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        source: torch.Tensor,
        targets: torch.Tensor,
        temperature: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        parts, logp = [], torch.empty(len(source), device=hidden.device)
        for rows in _chunks(len(hidden)):
            logits = hidden[rows] @ weight.T
            stats = kernels.softmax_stats if kernels.usable(logits) else _stats
            top, total, expected = stats(logits, temperature)
            parts.append(torch.stack([top, total, expected]))
            here, own = _within(source, rows)
            logp[here] = logits[own, targets[here]].float() / temperature - top[own] - total[own]
        top, total, expected = torch.cat(parts, 1)
        ctx.save_for_backward(hidden, weight, source, targets, top, total, expected)
        ctx.temperature = temperature
        return logp, total - expected

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_logp, grad_entropy = grads  # (M,), (N,)
        hidden, weight, source, targets, *stats = ctx.saved_tensors
        taken = torch.zeros_like(stats[0]).index_add_(0, source, grad_logp)  # (N,)
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight, dtype=torch.float32)
        for rows in _chunks(len(hidden)):
            logits = hidden[rows] @ weight.T
            backward = kernels.softmax_backward if kernels.usable(logits) else _backward
            top, total, expected, weights, entropy_weights = (x[rows] for x in (*stats, taken, grad_entropy))
            grad = backward(logits, top, total, expected, weights, entropy_weights, ctx.temperature)
            here, own = _within(source, rows)
            add = (grad_logp[here] / ctx.temperature).to(grad.dtype)
            grad.index_put_((own, targets[here]), add, accumulate=True)
            grad_hidden[rows] = grad @ weight
            grad_weight += grad.T @ hidden[rows]
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None


def _chunks(rows: int) -> list[slice]:
    return [slice(begin, min(begin + HEAD_CHUNK, rows)) for begin in range(0, rows, HEAD_CHUNK)]


def _within(source: torch.Tensor, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Which entries of ``source`` lie in ``rows``, and where in them."""
    here = ((source >= rows.start) & (source < rows.stop)).nonzero().squeeze(1)
    return here, source[here] - rows.start


def _stats(logits: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``kernels.softmax_stats`` in PyTorch's own operators."""
    top = logits.amax(-1).float() / temperature  # everything is relative to it: the rest is small, so it is exact
    total, expected = torch.empty_like(top), torch.empty_like(top)
    for begin in range(0, len(logits), CHUNK):
        part = slice(begin, begin + CHUNK)
        scaled = (logits[part].float() / temperature - top[part, None]).clamp(min=LEAST)
        total[part] = torch.logsumexp(scaled, dim=-1)
        expected[part] = (torch.exp(scaled - total[part, None]) * scaled).sum(-1)
    return top, total, expected


def _backward(
    logits: torch.Tensor,
    top: torch.Tensor,
    total: torch.Tensor,
    expected: torch.Tensor,
    weight: torch.Tensor,
    entropy_weight: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """``kernels.softmax_backward`` in PyTorch's own operators."""
    grad = torch.empty_like(logits)
    with_entropy = bool(entropy_weight.any())
    for begin in range(0, len(logits), CHUNK):
        part = slice(begin, begin + CHUNK)
        scaled = (logits[part].float() / temperature - top[part, None]).clamp(min=LEAST)
        factor = weight[part, None]
        if with_entropy:
            factor = factor + entropy_weight[part, None] * (scaled - expected[part, None])
        grad[part] = torch.exp(scaled - total[part, None]) * (factor / -temperature)
    return grad
