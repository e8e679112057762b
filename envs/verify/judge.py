"""One check, as it runs in a worker: the right answer and the given one in, a verdict out. May take forever or all memory.

Left out: extraction, which needs no worker, and limits, which ``worker`` sets around this.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from envs.verify.equal import equal
from envs.verify.expression import Node, Number, Quantity, Relation, Unreadable, parse
from envs.verify.numbers import canonical
from envs.verify.tidy import tidy
from rlreason.types import Status

MAX_ANSWER = 500
"""Longest canonical answer that is kept, in characters."""


@dataclass(frozen=True)
class Verdict:
    """``correct``: the answer equals the right one. ``status``: ``ok``; ``unparseable`` if there is no answer that could be
    compared; ``timeout`` if comparing took more CPU time or memory than allowed; ``error`` if no worker could be had.
    ``answer``: one spelling for each answer, for voting and traces."""

    correct: bool
    status: Status
    answer: str | None = None


@lru_cache(maxsize=8192)
def judge(gold: str, answer: str) -> Verdict:
    """Raises ValueError if the right answer itself can't be read: that must never pay, nor pass in silence."""
    try:
        right = _parsed(gold)
    except Unreadable as error:
        raise ValueError(unreadable_gold(gold, error)) from None
    try:
        given = parse(answer)
    except (Unreadable, RecursionError):
        return Verdict(False, "unparseable")
    try:
        correct = equal(right, given)
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, RecursionError, TypeError, ValueError):
        correct = False  # sympy could not do it: then nothing shows that they are equal
    return Verdict(correct, "ok", _canonical(given, answer))


_parsed = lru_cache(maxsize=8192)(parse)


def unreadable_gold(gold: str, error: Exception) -> str:
    """What to say of a right answer that can't be read."""
    return f"the right answer {gold[:200]!r} can't be read ({error})"


def check_gold(gold: str) -> None:
    """Raises ValueError, saying why, unless ``gold`` is an answer that others can be compared with."""
    try:
        parse(gold)
    except Unreadable as error:
        raise ValueError(unreadable_gold(gold, error)) from None


def _canonical(node: Node, text: str) -> str:
    if isinstance(node, Relation) and len(node.sides) == 2 and node.operators == ("=",) and isinstance(node.sides[1], Number):
        node = node.sides[1]
    if isinstance(node, Quantity) and isinstance(node.value, Number):
        node = node.value
    spelling = canonical(node.value) if isinstance(node, Number) else re.sub(r"\s+", "", tidy(text))
    return spelling[:MAX_ANSWER]
