"""Who answered better: judges of two answers to one prompt.

Left out: a language model as judge. It is a class with ``compare`` too, and the arena asks it in both orders.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rlreason.types import Message, Scorer


@dataclass(frozen=True)
class Answer:
    """A model's answer: the whole ``conversation``, the ``text`` of its last turn, and the environment's ``reward``."""

    conversation: list[Message]
    text: str
    reward: float


class Judge(Protocol):
    """Compares two answers. It doesn't know whose they are."""

    def compare(self, prompt: list[Message], a: Answer, b: Answer) -> float:
        """1 if ``a`` is better, 0 if ``b`` is, 0.5 if neither."""
        ...


@dataclass(frozen=True)
class ByReward:
    """The environment's reward: the higher one wins, and rewards that differ by at most ``tie_margin`` tie."""

    tie_margin: float = 0.0

    def __post_init__(self) -> None:
        _check_margin(self.tie_margin)

    def compare(self, prompt: list[Message], a: Answer, b: Answer) -> float:
        return _higher(a.reward, b.reward, self.tie_margin)


@dataclass(frozen=True)
class ByScore:
    """A reward model's score, an ensemble's members put together by ``combine``: the higher one wins, and scores that
    differ by at most ``tie_margin`` tie. Each conversation is scored once. Raises ValueError for a score that is no
    number."""

    scorer: Scorer
    combine: Callable[[Sequence[float]], float]
    tie_margin: float = 0.0
    _known: dict[str, float] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        _check_margin(self.tie_margin)

    def compare(self, prompt: list[Message], a: Answer, b: Answer) -> float:
        return _higher(self._score(a), self._score(b), self.tie_margin)

    def _score(self, answer: Answer) -> float:
        key = repr(answer.conversation)
        if key not in self._known:
            (members,) = self.scorer([answer.conversation])
            self._known[key] = self.combine(members)
            if not math.isfinite(self._known[key]):
                raise ValueError(f"{self._known[key]} is the score of {answer.text[:200]!r}")
        return self._known[key]


def _check_margin(margin: float) -> None:
    if not (math.isfinite(margin) and margin >= 0):
        raise ValueError(f"tie_margin is {margin}; it must be a finite number, 0 or more")


def _higher(a: float, b: float, margin: float) -> float:
    return 0.5 if abs(a - b) <= margin else float(a > b)
