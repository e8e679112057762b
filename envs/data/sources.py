"""Where rows come from: files of JSON lines, or a data set of the Hugging Face hub.

Left out: other file formats. ``datasets`` writes any of its own as JSON lines (``to_json``).
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from envs.jsonl import json_lines
from envs.rows import hub_tables

_WHAT_TO_DO = "To read files of your own, let the source be an envs.data.sources.JsonLines with train=<file>.jsonl."


@dataclass(frozen=True)
class Row:
    """A row and ``where`` it stands; ``origin`` names what it was read from: a file's stem, or the hub's data set."""

    where: str
    origin: str
    value: Any


@dataclass(frozen=True)
class Rows:
    """All rows of a source. ``validation`` is None if it has none of its own; ``details`` go into the manifest."""

    train: Sequence[Row]
    validation: Sequence[Row] | None
    details: Mapping[str, Any]


class Source(Protocol):
    """Gives rows on demand."""

    def load(self, example: str) -> Rows:
        """``example`` shows a good row in errors. Raises FileNotFoundError or ConnectionError for what is not there,
        ValueError, saying where, for what can't be read."""
        ...


@dataclass(frozen=True)
class JsonLines:
    """Files with a JSON object on each line, ``.jsonl`` or ``.jsonl.gz``: one of them or several for each split."""

    train: str | Sequence[str]
    validation: str | Sequence[str] | None = None

    def load(self, example: str) -> Rows:
        hashes: dict[str, str] = {}
        train = _file_rows(self.train, example, hashes)
        validation = None if self.validation is None else _file_rows(self.validation, example, hashes)
        return Rows(train, validation, {"source": "local", "sha256": hashes})


@dataclass(frozen=True)
class Hub:
    """``dataset`` (its ``config``, at ``revision``; None: the newest) from the Hugging Face hub, or from the cache
    where the hub does not answer. ``train`` and ``validation`` are its own names of those splits."""

    dataset: str
    config: str = "default"
    revision: str | None = None
    train: str = "train"
    validation: str | None = None

    def load(self, example: str) -> Rows:
        names = [self.train] if self.validation is None else [self.train, self.validation]
        # What columns there must be, the rows' reader says.
        tables, revision = hub_tables(
            self.dataset,
            self.config,
            self.revision,
            env="data",
            splits=names,
            columns=(),
            what_to_do=_WHAT_TO_DO,
        )
        rows = {
            name: [
                Row(f"{self.dataset}, {name}, row {place}", self.dataset, value)
                for place, value in enumerate(tables[name])
            ]
            for name in names
        }
        details = {"source": "hub", "dataset": self.dataset, "config": self.config, "revision": revision}
        validation = None if self.validation is None else rows[self.validation]
        return Rows(rows[self.train], validation, {**details, "splits": names})


def _file_rows(paths: str | Sequence[str], example: str, hashes: dict[str, str]) -> list[Row]:
    """The rows of one or several files; their SHA-256, of the files as they lie there, are added to ``hashes``."""
    rows: list[Row] = []
    for path in map(Path, [paths] if isinstance(paths, str) else paths):
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        content = path.read_bytes()
        hashes[str(path)] = hashlib.sha256(content).hexdigest()
        if path.suffix == ".gz":
            try:
                content = gzip.decompress(content)
            except (OSError, EOFError, zlib.error) as error:
                raise ValueError(f"{path} is damaged ({error}); download it again") from None
        origin = path.name.removesuffix(".gz").removesuffix(".jsonl")
        rows += [Row(where, origin, value) for where, value in json_lines(path, content, example)]
    return rows
