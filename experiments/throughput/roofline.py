"""What a plain memory copy and a plain matrix product reach here, and the time that work needs at their speed.

Counted is what can't be avoided, so that the bounds are low and the shares of them that are reported are, if anything,
too low:

- A decoding step over n rows multiplies each weight once with each row (2 FLOPs) and attends to the tokens so far; it
  reads the weights once and the keys and values of the tokens so far once, in bfloat16. A prompt that the samples of a
  group share is read once. The prompts' own pass counts as a step that reads the weights once.
- An update is 6 FLOPs a weight and token; a group's prompt counts once, the head's weights on completion tokens alone,
  and attention is left out.

A step can't be faster than the slower of its two needs (``longest``). A machine that can't read and multiply at once
can't be faster than their sum (``total``). Left out: activations, which mostly stay in the caches.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.throughput.side import matmul_flops, synchronize

BYTES = 2  # of a bfloat16


@dataclass(frozen=True)
class Peaks:
    """What the machine reached: FLOP/s of a matrix product, and bytes a second, read and written, of a copy."""

    flops: float
    bytes: float


def measure_peaks(device: str, *, size: int = 4096, copied: int = 2**28) -> Peaks:
    """bfloat16 products of ``size`` x ``size`` matrices, and copies of ``copied`` bytes, far more than caches hold;
    the best of a few."""
    import torch

    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)  # zeros, not empty: pages that were never written have no memory behind them
    fastest = float("inf")
    for _ in range(3):
        synchronize()
        begin = time.perf_counter()
        target.copy_(source)
        synchronize()
        fastest = min(fastest, time.perf_counter() - begin)
    return Peaks(max(matmul_flops(size, 0.0) for _ in range(2)), 2 * copied / fastest)


@dataclass(frozen=True)
class Shape:
    """What the counts need to know of a model. ``body`` are the weights that every token is multiplied with, ``head``
    those that make logits; the embedding's lookup multiplies nothing. ``attention`` is layers x query heads x width,
    ``cache`` the numbers that a token's keys and values are, over all layers."""

    body: int
    head: int
    attention: int
    cache: int


def shape_of(model: Any) -> Shape:
    """The shape of a dense causal LM of transformers."""
    config = model.config.get_text_config()
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    body = sum(p.numel() for p in model.parameters() if p is not embedding and p is not head)
    return Shape(
        body=body,
        head=head.numel(),
        attention=config.num_hidden_layers * config.num_attention_heads * width,
        cache=2 * config.num_hidden_layers * config.num_key_value_heads * width,
    )


@dataclass(frozen=True)
class Need:
    """(FLOPs, bytes) of each step."""

    steps: Sequence[tuple[float, float]]

    def longest(self, peaks: Peaks) -> float:
        """Seconds if reading and multiplying overlap perfectly."""
        return sum(max(flops / peaks.flops, size / peaks.bytes) for flops, size in self.steps)

    def total(self, peaks: Peaks) -> float:
        """Seconds if they don't overlap at all."""
        return sum(flops / peaks.flops + size / peaks.bytes for flops, size in self.steps)


def decode_work(shape: Shape, prompts: Sequence[int], samples: int, tokens: int) -> Need:
    """``samples`` completions of ``tokens`` tokens after each of the prompts, whose lengths are given.

    The prompts' pass gives the first token; the last token is drawn and never run.
    """
    rows, total = len(prompts) * samples, sum(prompts)
    pairs = sum(length * (length + 1) / 2 for length in prompts)
    weights = shape.body + shape.head
    first = 2 * (shape.body * total + shape.head * len(prompts)) + 4 * shape.attention * pairs
    steps: list[tuple[float, float]] = [(first, BYTES * weights)]
    for step in range(1, tokens):
        seen = total * samples + rows * step  # tokens that the rows attend to, each row's prompt among them
        stored = total + rows * step
        flops = 2 * weights * rows + 4 * shape.attention * seen
        steps.append((flops, BYTES * (weights + shape.cache * stored)))
    return Need(steps)


def update_flops(shape: Shape, prompts: Sequence[int], samples: int, tokens: int) -> float:
    """FLOPs of forward and backward on ``samples`` completions of ``tokens`` tokens after each of the prompts.

    As in decoding, the prompt's last token predicts the first of all its completions, and their last is never run.
    """
    later = len(prompts) * samples * (tokens - 1)
    return 6.0 * (shape.body * (sum(prompts) + later) + shape.head * (len(prompts) + later))
