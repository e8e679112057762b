"""An environment's own gold completions, to imitate: a cold start for what its verifier then reinforces.

What they teach is up to the environment: GSM8K's are people's solutions, those of ``envs.letters`` spell the word out
first. Left out: test problems, and environments of several turns, which have no gold completions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from envs.base import BatchGradedEnv
from envs.data.base import Splits, first_problems
from rlreason.types import Demonstration, Message, Problem, Split


@dataclass(frozen=True)
class Golds:
    """Demonstrations for the first ``num_train`` problems (None: all) of ``env``'s train split, and the first
    ``num_validation`` of its validation split, as its prompts pose them and in its format.

    Raises ValueError for more problems than there are, for all of a split that has no end, and for an environment
    without gold completions or whose prompts show turns of the assistant.
    """

    env: BatchGradedEnv
    num_validation: int = 100
    num_train: int | None = None
    _splits: Splits[Demonstration] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.env, BatchGradedEnv):
            raise ValueError(
                f"golds: a {type(self.env).__name__} has no gold completions to imitate; choose a single-turn "
                "environment by env@data.env=<name>"
            )
        splits = Splits(
            self._demonstrations(self.env.split("train"), self.num_train, "num_train"),
            self._demonstrations(self.env.split("validation"), self.num_validation, "num_validation"),
        )
        object.__setattr__(self, "_splits", splits)

    @property
    def name(self) -> str:
        """That of the environment, so that a stand-in is never taken for the real data."""
        return f"{self.env.name}-solutions"

    def split(self, name: str) -> Sequence[Demonstration]:
        return self._splits[name]

    def manifest(self) -> Mapping[str, Any]:
        return {"name": self.name, "sizes": self._splits.sizes, "env": self.env.manifest()}

    def _demonstrations(self, split: Split, count: int | None, key: str) -> list[Demonstration]:
        return [self._demonstration(problem) for problem in first_problems(split, count, what=f"{self.name}: {key}")]

    def _demonstration(self, problem: Problem) -> Demonstration:
        if problem.answer is None:
            raise ValueError(f"{self.name}: the answer to problem {problem.id} is not known, so there is none to show")
        if any(message["role"] == "assistant" for message in problem.prompt):
            raise ValueError(
                f"{self.name}: the prompt of problem {problem.id} shows a turn of the assistant, which every "
                "demonstration would teach once more; turn that off (data.env.worked_example=false)"
            )
        solved: Message = {"role": "assistant", "content": self.env.gold(problem)}
        return Demonstration([*problem.prompt, solved], problem.id)
