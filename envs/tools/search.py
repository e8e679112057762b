"""Search over documents of the user's: the best by BM25, with the passage that fits.

SQLite's full-text index (FTS5) does it, from the standard library: BM25 and passages are built in, an index of 100,000
documents is made in seconds and kept in memory, and nothing has to be installed; ``bm25s`` ranks alike and has no
passages. Words are stemmed as English, case and accents don't count.

Left out: queries with operators (a policy's words are words), embeddings, and an index kept on disk.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envs.jsonl import json_lines, malformed
from envs.tools.tool import Result, Schema, text_function

MAX_WORDS = 32
"""Words of a query that are looked up."""

_EXAMPLE = '{"title": "Tides", "text": "The moon ..."}; the title may be missing'
_WORD = re.compile(r"\w+")
_FIND = """
    SELECT title, snippet(documents, 1, '', '', '…', ?) FROM documents WHERE documents MATCH ?
    ORDER BY bm25(documents), rowid LIMIT ?
"""


@dataclass(frozen=True)
class Search:
    """The tool, over the documents of ``corpus``, a .jsonl file. A result lists the ``top_k`` best documents, each with
    a passage of ``words`` words. ``name`` and ``description`` are what the prompt says of it.

    Raises FileNotFoundError, and ValueError for settings that make no sense and, with file and line, malformed rows.
    """

    corpus: str
    top_k: int = 3
    words: int = 40
    name: str = "search"
    description: str = "finds documents that have the words of a query"
    _index: sqlite3.Connection = field(init=False, repr=False, compare=False)
    _about: Mapping[str, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.top_k < 1 or not 1 <= self.words <= 64:
            raise ValueError(
                f"search: top_k is {self.top_k} and words {self.words}; they must be at least 1, and words at most 64"
            )
        path = Path(self.corpus).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"search: there is no file {path}; corpus must name a .jsonl file of {_EXAMPLE}")
        content = path.read_bytes()
        documents = [_document(where, row) for where, row in json_lines(path, content, _EXAMPLE)]
        if not documents:
            raise ValueError(f"search: {path} has no documents; each line must be like {_EXAMPLE}")
        index = sqlite3.connect(":memory:", check_same_thread=False)
        try:
            index.execute("CREATE VIRTUAL TABLE documents USING fts5(title, text, tokenize='porter unicode61')")
        except sqlite3.OperationalError as error:
            raise ValueError(f"search: this Python's SQLite has no full-text index ({error}); use another") from None
        index.executemany("INSERT INTO documents VALUES (?, ?)", documents)
        about = {"corpus": str(path.resolve()), "sha256": hashlib.sha256(content).hexdigest(), "size": len(documents)}
        object.__setattr__(self, "_index", index)
        object.__setattr__(self, "_about", about)

    @property
    def schema(self) -> Schema:
        return text_function(self.name, self.description, "query")

    def __call__(self, arguments: Sequence[Mapping[str, Any]]) -> list[Result]:
        return [self._found(given["query"]) for given in arguments]

    def validate(self) -> None:
        """The first document's own words find something."""
        title, text = self._index.execute("SELECT title, text FROM documents WHERE rowid = 1").fetchone()
        words = _WORD.findall(f"{title} {text}")[:MAX_WORDS]
        if words and not self._rows(words):
            raise ValueError(f"{self.name}: the first document, {title!r}, is not found by its own words {words}")

    def manifest(self) -> Mapping[str, Any]:
        own = {"name": self.name, "description": self.description, "top_k": self.top_k, "words": self.words}
        return {"type": "search", **own, **self._about}

    def _found(self, query: str) -> Result:
        words = _WORD.findall(query)[:MAX_WORDS]
        if not words:
            return Result("the query has no words", "refused")
        lines = [f"{title}: {passage}" if title else passage for title, passage in self._rows(words)]
        return Result("\n".join(lines) or "no document has any of these words")

    def _rows(self, words: Sequence[str]) -> list[tuple[str, str]]:
        """Title and passage of the best documents."""
        wanted = " OR ".join(f'"{word}"' for word in words)  # quoted, so that nothing in them is an operator
        return self._index.execute(_FIND, (self.words, wanted, self.top_k)).fetchall()


def _document(where: str, row: Any) -> tuple[str, str]:
    if not isinstance(row, Mapping) or not isinstance(row.get("text"), str) or not row["text"].strip():
        raise malformed(where, "'text' is missing, empty or not a string", _EXAMPLE)
    title = row.get("title", "")
    if not isinstance(title, str):
        raise malformed(where, "'title' is not a string", _EXAMPLE)
    return title, row["text"]
