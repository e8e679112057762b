"""Scores written down as they are made, so that a job that was stopped asks a reward model nothing twice.

Left out: a store that several runs share. Whose scores they are would have to be told apart.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlreason.types import Message, Scorer


@dataclass(frozen=True)
class Remembered:
    """``scorer`` again, with its scores kept in the file ``path``: a line for each conversation, by its hash. They are
    made and written ``chunk`` at a time. Equal conversations are scored once.

    A torn last line (the job was killed) is dropped. Raises ValueError, naming the line, for any other broken one.
    """

    scorer: Scorer
    path: Path
    chunk: int = 64
    _known: dict[str, tuple[float, ...]] = field(init=False, repr=False, compare=False, default_factory=dict)

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
                self._known[row["conversation"]] = tuple(map(float, row["scores"]))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self.path}:{number} holds no scores ({error}); remove it to score again") from error

    def __call__(self, conversations: Sequence[list[Message]]) -> list[tuple[float, ...]]:
        keys = [hashlib.sha256(json.dumps(conversation).encode()).hexdigest() for conversation in conversations]
        new = {key: c for key, c in zip(keys, conversations, strict=True) if key not in self._known}
        for start in range(0, len(new), self.chunk):
            part = dict(list(new.items())[start : start + self.chunk])
            found = dict(zip(part, self.scorer(list(part.values())), strict=True))
            lines = [json.dumps({"conversation": key, "scores": scores}) + "\n" for key, scores in found.items()]
            with self.path.open("ab") as file:
                file.write("".join(lines).encode())
                file.flush()
                os.fsync(file.fileno())
            self._known.update(found)
        return [self._known[key] for key in keys]
