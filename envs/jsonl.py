"""JSON lines, with errors that say where; light to import.

Left out: writing them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def json_lines(path: Path, content: bytes, example: str) -> Iterator[tuple[str, Any]]:
    """Pairs of ``file:line`` and the parsed line; blank lines are skipped. ``example`` shows a row in the error."""
    # Not splitlines: U+2028 and the like may stand inside a JSON string.
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            where = f"{path}:{number}"
            try:
                yield where, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise malformed(where, f"this is not JSON ({error})", example) from None


def malformed(where: str, what: str, example: str) -> ValueError:
    """The error for a bad row."""
    return ValueError(
        f"{where}: {what}. Each row must be like {example}; correct or remove this row, or download the file again"
    )
