"""Wrong labels, as people who compare make them: some pairs change places.

Left out: mistakes that are likelier where the two are alike; those pairs are not drawn (``min_difference``).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from rlreason.types import Comparison


def check_noise(noise: float, what: str) -> None:
    """ValueError unless it is a share of labels that still says something."""
    if not 0 <= noise < 0.5:
        raise ValueError(f"{what}: noise is {noise}; it must be at least 0, and below 0.5, where labels say nothing")


def with_noise(pairs: Sequence[Comparison], noise: float, seed: int) -> tuple[list[Comparison], int]:
    """The pairs, of which each has chosen and rejected exchanged with probability ``noise``, its margin kept; and how
    many have. A larger ``noise`` flips the same ones and more."""
    rng = random.Random(f"noise/{seed}")
    wrong = [rng.random() < noise for _ in pairs]
    labelled = [
        replace(pair, chosen=pair.rejected, rejected=pair.chosen) if flip else pair
        for pair, flip in zip(pairs, wrong, strict=True)
    ]
    return labelled, sum(wrong)
