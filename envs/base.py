"""What environments share: single-turn behaviour, splits, and the check that a verifier tells right from wrong.

Left out: several turns (tools, games). They implement ``rlreason.types.Env`` themselves.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from rlreason.types import Env, Episode, Finish, Grade, Message, Problem, Split

SPLITS = ("train", "validation", "test")

VALIDATED = 64
"""How many problems of each split ``validate`` looks at, at most."""


class NoSplitError(ValueError):
    """An environment has no such split: one for evaluation has no train."""


@dataclass(frozen=True)
class ListSplit:
    """Problems in memory."""

    problems: Sequence[Problem]

    @property
    def size(self) -> int:
        return len(self.problems)

    def __getitem__(self, index: int) -> Problem:
        _check_index(index, len(self.problems))
        return self.problems[index]


@dataclass(frozen=True)
class GeneratedSplit:
    """Problems made on demand: ``make(i)`` is a pure function. ``size`` None means that there is no last one."""

    size: int | None
    make: Callable[[int], Problem]

    def __getitem__(self, index: int) -> Problem:
        _check_index(index, self.size)
        return self.make(index)


@dataclass(frozen=True)
class Answer:
    """A completion to grade. ``text`` has no end token; ``finish`` is ``length`` if the token limit cut it off."""

    problem: Problem
    text: str
    finish: Finish


class BatchGradedEnv(ABC):
    """An environment in which the policy writes one completion, and completions are graded many at a time. Subclasses
    are final; where each is graded for itself, ``SingleTurnEnv`` asks for less.

    A subclass gives a name, its splits, grades for texts, a gold completion, the largest reward and its manifest; this
    class makes it a ``rlreason.types.Env``.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Goes into metric names, so it says which data these are."""

    @property
    @abstractmethod
    def max_reward(self) -> float:
        """What a perfect completion earns."""

    @abstractmethod
    def split(self, name: str) -> Split:
        """The problems of ``train``, ``validation`` or ``test``; ValueError for another name (see ``check_split``), and
        NoSplitError for one of these that the environment doesn't have."""

    @abstractmethod
    def grade_texts(self, answers: Sequence[Answer]) -> list[Grade]:
        """A verdict on each completion, in order: all at once, so that verifiers can work on several."""

    @abstractmethod
    def gold(self, problem: Problem) -> str:
        """A completion that gives ``problem.answer`` and earns ``max_reward``.

        The answer is read from ``problem.answer``, so that a problem with another answer put in yields a corrupted
        completion (this is how ``validate`` makes one).
        """

    @abstractmethod
    def manifest(self) -> Mapping[str, Any]:
        """Where the data came from, for the run's manifest; plain values that JSON can hold."""

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
        """Check the verifier without a model, on up to ``VALIDATED`` problems of each split.

        The gold completion must be correct and earn ``max_reward``; a gold completion for another problem's answer,
        and an empty text, must be incorrect. Problems whose answer is not known (None) are left out.
        Raises ValueError naming the problem, the text and its grade.
        """
        for name, split in splits_of(self).items():
            problems = [problem for problem in _sample(split) if problem.answer is not None]
            if len({str(problem.answer) for problem in problems}) < 2:
                raise ValueError(f"{self.name}: the {name} split has no two problems with different answers to check")
            gold, corrupted = [], []
            for position, problem in enumerate(problems):
                others = problems[position + 1 :] + problems[:position]
                wrong = next(other.answer for other in others if str(other.answer) != str(problem.answer))
                gold.append(Answer(problem, self.gold(problem), "stop"))
                corrupted.append(Answer(problem, self.gold(replace(problem, answer=wrong)), "stop"))
            empty = [Answer(problem, "", "stop") for problem in problems]
            for answer, grade in zip(gold, self.grade_texts(gold), strict=True):
                if grade.correct is not True or not math.isclose(grade.reward, self.max_reward, abs_tol=1e-9):
                    raise ValueError(
                        f"{self.name}: problem {answer.problem.id}: the gold completion should be correct and earn "
                        f"{self.max_reward}, but {answer.text!r} got {grade}"
                    )
            for what, answers in (("a corrupted gold completion", corrupted), ("an empty text", empty)):
                for answer, grade in zip(answers, self.grade_texts(answers), strict=True):
                    if grade.correct is not False:
                        raise ValueError(
                            f"{self.name}: problem {answer.problem.id}: {what} should be incorrect, but "
                            f"{answer.text!r} got {grade}"
                        )


class SingleTurnEnv(BatchGradedEnv):
    """An environment in which the policy writes one completion, and each is graded for itself. Subclasses are final."""

    @abstractmethod
    def grade_text(self, problem: Problem, text: str, finish: Finish) -> Grade:
        """A verdict on a completion. ``text`` has no end token; ``finish`` is ``length`` if it was cut off."""

    def grade_texts(self, answers: Sequence[Answer]) -> list[Grade]:
        """``grade_text`` for each, in order."""
        return [self.grade_text(answer.problem, answer.text, answer.finish) for answer in answers]


def split_of(key: str) -> str:
    """The split that a generated problem belongs to: 60 % train, 20 % validation, 20 % test.

    ``key`` is the canonical problem, so that problems which are the same in other words never meet across splits. It
    depends on nothing else, no seed either: every environment and every run agrees on it.
    """
    share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
    return "train" if share < 0.6 else "validation" if share < 0.8 else "test"


def splits_of(env: Env) -> dict[str, Split]:
    """The splits that ``env`` has, by name."""
    found = {}
    for name in SPLITS:
        with suppress(NoSplitError):
            found[name] = env.split(name)
    return found


def check_split(name: str) -> None:
    """ValueError unless ``name`` is a split."""
    if name not in SPLITS:
        raise ValueError(f"there is no split {name!r}; the splits are {', '.join(SPLITS)}")


def make_prompt(question: str, instruction: str, system: str | None) -> list[Message]:
    """An optional system message, then the question with the format's instruction on the next line."""
    user: Message = {"role": "user", "content": f"{question}\n{instruction}" if instruction else question}
    return [user] if system is None else [{"role": "system", "content": system}, user]


def _check_index(index: int, size: int | None) -> None:
    if index < 0 or (size is not None and index >= size):
        raise IndexError(f"problem {index} does not exist; the split has {'no end' if size is None else size} from 0")


def _sample(split: Split) -> list[Problem]:
    if split.size is None:
        return [split[index] for index in range(VALIDATED)]
    count = min(split.size, VALIDATED)
    return [split[index * split.size // count] for index in range(count)]
