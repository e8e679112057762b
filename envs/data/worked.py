"""Arithmetic worked step by step, to imitate before reinforcement learning: a cold start that a program writes.

Each line does one operation, in the usual precedence and from left to right within it, by way of easier ones where the
operands are large: ``47 + 38: 40 + 30 = 70, 7 + 8 = 15, 70 + 15 = 85``. Some lines are checked (``Let me check:
19 - 7 = 12. Right.``); some hold a planted slip, which the check that follows finds and the next line puts right. Every
``a + b = c`` in the text is true except the planted ones, and the final answer always is.

Left out: other wordings of the steps and checks. The policy is to learn that there are steps and checks; reinforcement
finds out what they are worth.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from envs.arithmetic import Arithmetic
from envs.data.base import Splits, first_problems
from envs.working import steps
from rlreason.types import Demonstration, Message, Problem, Split


@dataclass(frozen=True)
class WorkedArithmetic:
    """Demonstrations for the first problems of ``env``, expressions of any number of terms in its own format:
    ``num_train`` from its train split, ``num_validation`` from its validation split.

    Each step has a slip with probability ``error_rate``, and a right step is checked with probability ``check_rate``.
    With probability ``direct_rate`` an answer is given at once, without a worked step: so that the same weights can be
    asked both ways. All are a function of ``seed`` and the problem.

    Raises ValueError for settings that make no sense, word problems among them, and for more problems than there are.
    """

    env: Arithmetic
    num_train: int
    num_validation: int
    check_rate: float = 0.2
    error_rate: float = 0.1
    direct_rate: float = 0.0
    seed: int = 0
    name: str = "worked"
    _splits: Splits[Demonstration] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.env.word_problem_steps:
            raise ValueError("worked: word problems are not worked here; set data.env.word_problem_steps=0")
        for key in ("check_rate", "error_rate", "direct_rate"):
            rate = getattr(self, key)
            if not 0 <= rate <= 1:
                raise ValueError(f"worked: {key} is {rate}; it must lie between 0 and 1")
        splits = Splits(
            self._demonstrations(self.env.split("train"), self.num_train, "num_train"),
            self._demonstrations(self.env.split("validation"), self.num_validation, "num_validation"),
        )
        object.__setattr__(self, "_splits", splits)

    def split(self, name: str) -> Sequence[Demonstration]:
        return self._splits[name]

    def manifest(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "source": "generated",
            "sizes": self._splits.sizes,
            "check_rate": self.check_rate,
            "error_rate": self.error_rate,
            "direct_rate": self.direct_rate,
            "seed": self.seed,
            "env": self.env.manifest(),
        }

    def _demonstrations(self, split: Split, count: int, key: str) -> list[Demonstration]:
        return [self._demonstration(problem) for problem in first_problems(split, count, what=f"worked: {key}")]

    def _demonstration(self, problem: Problem) -> Demonstration:
        rng = random.Random(f"worked/{self.seed}/{problem.id}")
        lines = []
        direct = random.Random(f"direct/{self.seed}/{problem.id}").random() < self.direct_rate
        for step in [] if direct else steps(problem.meta["solution"].partition(" = ")[0]):
            if rng.random() < self.error_rate:
                wrong = _near(step.result, rng)
                lines += [step.line(wrong), step.check(wrong), step.line(step.result)]
                continue
            lines.append(step.line(step.result))
            if rng.random() < self.check_rate:
                lines.append(step.check(step.result))
        solved: Message = {"role": "assistant", "content": self.env.format.gold("\n".join(lines), problem.answer)}
        return Demonstration([*problem.prompt, solved], problem.id)


def _near(result: int, rng: random.Random) -> int:
    """A likely slip: off by one, or by a carry, with the same sign."""
    near = [result + 1, result - 1, result + 10, result - 10]
    return rng.choice([number for number in near if (number < 0) == (result < 0)])
