"""GSM8K's own solutions, to imitate: written by people, in the environment's format and as its prompt poses them.

Left out: the test solutions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from envs.data.base import Splits, first_problems
from envs.gsm8k import Gsm8k
from rlreason.types import Demonstration, Message, Split


@dataclass(frozen=True)
class Gsm8kSolutions:
    """The first ``num_train`` problems (None: all) of ``env``'s train split with their solutions, and the first
    ``num_validation`` of its validation split.

    Raises ValueError for more problems than there are, for all of the generated ones, which have no end, and for an
    environment that shows a worked example.
    """

    env: Gsm8k
    num_validation: int = 100
    num_train: int | None = None
    _splits: Splits[Demonstration] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.env.worked_example:
            raise ValueError(
                "gsm8k_solutions: with data.env.worked_example=true every demonstration would teach that example once "
                "more; set it to false"
            )
        splits = Splits(
            self._demonstrations(self.env.split("train"), self.num_train, "num_train"),
            self._demonstrations(self.env.split("validation"), self.num_validation, "num_validation"),
        )
        object.__setattr__(self, "_splits", splits)

    @property
    def name(self) -> str:
        """That of the environment, so that generated problems are never taken for GSM8K."""
        return f"{self.env.name}-solutions"

    def split(self, name: str) -> Sequence[Demonstration]:
        return self._splits[name]

    def manifest(self) -> Mapping[str, Any]:
        return {"name": self.name, "sizes": self._splits.sizes, "env": self.env.manifest()}

    def _demonstrations(self, split: Split, count: int | None, key: str) -> list[Demonstration]:
        problems = first_problems(split, count, what=f"gsm8k_solutions: {key}")
        solved: list[Message] = [{"role": "assistant", "content": self.env.gold(problem)} for problem in problems]
        return [
            Demonstration([*problem.prompt, text], problem.id) for problem, text in zip(problems, solved, strict=True)
        ]
