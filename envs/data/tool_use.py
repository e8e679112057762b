"""Arithmetic worked with a calculator, to imitate before reinforcement learning: call, result, answer.

The conversations come out of the environment itself, which is given the assistant's turns one by one, so results,
errors and what is said of the calls that are left are as in training. Left out: calls that go wrong, and several calls
for one problem; reinforcement meets the first by itself and has no need of the second.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from envs.arithmetic import Arithmetic
from envs.data.base import Splits, first_problems
from envs.tools import Calculator, ToolUse, written
from envs.tools.calls import SYNTAXES
from rlreason.types import Demonstration, Episode, Message, Problem, Split


@dataclass(frozen=True)
class CalculatorUse:
    """Demonstrations for the first problems of ``env``, arithmetic expressions with a calculator among the tools:
    ``num_train`` from its train split, ``num_validation`` from its validation split.

    ``syntax`` is that of the calls: ``tags`` for models whose chat template takes no tools, else the template's own,
    ``hermes`` (Qwen's too) or ``llama``. With probability ``direct_rate``, a function of ``seed`` and the problem, the
    answer is given without a call, so that reinforcement finds both and learns what a call is worth.

    Raises ValueError for settings that make no sense, and if the environment refuses an answer.
    """

    env: ToolUse
    num_train: int
    num_validation: int
    syntax: str = "tags"
    direct_rate: float = 0.0
    seed: int = 0
    name: str = "tool_use"
    _splits: Splits[Demonstration] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.env.env, Arithmetic) or self.env.env.word_problem_steps:
            raise ValueError("tool_use: data.env.env must be arithmetic with word_problem_steps 0: expressions to call")
        if not any(isinstance(tool, Calculator) for tool in self.env.tools):
            raise ValueError(
                "tool_use: there is no calculator among data.env.tools; add {_target_: envs.tools.Calculator}"
            )
        if self.syntax not in SYNTAXES:
            raise ValueError(f"tool_use: syntax is {self.syntax!r}; it must be one of {', '.join(SYNTAXES)}")
        if not 0 <= self.direct_rate <= 1:
            raise ValueError(f"tool_use: direct_rate is {self.direct_rate}; it must lie between 0 and 1")
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
            "syntax": self.syntax,
            "direct_rate": self.direct_rate,
            "seed": self.seed,
            "env": self.env.manifest(),
        }

    def _demonstrations(self, split: Split, count: int, key: str) -> list[Demonstration]:
        return [self._demonstration(problem) for problem in first_problems(split, count, what=f"tool_use: {key}")]

    def _demonstration(self, problem: Problem) -> Demonstration:
        state = self.env.start(problem, self.seed)
        messages: list[Message] = [*problem.prompt]
        for text in self._turns(problem):
            messages.append({"role": "assistant", "content": text})
            (reply,) = self.env.replies([state], [messages])
            messages += reply or []
        (grade,) = self.env.grade([Episode(problem, state, messages, messages[-1]["content"], "stop")])
        if not grade.correct or grade.parts["malformed"]:
            raise ValueError(f"tool_use: the environment grades a demonstration of {problem.id} as {grade}: {messages}")
        return Demonstration(messages, problem.id, problem.tools)

    def _turns(self, problem: Problem) -> list[str]:
        assert isinstance(self.env.env, Arithmetic)
        answer = self.env.env.format.gold("", problem.answer)
        if random.Random(f"tool_use/{self.seed}/{problem.id}").random() < self.direct_rate:
            return [answer]
        calculator = next(tool.schema for tool in self.env.tools if isinstance(tool, Calculator))
        expression = problem.meta["solution"].partition(" = ")[0]
        return [written(calculator, {"expression": expression}, self.syntax), answer]
