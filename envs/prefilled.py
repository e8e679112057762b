"""An environment that begins the policy's turn for it: accuracy without thought, or from a thought that was cut
short.

``text`` stands at the head of every completion and is graded with it. With ``<think>\\n</think>\\n<answer>`` the
policy has to answer in one breath. Left out: beginnings that differ by problem (a thought truncated after n tokens),
which are a matter of replaying traces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from envs.base import GeneratedSplit
from rlreason.types import Env, Episode, Grade, Message, Problem, Split


@dataclass(frozen=True)
class Prefilled:
    """``env`` with ``text`` as the beginning of the policy's first turn; a ``rlreason.types.Env`` again. ``name`` is
    the environment's with ``_prefilled`` unless it is given."""

    env: Env
    text: str
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or f"{self.env.name}_prefilled")

    def split(self, name: str) -> Split:
        inner = self.env.split(name)
        return GeneratedSplit(inner.size, lambda index: self._begun(inner[index]))

    def _begun(self, problem: Problem) -> Problem:
        turn: Message = {"role": "assistant", "content": self.text}
        return replace(problem, prompt=[*problem.prompt, turn])

    def start(self, problem: Problem, seed: int) -> Any:
        return self.env.start(self._asked(problem), seed)

    def replies(self, states: Sequence[Any], conversations: Sequence[list[Message]]) -> list[list[Message] | None]:
        return self.env.replies(states, conversations)

    def grade(self, episodes: Sequence[Episode]) -> list[Grade]:
        return self.env.grade([replace(episode, problem=self._asked(episode.problem)) for episode in episodes])

    def validate(self) -> None:
        """The environment's own verifier."""
        self.env.validate()

    def manifest(self) -> Mapping[str, Any]:
        return {**self.env.manifest(), "name": self.name, "prefilled": self.text}

    @staticmethod
    def _asked(problem: Problem) -> Problem:
        return replace(problem, prompt=problem.prompt[:-1])
