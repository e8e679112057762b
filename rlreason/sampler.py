"""Which problems a step trains on.

A draw is a pure function of (seed, step, attempt), so there is no state to save and a resumed run draws what the
uninterrupted one would have. Left out: mixtures and curricula, which do have state (another issue).
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from rlreason.types import Problem, Split


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed from the parts, well mixed and the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class UniformSampler:
    """Epochs in shuffled order over a finite split; independent draws from an endless one.

    Draws beyond a step's first (dynamic sampling's further attempts) are independent draws in both cases, so that
    they do not shift the epochs.
    """

    split: Split
    seed: int

    def draw(self, step: int, attempt: int, count: int) -> list[Problem]:
        """``count`` problems for the ``attempt``-th draw (from 0) of ``step`` (from 1)."""
        size = self.split.size
        if size is None:
            return [self.split[derived_seed(self.seed, "endless", step, attempt, i)] for i in range(count)]
        if attempt > 0:
            chance = random.Random(derived_seed(self.seed, "again", step, attempt))
            return [self.split[chance.randrange(size)] for _ in range(count)]
        places = range((step - 1) * count, step * count)
        orders = {epoch: self._order(epoch, size) for epoch in {place // size for place in places}}
        return [self.split[orders[place // size][place % size]] for place in places]

    def _order(self, epoch: int, size: int) -> list[int]:
        order = list(range(size))
        random.Random(derived_seed(self.seed, "epoch", epoch)).shuffle(order)
        return order
