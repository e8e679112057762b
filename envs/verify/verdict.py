"""What a verifier says, and the check of a right answer when data are read; light to import.

Left out: the reasons of a verdict. Where it surprises, ``python -m envs.verify score`` shows the answer beside the
right one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from envs.verify.expression import parse
from envs.verify.nodes import Node, Unreadable

if TYPE_CHECKING:  # a worker has no use for torch
    from rlreason.types import Status


@dataclass(frozen=True)
class Verdict:
    """``correct``: the answer equals the right one. ``status``: ``ok``; ``unparseable`` if there is no answer that
    could be compared; ``timeout`` if comparing took more CPU time or memory than allowed; ``error`` if no worker
    could be had. ``answer``: one spelling for each answer, for voting and traces."""

    correct: bool
    status: Status
    answer: str | None = None


def check_gold(gold: str) -> Node:
    """The structure of a right answer. Raises ValueError, saying why, unless others can be compared with it."""
    try:
        return parse(gold, trusted=True)
    except Unreadable as error:
        raise ValueError(f"the right answer {gold[:200]!r} can't be read ({error})") from None
