"""log softmax at chosen tokens, with its entropy, in chunks of rows.

The plain formula keeps several float32 copies of [tokens, vocabulary] for the backward pass. This one keeps the
logits as the model gave them and one number a row, and works through the rows in chunks, forward and backward.
"""

from __future__ import annotations

from typing import Any

import torch

CHUNK = 128  # rows at a time: 25 MB of float32 at 49,152 tokens


def log_softmax_at(
    logits: torch.Tensor, source: torch.Tensor, targets: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """log softmax(logits / temperature)[source, targets] and the entropy, in nats, of rows ``source``.

    logits (N, V) of any float type; source (M,) indices into N, targets (M,) into V. Both results are (M,) float32
    and have gradients.
    """
    logp, entropy = _LogSoftmaxAt.apply(logits, source, targets, temperature)
    return logp, entropy[source]


class _LogSoftmaxAt(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, source: torch.Tensor, targets: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        top = logits.amax(-1).float() / temperature  # everything is relative to it: the rest is small, so it is exact
        total = torch.empty_like(top)  # logsumexp - top
        expected = torch.empty_like(total)  # sum of p x
        for rows in torch.arange(len(logits)).split(CHUNK):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            scaled = logits[part].float() / temperature - top[part, None]
            total[part] = torch.logsumexp(scaled, dim=-1)
            expected[part] = (torch.exp(scaled - total[part, None]) * scaled).sum(-1)
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
        grad = torch.empty_like(logits)
        with_entropy = bool(grad_entropy.any())
        for rows in torch.arange(len(logits)).split(CHUNK):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            scaled = logits[part].float() / ctx.temperature - top[part, None]
            factor = weight[part, None]
            if with_entropy:
                factor = factor + grad_entropy[part, None] * (scaled - expected[part, None])
            grad[part] = torch.exp(scaled - total[part, None]) * (factor / -ctx.temperature)
        grad.index_put_((source, targets), (grad_logp / ctx.temperature).to(grad.dtype), accumulate=True)
        return grad, None, None, None
