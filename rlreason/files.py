"""Files that are there whole or not at all, and values as JSON that every reader takes.

Left out: appending; the one file that grows is ``metrics.jsonl``, in ``record.py``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np


def write_atomic(path: Path, content: bytes) -> None:
    """Write ``content`` so that ``path`` holds either what it held before or all of it."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def finite(value: SupportsFloat | None) -> float | int | None:
    """A number that JSON can hold: integers stay integers, and what isn't finite becomes None."""
    if value is None:
        return None
    if isinstance(value, int | np.integer):
        return int(value)
    found = float(value)
    return found if math.isfinite(found) else None


def encodable(text: str) -> str:
    """The text with "?" for half a surrogate pair, which JSON files can carry but UTF-8 can't."""
    return text.encode("utf-8", "replace").decode("utf-8")


def as_json(value: Any, indent: int | None = None) -> str:
    """Any value as JSON: what isn't finite becomes null, what JSON doesn't know its string."""
    return encodable(json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, indent=indent))


def _plain(value: Any) -> Any:
    """``value`` as JSON knows it; what it doesn't know (fractions, paths, ...) as its string."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int | float | np.integer | np.floating):
        return finite(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)
