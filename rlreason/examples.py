"""Examples, their batches by length, and how one looks as it enters the network.

The order of the examples is a function of (seed, epoch), so there is no data position to save. Left out: packing
several examples into a row, which batches by length make needless at these sizes.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlreason.sampler import derived_seed
from rlreason.types import Message, Segment

WINDOW = 16
"""Batches whose examples are sorted by length together."""


@dataclass(frozen=True)
class Example:
    """What counts as one in a batch: the rows of a demonstration, or of a comparison the chosen and the rejected one.

    ``source`` names it in messages; ``unit`` is what examples that are not independent of each other share (``unit_of``
    their prompt); ``category`` is what metrics are reported by."""

    segments: tuple[Segment, ...]
    source: str
    unit: str
    margin: float = 0.0
    category: str = "all"

    @property
    def tokens(self) -> int:
        return sum(len(segment.prompt_ids) + len(segment.completion_ids) for segment in self.segments)

    @property
    def width(self) -> int:
        return max(len(segment.prompt_ids) + len(segment.completion_ids) for segment in self.segments)


def unit_of(prompt: Sequence[Message]) -> str:
    """Equal prompts have equal texts."""
    return json.dumps([(message["role"], message["content"]) for message in prompt])


def batches(examples: Sequence[Example], size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """The indices of an epoch's batches of ``size`` examples of similar length, in random order; what doesn't fill the
    last one, whatever its length, is left to other epochs. A function of (lengths, seed, epoch)."""
    chance = random.Random(derived_seed(seed, "epoch", epoch))
    order = list(range(len(examples)))
    chance.shuffle(order)
    order = order[: len(order) // size * size] or order
    cut: list[list[int]] = []
    for begin in range(0, len(order), WINDOW * size):
        window = sorted(order[begin : begin + WINDOW * size], key=lambda i: examples[i].tokens)
        cut += [window[i : i + size] for i in range(0, len(window), size)]
    chance.shuffle(cut)
    return cut


def shown(tokenizer: Any, example: Example) -> str:
    """An example as it enters the network, decoded from its tokens, with what the loss looks at between ⟦ and ⟧."""
    texts = []
    for segment in example.segments:
        text = tokenizer.decode(segment.prompt_ids)
        tokens = zip(segment.completion_ids, segment.mask, strict=True)
        for learned, run in itertools.groupby(tokens, key=lambda token: token[1]):
            part = tokenizer.decode([token for token, _ in run])
            text += f"⟦{part}⟧" if learned else part
        texts.append(text)
    return (
        f"--- an example as it enters the network, {example.source}; ⟦ ⟧ is what the loss looks at\n"
        + "\n---\n".join(texts)
    )
