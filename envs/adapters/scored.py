"""What the adapters share whose verdict is a number from a function of the user's.

What such a function makes of a completion is the policy's doing: where it raises an exception, the completion gets a
fixed score, never status ``error``.

Left out: bounds on what it may cost. It is trusted code, run in this process; code that a model wrote belongs in
``envs.sandbox``.
"""

from __future__ import annotations

import asyncio
import math
import traceback
import warnings
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from envs.adapters.table import Table
from envs.base import VALIDATED, Answer
from rlreason.types import Episode, Grade, Message, Problem, Split

T = TypeVar("T")


class ScoredEnv(ABC):
    """An environment in which the policy writes one completion, which a function of the user's scores. Subclasses are
    final; this class makes them a ``rlreason.types.Env``."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Goes into metric names, so it says which data these are."""

    @property
    @abstractmethod
    def table(self) -> Table:
        """Its problems."""

    @abstractmethod
    def grade_texts(self, answers: Sequence[Answer]) -> list[Grade]:
        """A verdict on each completion, in order. A part ``raised`` is 1 where a function raised an exception."""

    @abstractmethod
    def gold(self, problem: Problem) -> str | None:
        """A completion that deserves the best score; None where none is known."""

    @abstractmethod
    def manifest(self) -> Mapping[str, Any]:
        """Where the data came from, for the run's manifest; plain values that JSON can hold."""

    def split(self, name: str) -> Split:
        """The problems of a split; ValueError where there is none of that name."""
        return self.table.split(name)

    def start(self, problem: Problem, seed: int) -> None:
        """There is no state."""
        return None

    def replies(self, states: Sequence[Any], conversations: Sequence[list[Message]]) -> list[list[Message] | None]:
        """Every episode ends after the policy's first turn."""
        return [None] * len(conversations)

    def grade(self, episodes: Sequence[Episode]) -> list[Grade]:
        """The verdicts on what the policy wrote, in order."""
        return self.grade_texts([Answer(episode.problem, episode.text, episode.finish) for episode in episodes])

    def validate(self) -> None:
        """Check what can be checked without a model, on up to ``VALIDATED`` problems of each split.

        Where gold completions are known, each must earn more than another problem's and than an empty text, and must
        not be incorrect. Else the function must be able to score some text: the empty one or the prompt's own.
        Raises ValueError naming the problem, the text and its grade.
        """
        for split in self.table.splits.values():
            assert split.size is not None
            problems = [split[place * split.size // VALIDATED] for place in range(VALIDATED)]
            problems = list({problem.id: problem for problem in problems}.values())
            golds = [gold for problem in problems if (gold := self.gold(problem)) is not None]
            if len(golds) < len(problems):
                texts = ["", *(message["content"] for message in problems[0].prompt)]
                grades = self.grade_texts([Answer(problems[0], text, "stop") for text in texts])
                if all(grade.parts.get("raised") for grade in grades):
                    raise ValueError(
                        f"{self.name}: problem {problems[0].id}: every text makes the scorer raise an error"
                    )
                continue
            others = [next((o for o in golds[i + 1 :] + golds[:i] if o != gold), "") for i, gold in enumerate(golds)]
            own, *wrong = (
                self.grade_texts([Answer(p, text, "stop") for p, text in zip(problems, texts, strict=True)])
                for texts in (golds, others, [""] * len(problems))
            )
            for place, (problem, grade) in enumerate(zip(problems, own, strict=True)):
                better = all(grade.reward > grades[place].reward for grades in wrong)
                if grade.correct is False or grade.status == "error" or not better:
                    raise ValueError(
                        f"{self.name}: problem {problem.id}: the gold completion {golds[place]!r} should be right and "
                        f"earn more than others; it got {grade}, {others[place]!r} got {wrong[0][place]}, and an empty "
                        f"text {wrong[1][place]}"
                    )


def check_threshold(name: str, value: float | None) -> None:
    """ValueError for a threshold that is no number."""
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{name}: pass_threshold is {value}; it must be a finite number, or null for no verdict")


def finite(value: Any) -> float:
    """A score as a number. Raises TypeError or ValueError for what is none."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"the score is {number}")
    return number


def complain(what: str, error: BaseException) -> None:
    """Warn that a scorer raised ``error``, and where in it. Python shows equal warnings once, so nothing of what the
    policy wrote is in it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
    warnings.warn(
        f"{where}: {what} raised {type(error).__name__}. Completions that make it do so get the score for failures; "
        "rewards/raised/mean is their share",
        stacklevel=2,
    )


def awaited(coroutine: Coroutine[Any, Any, T]) -> T:
    """Its result, also where an event loop is running already, as in a notebook."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()
