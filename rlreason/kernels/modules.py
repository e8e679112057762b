"""RMS norm, SwiGLU and rotary embedding of a transformers model by the kernels, in training and in prefills.

Each module keeps its class, its weights and its name; only its ``forward`` is replaced, and falls back to its own for
tensors that the kernels don't take. The rotary embedding is a function of the family's file, replaced there for all
models of the process. Left out: other norms and activations, which stay as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from rlreason import kernels

FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
CAUSAL_LMS = frozenset(f"{family}ForCausalLM" for family in FAMILIES)
"""Decoders of one shape: RMS norm before, grouped attention with rotary positions, SwiGLU."""
ROTARY_FILES = tuple(f"transformers.models.{name.lower()}.modeling_{name.lower()}" for name in FAMILIES)
SILU = ("SiLU", "SiLUActivation")


def speed_up(model: nn.Module) -> None:
    """Replace the forward passes of the modules that the kernels compute."""
    for module in model.modules():
        name = type(module).__name__
        # bound methods, so that a deep copy of the model gets its own
        if name in {f"{family}RMSNorm" for family in FAMILIES}:
            module.forward = MethodType(_norm_forward, module)
        elif name in {f"{family}MLP" for family in FAMILIES} and type(module.act_fn).__name__ in SILU:
            module.forward = MethodType(_mlp_forward, module)

    family: Any = sys.modules[type(model).__module__]
    if family.__name__ in ROTARY_FILES and not isinstance(plain := family.apply_rotary_pos_emb, _Rotate):
        family.apply_rotary_pos_emb = _Rotate(plain)


@dataclass(frozen=True)
class _Rotate:
    """Stands in for transformers' ``apply_rotary_pos_emb``."""

    plain: Callable[..., tuple[torch.Tensor, torch.Tensor]]

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        takes = unsqueeze_dim == 1 and kernels.usable(q) and cos.dtype == q.dtype and cos.shape[-1] == q.shape[-1]
        if not takes or q.stride(-1) != 1 or k.stride(-1) != 1:
            return self.plain(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
        return _Rotary.apply(q, cos, sin), _Rotary.apply(k, cos, sin)


def _norm_forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    if not kernels.usable(hidden_states) or self.weight.dtype != hidden_states.dtype:
        return type(self).forward(self, hidden_states)
    out: torch.Tensor = _RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)
    return out


def _mlp_forward(self: Any, x: torch.Tensor) -> torch.Tensor:
    if not kernels.usable(x):
        return type(self).forward(self, x)
    out: torch.Tensor = self.down_proj(_SwiGLU.apply(self.gate_proj(x), self.up_proj(x)))
    return out


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        x = x.contiguous()
        out, inverse = kernels.rms_norm(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_x, grad_weight = kernels.rms_norm_backward(grad.contiguous(), *ctx.saved_tensors)
        return grad_x, grad_weight, None


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cosine, sine)
        return kernels.rotary(x, cosine, sine)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return kernels.rotary_backward(grad.contiguous(), *ctx.saved_tensors), None, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        return kernels.swiglu(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return kernels.swiglu_backward(grad.contiguous(), *ctx.saved_tensors)
