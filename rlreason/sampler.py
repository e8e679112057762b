"""Which problems a step trains on: what a sampler is, and the plain one. Those that choose are in ``curricula.py``.

A draw is a pure function of (seed, step, attempt) and of the sampler's state, which only ``observe`` changes and
checkpoints keep: a resumed run draws what the uninterrupted one would have, and every process draws the same.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlreason.types import Problem, Rollout, Split


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed from the parts, well mixed and the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class Sampler(Protocol):
    """Chooses a run's problems. ``conf/sampler`` names the classes, which are called with a split and a seed."""

    def draw(self, step: int, attempt: int, count: int) -> list[Problem]:
        """``count`` problems for the ``attempt``-th draw (from 0) of ``step`` (from 1)."""
        ...

    def observe(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Learn from all of a step's rollouts, in any order, those that dynamic sampling turned away among them; gives
        the step's metrics of the sampler. Raises ValueError if they don't say what is needed."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What ``draw`` depends on besides its arguments and the config; empty for nothing."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a ``state_dict``."""
        ...


@dataclass(frozen=True)
class UniformSampler:
    """Epochs in shuffled order over a finite split; independent draws from an endless one.

    Draws beyond a step's first (dynamic sampling's further attempts) are independent draws in both cases, so that
    they do not shift the epochs.
    """

    split: Split
    seed: int

    def draw(self, step: int, attempt: int, count: int) -> list[Problem]:
        size = self.split.size
        if size is None:
            return [self.split[derived_seed(self.seed, "endless", step, attempt, i)] for i in range(count)]
        if attempt > 0:
            chance = random.Random(derived_seed(self.seed, "again", step, attempt))
            return [self.split[chance.randrange(size)] for _ in range(count)]
        places = range((step - 1) * count, step * count)
        orders = {epoch: self._order(epoch, size) for epoch in {place // size for place in places}}
        return [self.split[orders[place // size][place % size]] for place in places]

    def observe(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        return shares(rollouts, "member")

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is none."""

    def _order(self, epoch: int, size: int) -> list[int]:
        order = list(range(size))
        random.Random(derived_seed(self.seed, "epoch", epoch)).shuffle(order)
        return order


def family_of(problem: Problem, family: str) -> str | None:
    """Which family a problem is of, by that key of its ``meta``: the member of a mixture, a level, a number of digits.
    None if the problem has no such key."""
    found = problem.meta.get(family)
    return None if found is None else str(found)


def shares(rollouts: Sequence[Rollout], family: str) -> dict[str, float]:
    """``sampler/share/<family>``: the share of the groups that were of each family; of those without one, nothing."""
    drawn = {rollout.group: rollout.problem for rollout in rollouts}
    counts = Counter(name for problem in drawn.values() if (name := family_of(problem, family)) is not None)
    return {f"sampler/share/{name}": counts[name] / len(drawn) for name in sorted(counts)}
