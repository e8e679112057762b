"""Conversations to imitate, one a row: ``{"messages": [...]}``, or ``{"prompt": ..., "completion": ...}`` with texts or
messages; with ``"tools": [...]`` where functions may be called. ``rlreason.sample`` writes such files.

Left out: leaving bad rows out. Demonstrations are few and dear; one that can't be read is a mistake to be found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from envs.data.base import Splits, arranged
from envs.data.messages import as_text, check_answered, functions, opening, turns
from envs.data.sources import Row, Source
from envs.jsonl import malformed
from rlreason.types import Demonstration

_EXAMPLE_ROW = (
    '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]} or '
    '{"prompt": "...", "completion": "..."}'
)


@dataclass(frozen=True)
class Chat:
    """The demonstrations of ``source``, read on construction; exact repeats count once.

    Where ``source`` has no validation rows, ``validation_share`` of the conversations is held out, chosen by ``seed``;
    conversations with the same first user turn stay together, and so do samples of one problem where the rows name it
    (``provenance.problem``, as ``rlreason.sample`` does). Where it has, the training rows that would stay together with
    one of them are left out. The manifest counts repeats and rows left out.

    Raises ValueError for a row that can't be used (saying where and why), and if a split would be empty.
    """

    source: Source
    validation_share: float = 0.1
    seed: int = 0
    name: str = "chat"
    _splits: Splits[Demonstration] = field(init=False, repr=False, compare=False)
    _details: Mapping[str, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rows = self.source.load(_EXAMPLE_ROW)
        splits = arranged(
            [(_demonstration(row), row) for row in rows.train],
            None if rows.validation is None else [(_demonstration(row), row) for row in rows.validation],
            identity=lambda read: as_text(read[0].messages),
            unit=lambda read: _problem(read[1]) or opening(read[0].messages),
            share=self.validation_share,
            seed=self.seed,
            what=self.name,
        ).each(lambda read: read[0])
        object.__setattr__(self, "_splits", splits)
        object.__setattr__(self, "_details", rows.details)

    def split(self, name: str) -> Sequence[Demonstration]:
        return self._splits[name]

    def manifest(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            **self._details,
            "validation_share": self.validation_share,
            "seed": self.seed,
            "sizes": self._splits.sizes,
            "left_out": self._splits.left_out,
        }


def _demonstration(row: Row) -> Demonstration:
    """Raises ValueError saying where and why if the row is not one."""
    try:
        if not isinstance(row.value, Mapping):
            raise ValueError("this is not a JSON object")
        if "messages" in row.value:
            messages, key = turns(row.value["messages"], "messages"), "messages"
        else:
            prompt = turns(row.value.get("prompt"), "prompt", "user")
            messages, key = [*prompt, *turns(row.value.get("completion"), "completion", "assistant")], "completion"
        check_answered(messages, key)
        tools = functions(row.value.get("tools"))
    except ValueError as error:
        raise malformed(row.where, f"{error}", _EXAMPLE_ROW) from None
    return Demonstration(messages, row.where, tools)


def _problem(row: Row) -> str | None:
    """The problem that the row is a sample of, if it says so."""
    provenance = row.value.get("provenance")
    problem = provenance.get("problem") if isinstance(provenance, Mapping) else None
    return problem if isinstance(problem, str) else None
