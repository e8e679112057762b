"""Decoding on a CPU, several times faster than by the model's own forward: for the Llama family.

The weights lie prepacked in the layout that oneDNN's matrix products want, query, key and value in one product, gate
and up in another; what lies between the products is one kernel each (``rlreason/kernels``). Keys and values lie in
blocks of 32 tokens that a row lists in its table, so nothing is copied when a row grows or leaves, and rows of one
group share the blocks of their prompt (Kwon et al. 2023, "PagedAttention").

The same arithmetic as the modules': tests hold both against each other. Left out: other architectures, which
``ModuleDecoder`` decodes, and GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import linear, pad

from rlreason import kernels
from rlreason.engines.decoder import BLOCK, Prompts, prefill
from rlreason.kernels.modules import CAUSAL_LMS
from rlreason.policy import Policy


class _Linear:
    """A matrix product with its weight (outputs, inputs) packed once."""

    def __init__(self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None] = (None,)) -> None:
        weight = torch.cat(list(weights)) if len(weights) > 1 else weights[0]
        self.bias = torch.cat([b for b in biases if b is not None]) if biases[0] is not None else None
        self.packed = torch.backends.mkldnn.is_available()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None) if self.packed else weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if not self.packed:
            return linear(x, self.weight, self.bias)
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out


@dataclass(frozen=True)
class _Layer:
    qkv: _Linear
    output: _Linear
    gate_up: _Linear
    down: _Linear
    attention_norm: torch.Tensor
    mlp_norm: torch.Tensor
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None


class _Pool:
    """Blocks of keys and values for every layer, laid out as ``kernels.key_blocks`` and ``value_blocks`` do; a block
    may belong to several rows. It doesn't double past ``limit`` blocks."""

    def __init__(self, layers: int, kv_heads: int, width: int, dtype: torch.dtype, limit: int) -> None:
        self.layers, self.kv_heads, self.width, self.dtype = layers, kv_heads, width, dtype
        self.limit = limit
        self.clear()

    def clear(self) -> None:
        self.keys: list[torch.Tensor] = [self._empty(0, True)] * self.layers
        self.values: list[torch.Tensor] = [self._empty(0, False)] * self.layers
        self.owners: list[int] = []  # of each block, how many rows
        self.free: list[int] = []

    def _empty(self, blocks: int, keys: bool) -> torch.Tensor:
        states = torch.empty(blocks, self.kv_heads, BLOCK, self.width, dtype=self.dtype)
        return torch.empty((kernels.key_blocks if keys else kernels.value_blocks)(states).shape, dtype=self.dtype)

    def take(self, count: int) -> list[int]:
        """Blocks that are nobody's, now owned once each; the pool doubles when there are too few, up to the limit."""
        if count > len(self.free):
            before = len(self.owners)
            after = max(min(2 * before, self.limit), before + count - len(self.free))
            for keys, pool in ((True, self.keys), (False, self.values)):
                for i, old in enumerate(pool):  # layer by layer, so that only one of them is there twice
                    pool[i] = self._empty(after, keys)
                    pool[i][:before] = old
            self.owners += [0] * (after - before)
            self.free = [*range(after - 1, before - 1, -1), *self.free]
        taken = [self.free.pop() for _ in range(count)]
        for block in taken:
            self.owners[block] = 1
        return taken

    def release(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self.owners[block] -= 1
            if self.owners[block] == 0:
                self.free.append(block)


class PagedDecoder:
    """Implements ``Decoder``. ``max_tokens`` is what the rows may come to hold together, and bounds the cache."""

    def __init__(self, policy: Policy, *, max_tokens: int) -> None:
        self.policy = policy
        config = policy.model.config
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads
        self.width: int = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.eps: float = config.rms_norm_eps
        self.layers: list[_Layer] = []
        limit = max_tokens // BLOCK
        self._pool = _Pool(config.num_hidden_layers, self.kv_heads, self.width, policy.model.dtype, limit)
        self._blocks: list[list[int]] = []  # of each row
        self._lengths: list[int] = []

    @staticmethod
    def supports(policy: Policy) -> bool:
        """Whether the model is of the family, in a form that the kernels compute, on a CPU that has them."""
        config, model = policy.model.config, policy.model
        rope = getattr(config, "rope_parameters", None) or {}
        return (
            type(model).__name__ in CAUSAL_LMS
            and kernels.usable(next(model.parameters()))
            and config.hidden_act == "silu"
            and rope.get("rope_type") not in ("dynamic", "longrope")  # whose angles depend on the sequence's length
            and getattr(config, "sliding_window", None) is None
            and not getattr(config, "mlp_bias", False)
        )

    def refresh(self) -> None:
        self.layers = []  # packed at the first prompt after this: a sync before an evaluation costs nothing

    def begin(self, prompts: Prompts) -> torch.Tensor:
        if not self.layers:
            self._pack()
        last, cache = prefill(self.policy, prompts)
        # full blocks of a prompt belong to all its rows, the one after them to each row alone
        rows_of = [prompts.source.count(i) for i in range(len(prompts.ids))]
        shared = [self._pool.take(len(ids) // BLOCK) for ids in prompts.ids]
        own = self._pool.take(len(prompts.source))
        for blocks, rows in zip(shared, rows_of, strict=True):
            for block in blocks:
                self._pool.owners[block] = rows
        for source, block in zip(prompts.source, own, strict=True):
            self._blocks.append([*shared[source], block])
            self._lengths.append(len(prompts.ids[source]))
        span = -(-(max(map(len, prompts.ids)) + 1) // BLOCK)  # blocks a prompt, the started one included
        target = [block for blocks in shared for block in blocks] + own
        origin = [i * span + j for i, blocks in enumerate(shared) for j in range(len(blocks))]
        origin += [i * span + len(shared[i]) for i in prompts.source]
        for keys, values, layer in zip(self._pool.keys, self._pool.values, cache.layers, strict=True):
            keys[target] = kernels.key_blocks(_blocks(layer.keys, span)[origin])
            values[target] = kernels.value_blocks(_blocks(layer.values, span)[origin])
        return last[prompts.source]

    def step(self, newest: Sequence[int]) -> torch.Tensor:
        for row, length in enumerate(self._lengths):
            if length // BLOCK == len(self._blocks[row]):
                self._blocks[row] += self._pool.take(1)
        longest = max(map(len, self._blocks))
        table = torch.tensor([[*blocks, *[0] * (longest - len(blocks))] for blocks in self._blocks], dtype=torch.int32)
        position = torch.tensor(self._lengths, dtype=torch.int32)
        self._lengths = [length + 1 for length in self._lengths]
        cosine, sine = self._angles(max(self._lengths))
        x = self.embedding[torch.tensor(newest)]  # (R, hidden)
        delta = None
        for i, layer in enumerate(self.layers):
            normed = kernels.add_rms_norm(x, delta, layer.attention_norm, self.eps)
            mixed = kernels.decode_attention(
                layer.qkv(normed), self._pool.keys[i], self._pool.values[i], position, table, cosine, sine,
                query_norm=layer.query_norm, key_norm=layer.key_norm, eps=self.eps, scaling=self.scaling,
            )  # fmt: skip
            normed = kernels.add_rms_norm(x, layer.output(mixed), layer.mlp_norm, self.eps)
            delta = layer.down(kernels.swiglu(*layer.gate_up(normed).chunk(2, -1)))
        return self.head(kernels.add_rms_norm(x, delta, self.norm, self.eps))

    def remove(self, row: int) -> None:
        self._pool.release(self._blocks[row])
        blocks, length = self._blocks.pop(), self._lengths.pop()
        if row < len(self._blocks):
            self._blocks[row], self._lengths[row] = blocks, length

    def clear(self) -> None:
        self._blocks, self._lengths = [], []
        self._pool.clear()

    @torch.no_grad()
    def _pack(self) -> None:
        # the engine is inside ``policy.merged()``: these have LoRA in them
        weights = {name: weight.detach() for name, weight in self.policy.model.named_parameters()}
        self.embedding = weights["model.embed_tokens.weight"]
        self.norm = weights["model.norm.weight"]
        self.head = _Linear([weights.get("lm_head.weight", self.embedding)])
        self.scaling: float = self.policy.model.model.layers[0].self_attn.scaling
        self._cosine = self._sine = torch.empty(0)
        for i in range(self.policy.model.config.num_hidden_layers):
            attention, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
            inputs = [f"{attention}.{name}_proj" for name in "qkv"]
            self.layers.append(
                _Layer(
                    qkv=_Linear([weights[f"{n}.weight"] for n in inputs], [weights.get(f"{n}.bias") for n in inputs]),
                    output=_Linear([weights[f"{attention}.o_proj.weight"]], [weights.get(f"{attention}.o_proj.bias")]),
                    gate_up=_Linear([weights[f"{mlp}.gate_proj.weight"], weights[f"{mlp}.up_proj.weight"]]),
                    down=_Linear([weights[f"{mlp}.down_proj.weight"]]),
                    attention_norm=weights[f"model.layers.{i}.input_layernorm.weight"],
                    mlp_norm=weights[f"model.layers.{i}.post_attention_layernorm.weight"],
                    query_norm=weights.get(f"{attention}.q_norm.weight"),
                    key_norm=weights.get(f"{attention}.k_norm.weight"),
                )
            )

    def _angles(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of the rotary embedding, (at least ``length``, width), by the model's own module."""
        if len(self._cosine) < length:
            positions = torch.arange(-(-length // 1024) * 1024)[None]
            cosine, sine = self.policy.model.model.rotary_emb(self.embedding, positions)
            self._cosine, self._sine = cosine[0].contiguous(), sine[0].contiguous()
        return self._cosine, self._sine


def _blocks(states: torch.Tensor, span: int) -> torch.Tensor:
    """(prompts, kv heads, tokens, width) to (prompts * span, kv heads, BLOCK, width), padded at the end."""
    prompts, kv_heads, tokens, width = states.shape
    padded = pad(states, (0, 0, 0, max(0, span * BLOCK - tokens)))[:, :, : span * BLOCK]
    return padded.view(prompts, kv_heads, span, BLOCK, width).transpose(1, 2).reshape(-1, kv_heads, BLOCK, width)
