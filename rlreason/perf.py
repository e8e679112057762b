"""How fast a step was: tokens a second, and model FLOPs utilisation (MFU).

MFU is the useful floating-point operations of a phase, over its seconds, over what the device could do at its peak.
FLOPs are counted as in PaLM (Chowdhery et al. 2022, arXiv:2204.02311, appendix B): a token that is trained costs
``6 N + 12 L H Q T``, with N parameters, L layers of H heads of width Q, and the T tokens of its row; a token that is
only run forward costs a third. As there, nothing is taken off for the causal mask, nor for logits that nobody asks
for. Useful is what the plain algorithm can't do without, however it is computed:

- rows that were skipped (no advantage, an error) and padding count nothing, nor does work that is done twice
  (gradient checkpointing);
- a prompt counts once a group, for the update and for generation: its other copies are the same numbers. An
  update that can't share prompts shows a lower MFU for it, and one that does doesn't pass the peak by it;
- a frozen parameter (the base under LoRA) costs 4 instead of 6: it needs the gradient of its input, not its own;
- the lookup of an embedding that is not tied to the head multiplies nothing and counts nothing.

Tokens a second are those written for generation, and every row's, its prompt's too, for the update and the step: they
say how fast the work got done, not how.

Left out: mixtures of experts, whose idle experts are counted here, and layers without softmax attention.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlreason.types import Rollout, Segment

TERA = 1e12

# Dense bfloat16 with float32 accumulation, as in the vendor's data sheets, by the words that the device's name holds.
PEAKS = {
    ("A10",): 125 * TERA,
    ("A100",): 312 * TERA,
    ("A40",): 150 * TERA,
    ("B200",): 2250 * TERA,
    ("GH200",): 989 * TERA,
    ("H100",): 989 * TERA,
    ("H100", "NVL"): 835 * TERA,
    ("H100", "PCIe"): 756 * TERA,
    ("H200",): 989 * TERA,
    ("H200", "NVL"): 835 * TERA,
    ("L4",): 121 * TERA,
    ("L40S",): 362 * TERA,
    ("RTX", "3090"): 71 * TERA,
    ("RTX", "4090"): 165 * TERA,
    ("RTX", "A6000"): 155 * TERA,
}
# Words of names whose device is less than the one they begin with.
PARTIAL = frozenset({"MIG", "Laptop", "D"})


@dataclass(frozen=True)
class Peak:
    """FLOP/s that a device reaches at best, and how they were obtained."""

    flops: float
    source: str


def peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """The table's figure for bfloat16 on a CUDA device that it knows; else measured, in ``dtype``, in about 0.3 s."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        known = listed_peak(name)
        if known is not None:
            return Peak(known, f"data sheet of {name}, dense bfloat16")
    return _measured(device, dtype, torch.get_num_threads())


def listed_peak(name: str) -> float | None:
    """``PEAKS`` for a device's name, such as ``NVIDIA H100 80GB HBM3``: the entry of most words. None if there is none,
    or the device is a part of it."""
    words = set(re.split(r"[^A-Za-z0-9]+", name))
    found = [entry for entry in PEAKS if words.issuperset(entry)]
    return PEAKS[max(found, key=len)] if found and not words & PARTIAL else None


@functools.cache  # a sweep's jobs need it once
def _measured(device: torch.device, dtype: torch.dtype, threads: int, budget: float = 0.3) -> Peak:
    """The best of square matrix products, each larger than the last while ``budget`` seconds allow it."""
    generator = torch.Generator(device).manual_seed(0)  # its own: the run's stays where it was
    best, best_size = 0.0, 0
    end = time.perf_counter() + budget
    size = 256
    square = torch.randn((size, size), generator=generator, device=device).to(dtype)
    _seconds(square)  # the first call sets things up
    while True:
        seconds = _seconds(square)
        if 2 * size**3 / seconds > best:
            best, best_size = 2 * size**3 / seconds, size
        left = end - time.perf_counter()
        if seconds > left:
            break
        if size < 8192 and 2 * 8 * seconds < left:  # twice, so that the larger one is no single sample
            size *= 2
            square = square.repeat(2, 2)
    name = str(dtype).removeprefix("torch.")
    return Peak(best, f"measured: a {name} product of {best_size} x {best_size} matrices, {threads} threads")


def _seconds(square: torch.Tensor) -> float:
    begin = time.perf_counter()
    square @ square
    if square.device.type == "cuda":
        torch.cuda.synchronize(square.device)
    return time.perf_counter() - begin


@dataclass(frozen=True)
class Cost:
    """FLOPs a token: ``forward`` and ``update`` (forward and backward) by the parameters, and ``attention`` by each
    token of its row, for an update; a third of it forward."""

    forward: int
    update: int
    attention: int


def cost_of(model: Any) -> Cost:
    """The cost of a token under a causal LM of transformers, as its parameters are trained or frozen now."""
    config = model.config.get_text_config()
    embedding = model.get_input_embeddings().weight
    tied = embedding is model.get_output_embeddings().weight
    used = [p for p in model.parameters() if tied or p is not embedding]
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Cost(
        forward=sum(2 * p.numel() for p in used),
        update=sum((6 if p.requires_grad else 4) * p.numel() for p in used),
        attention=12 * config.num_hidden_layers * heads * width,
    )


@dataclass(frozen=True)
class Work:
    """What a process did in a step. ``drawn`` are all tokens of all rollouts, ``generated`` those the policy wrote,
    ``trained`` all tokens of the rows in the update, as often as they were in it; the FLOPs are useful ones."""

    drawn: int
    generated: int
    trained: int
    generate_flops: float
    update_flops: float


def work_of(cost: Cost, rollouts: Iterable[Rollout], trained: Sequence[tuple[int, Segment]], passes: int) -> Work:
    """``rollouts`` were generated; of the rows (group, segment) in ``trained``, each was in the update ``passes``
    times."""
    rows = [(r.group, segment) for r in rollouts for segment in r.segments]
    tokens, pairs = _distinct(rows)
    trained_tokens, trained_pairs = _distinct(trained)
    return Work(
        drawn=sum(_length(segment) for _, segment in rows),
        generated=sum(sum(segment.mask) for _, segment in rows),
        trained=passes * sum(_length(segment) for _, segment in trained),
        generate_flops=cost.forward * tokens + cost.attention / 3 * pairs,
        update_flops=passes * float(cost.update * trained_tokens + cost.attention * trained_pairs),
    )


def speeds(work: Sequence[Work], seconds: Mapping[str, float], peak_flops: float) -> dict[str, float]:
    """``perf/*`` of a step: ``work`` of each process; ``step_time``, ``timing/generate`` and ``timing/update`` of the
    slowest; ``peak_flops`` of all their devices together."""
    generate, update = seconds["timing/generate"], seconds["timing/update"]
    return {
        "perf/step_tokens_per_second": sum(w.drawn for w in work) / seconds["step_time"],
        "perf/generate_tokens_per_second": sum(w.generated for w in work) / generate,
        "perf/update_tokens_per_second": sum(w.trained for w in work) / update,
        "perf/mfu": sum(w.update_flops for w in work) / (update * peak_flops),
        "perf/mfu_generate": sum(w.generate_flops for w in work) / (generate * peak_flops),
    }


def _distinct(rows: Iterable[tuple[int, Segment]]) -> tuple[int, int]:
    """Tokens, a group's prompt counted once; and the sum, over them, of the tokens of their row (of the prompt, for
    its own)."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    tokens = pairs = 0
    for group, segment in rows:
        written = len(segment.completion_ids)
        tokens += written
        pairs += written * _length(segment)
        prompt = (group, tuple(segment.prompt_ids))
        if prompt not in seen:
            seen.add(prompt)
            tokens += len(segment.prompt_ids)
            pairs += len(segment.prompt_ids) ** 2
    return tokens, pairs


def _length(segment: Segment) -> int:
    return len(segment.prompt_ids) + len(segment.completion_ids)
