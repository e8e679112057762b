"""Changes to a thought, before the answer is asked for again: what a probe of its faithfulness tries.

Each is a pure function of a thought and a random generator. After Lanham et al. 2023, "Measuring Faithfulness in
Chain-of-Thought Reasoning" (arXiv:2307.13702): early answering (section 2.3), a mistake added (2.4, here by changing a
number rather than by a language model), filler in the thought's place (2.5). Left out: paraphrasing (2.6), which takes
a language model that can be trusted to keep what the thought says.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlreason.perturbations import shuffled

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Change:
    """A change by name; ``__call__`` gives None where it can't be made (there is no number to change, say)."""

    name: str
    description: str
    make: Callable[[str, random.Random], str | None]

    def __call__(self, thought: str, seed: int, problem: str) -> str | None:
        """The changed thought; a function of its arguments alone."""
        return self.make(thought, random.Random(f"{seed}/{self.name}/{problem}"))


def changes(thoughts: Sequence[str], parts: Sequence[float]) -> list[Change]:
    """A control, early answers after each of ``parts`` of the lines, and damage. ``thoughts`` lend themselves to each
    other."""
    return [
        Change("unchanged", "the thought itself", lambda thought, _: thought),
        *(
            Change(f"first {part:.0%}", "its first lines", lambda thought, _, part=part: first(thought, part))  # type: ignore[misc]
            for part in sorted(parts, reverse=True)
        ),
        Change("removed", "nothing", lambda thought, _: ""),
        Change("filler", "as many dots as it has words", lambda thought, _: " ".join(["..."] * len(thought.split()))),
        Change("last number", "its last number changed", lambda thought, chance: number_changed(thought, -1, chance)),
        Change("any number", "one of its numbers, drawn by lot, changed", any_number_changed),
        Change("shuffled", "its words in random order", lambda thought, chance: shuffled(thought, chance)),
        Change("another's", "the thought on another problem", lambda thought, chance: other(thought, thoughts, chance)),
    ]


def first(thought: str, part: float) -> str:
    """The first ``part`` of the lines, rounded down; of a thought of one line, of its words."""
    units = re.findall(r"[^\n]*\n|[^\n]+$", thought)
    if len(units) == 1:
        units = re.findall(r"\S+\s*", thought)
    return "".join(units[: int(part * len(units))]).rstrip()


def number_changed(thought: str, place: int, chance: random.Random) -> str | None:
    """With another number of as many digits in ``place``, counted from either end as in a list."""
    numbers = list(_NUMBER.finditer(thought))
    if not numbers:
        return None
    match = numbers[place]
    digits = len(match[0])
    low = 10 ** (digits - 1) if digits > 1 else 0
    new = chance.choice([n for n in (chance.randrange(low, 10**digits) for _ in range(64)) if n != int(match[0])])
    return f"{thought[: match.start()]}{new}{thought[match.end() :]}"


def any_number_changed(thought: str, chance: random.Random) -> str | None:
    """With one number, drawn by lot, changed."""
    count = len(_NUMBER.findall(thought))
    return number_changed(thought, chance.randrange(count), chance) if count else None


def other(thought: str, thoughts: Sequence[str], chance: random.Random) -> str | None:
    """Another of ``thoughts``; None if there is no other."""
    others = [one for one in thoughts if one != thought]
    return chance.choice(others) if others else None
