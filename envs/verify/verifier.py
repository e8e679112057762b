"""The verifier that environments and the scorecard use.

Left out: grading several answers with partial credit; an answer is right or it is not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

from envs.verify.extract import Extraction
from envs.verify.pool import Pool
from envs.verify.tidy import MAX_LENGTH
from envs.verify.verdict import Verdict


@dataclass(frozen=True)
class Item:
    """What is to be checked. ``text`` is a whole completion if ``whole``, else a bare answer; ``finished`` False says
    that the token limit cut it off."""

    gold: str
    text: str
    whole: bool = False
    finished: bool = True


class Verifier(Protocol):
    """Anything that can tell right answers from wrong ones; ``python -m envs.verify score --verifier`` takes the path
    of a class that is one and needs no arguments."""

    def check(self, items: Sequence[Item]) -> list[Verdict]:
        """A verdict for each item, in order."""
        ...


@dataclass(frozen=True)
class MathVerifier:
    """Mathematical answers: extracted by ``extraction``, compared in a pool of ``workers`` processes (None: one for
    each core), each check within ``cpu_seconds`` of CPU time and ``memory_mb`` of memory.

    ``percent_as_unit``: for problems that ask for a percentage and whose right answers leave the sign out, as GSM8K's
    do: ``20%`` is 20 there, and not 1/5.

    Verifiers with equal limits share a pool. Raises ValueError for limits that make no sense.
    """

    extraction: Extraction = field(default_factory=Extraction)
    percent_as_unit: bool = False
    workers: int | None = None
    cpu_seconds: float = 1.0
    memory_mb: int = 1024

    def __post_init__(self) -> None:
        self._pool()

    def check(self, items: Sequence[Item]) -> list[Verdict]:
        """A verdict for each item, in order. Raises ValueError if a right answer can't be read."""
        answers = [
            self.extraction(item.text, finished=item.finished) if item.whole else _unboxed(item.text) for item in items
        ]
        if self.percent_as_unit:
            answers = [
                answer if answer is None or "%" in item.gold else _PERCENT.sub("", answer)
                for item, answer in zip(items, answers, strict=True)
            ]
        asked = [place for place, answer in enumerate(answers) if answer is not None and len(answer) <= MAX_LENGTH]
        found = self._pool().check([(items[place].gold, answers[place] or "") for place in asked])
        verdicts = [Verdict(False, "unparseable")] * len(items)
        for place, verdict in zip(asked, found, strict=True):
            verdicts[place] = verdict
        return verdicts

    def close(self) -> None:
        """End the workers; the next check starts new ones."""
        self._pool().close()

    def _pool(self) -> Pool:
        return _shared(self.workers, self.cpu_seconds, self.memory_mb)


_PERCENT = re.compile(r"[ ]*\\?%[ .$]*$")
_BOXED = Extraction(("boxed",), after_thinking=False)


def _unboxed(answer: str) -> str | None:
    """A bare answer, out of its box if it came in one."""
    return _BOXED(answer) if "\\boxed" in answer or "\\fbox" in answer else answer


@cache
def _shared(workers: int | None, cpu_seconds: float, memory_mb: int) -> Pool:
    return Pool(workers, cpu_seconds, memory_mb)
