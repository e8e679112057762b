"""Controls: an environment with another reward and the same problems and verdicts.

An improvement under a reward that knows nothing of the answer is none that the reward taught: it is the format, the
length, or what the model would have come to under any update (Shao et al. 2025, "Spurious rewards: rethinking training
signals in RLVR", arXiv:2506.10947). ``correct`` stays the environment's own, so accuracy remains honest.

Left out: rewards by majority vote, which need all of a group's answers at once.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from rlreason.types import Env, Episode, Grade, Message, Problem, Split


class Rule(Protocol):
    """The reward in place of the environment's."""

    def __call__(self, grade: Grade, seed: int) -> float:
        """``seed`` is the episode's own. Raises ValueError if ``grade`` doesn't say what is needed."""
        ...


@dataclass(frozen=True)
class Random:
    """1 with ``probability``, else 0, whatever was written; a function of ``seed`` and the episode's seed."""

    probability: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"the probability is {self.probability}; it must lie between 0 and 1")

    def __call__(self, grade: Grade, seed: int) -> float:
        return float(random.Random(f"random reward/{self.seed}/{seed}").random() < self.probability)


@dataclass(frozen=True)
class FormatOnly:
    """The format's part of the grade alone."""

    def __call__(self, grade: Grade, seed: int) -> float:
        if "format" not in grade.parts:
            raise ValueError(
                "reward=format_only: this environment's answers have no format to keep to; give it one, such as "
                "env.format._target_=envs.formats.R1"
            )
        return grade.parts["format"]


@dataclass(frozen=True)
class Flipped:
    """1 for an answer that was given and is wrong, 0 for a right one and for none."""

    def __call__(self, grade: Grade, seed: int) -> float:
        if grade.correct is None:
            raise ValueError("reward=flipped: this environment doesn't say which answers are right")
        return float(not grade.correct and grade.answer is not None)


@dataclass(frozen=True)
class _State:
    inner: Any
    seed: int


@dataclass(frozen=True)
class Controlled:
    """``env`` with the reward of ``rule``; a ``rlreason.types.Env`` again. Grades with status ``error`` pass unchanged.
    The reward that they would have had is kept as the part ``as_graded``.

    Raises ValueError, before any work, if the rule can't be applied to this environment.
    """

    env: Env
    rule: Rule

    def __post_init__(self) -> None:
        problem = self.env.split("train")[0]
        self.grade([Episode(problem, self.start(problem, 0), [*problem.prompt], "", "stop")])

    @property
    def name(self) -> str:
        return self.env.name

    def split(self, name: str) -> Split:
        return self.env.split(name)

    def start(self, problem: Problem, seed: int) -> _State:
        return _State(self.env.start(problem, seed), seed)

    def replies(self, states: Sequence[_State], conversations: Sequence[list[Message]]) -> list[list[Message] | None]:
        return self.env.replies([state.inner for state in states], conversations)

    def grade(self, episodes: Sequence[Episode]) -> list[Grade]:
        own = self.env.grade([replace(episode, state=episode.state.inner) for episode in episodes])
        return [
            grade
            if grade.status == "error"
            else replace(
                grade,
                reward=self.rule(grade, episode.state.seed),
                parts={**grade.parts, "as_graded": grade.reward},
                turn_rewards=(),
            )
            for grade, episode in zip(own, episodes, strict=True)
        ]

    def validate(self) -> None:
        """The environment's own verifier; the rule has no gold answers."""
        self.env.validate()

    def manifest(self) -> Mapping[str, Any]:
        return {**self.env.manifest(), "reward": f"{self.rule}"}
