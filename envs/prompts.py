"""The prompts of comparisons, without a verdict: what RLHF trains on where only people's preferences are known.

Left out: a test split; data sets of comparisons have two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from envs.base import ListSplit, check_split
from envs.data.messages import as_text
from rlreason.types import Comparison, DataSet, Episode, Grade, Message, Problem, Split


@dataclass(frozen=True)
class Prompts:
    """Each different prompt of ``data``, in its order; a ``rlreason.types.Env``. Every grade is 0, with no verdict: put
    a reward model around it (``env=rlhf``).

    ``name`` goes into metric names; empty: ``<name of the data>-prompts``.
    """

    data: DataSet[Comparison]
    name: str = ""
    _splits: Mapping[str, Split] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or f"{self.data.name}-prompts")
        object.__setattr__(self, "_splits", {name: self._problems(name) for name in ("train", "validation")})

    def split(self, name: str) -> Split:
        check_split(name)
        if name not in self._splits:
            raise ValueError(f"{self.name}: comparisons have no {name} split; evaluate with split=validation")
        return self._splits[name]

    def start(self, problem: Problem, seed: int) -> None:
        """There is no state."""
        return None

    def replies(self, states: Sequence[Any], conversations: Sequence[list[Message]]) -> list[list[Message] | None]:
        """Every episode ends after the policy's first turn."""
        return [None] * len(conversations)

    def grade(self, episodes: Sequence[Episode]) -> list[Grade]:
        return [Grade(0.0, None) for _ in episodes]

    def validate(self) -> None:
        """There is no verifier to check."""

    def manifest(self) -> Mapping[str, Any]:
        sizes = {name: split.size for name, split in self._splits.items()}
        return {"name": self.name, "sizes": sizes, "data": self.data.manifest()}

    def _problems(self, name: str) -> Split:
        """Ids are hashes of the prompts, so that they do not depend on what else is in the data."""
        problems: dict[str, Problem] = {}
        for pair in self.data.split(name):
            key = hashlib.sha256(as_text(pair.prompt).encode()).hexdigest()[:12]
            if key not in problems:
                meta = {"category": pair.category, "source": pair.source}
                problems[key] = Problem(f"{self.name}/{key}", pair.prompt, None, meta)
        return ListSplit([*problems.values()])
