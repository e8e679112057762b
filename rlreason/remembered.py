"""What was asked of a reward model or a judge, written down at once, so that a job that was stopped asks nothing twice.

Left out: a store that several runs share. Whose answers they are would have to be told apart.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rlreason.types import Message, Scorer


@dataclass(frozen=True)
class Ledger:
    """A file of JSON lines that only grows; each pairs a string under ``key`` with something under ``value``.

    ``entries`` is what it holds; a torn last line (the job was killed) is dropped from the file. Raises ValueError,
    naming the line, for any other broken one.
    """

    path: Path
    key: str
    value: str
    entries: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not self.path.is_file():
            return
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(self.path, len(whole))
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            try:
                row = json.loads(line)
                self.entries[row[self.key]] = row[self.value]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{self.path}:{number} is no line with {self.key} and {self.value} ({error!r}); remove the file to "
                    "begin again"
                ) from error

    def add(self, entries: dict[str, Any]) -> None:
        """Write down entries, to stay."""
        lines = [json.dumps({self.key: key, self.value: value}) + "\n" for key, value in entries.items()]
        with self.path.open("ab") as file:
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())
        self.entries.update(entries)


@dataclass(frozen=True)
class Remembered:
    """``scorer`` again, with its scores kept in ``ledger`` by the hashes of conversations. New ones are scored and
    written ``chunk`` at a time; equal conversations are scored once."""

    scorer: Scorer
    ledger: Ledger
    chunk: int = 64

    def __call__(self, conversations: Sequence[list[Message]]) -> list[tuple[float, ...]]:
        keys = [hashlib.sha256(json.dumps(conversation).encode()).hexdigest() for conversation in conversations]
        known = self.ledger.entries
        new = iter({key: c for key, c in zip(keys, conversations, strict=True) if key not in known}.items())
        while part := dict(islice(new, self.chunk)):
            self.ledger.add(dict(zip(part, map(list, self.scorer(list(part.values()))), strict=True)))
        return [tuple(known[key]) for key in keys]
