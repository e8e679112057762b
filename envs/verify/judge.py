"""One check, as it runs in a worker: the right answer and the given one in, a verdict out. May take forever or all
memory.

Left out: extraction, which needs no worker, and limits, which ``worker`` sets around this.
"""

from __future__ import annotations

import re
from functools import lru_cache

from envs.verify.equal import equal
from envs.verify.expression import parse
from envs.verify.nodes import Node, Number, Quantity, Relation, Unreadable, Words
from envs.verify.numbers import canonical
from envs.verify.tidy import tidy
from envs.verify.verdict import Verdict, check_gold

_LABELLED = re.compile(r"\(?([A-J])(?:\)[.:]?|[.:])[ ]+(\S.*)", re.DOTALL)

MAX_ANSWER = 500
"""Longest canonical answer that is kept, in characters."""


def judge(gold: str, answer: str) -> Verdict:
    """The verdict on an answer. Raises ValueError if the right answer itself can't be read: that must never pay, nor
    pass in silence."""
    right = _right(gold)
    if gold.strip() == answer.strip():
        return Verdict(True, "ok", _canonical(right, answer))
    label = _LABELLED.fullmatch(re.sub(r"\\text[a-z]*\{([^{}]*)\}", r"\1", answer).strip())
    if label:  # "(B) 12" is B where a letter is asked for, else 12
        answer = label[1] if isinstance(right, Words) and len(right.text) == 1 else label[2]
    try:
        given = parse(answer)
    except (Unreadable, RecursionError):
        return Verdict(False, "unparseable")
    try:
        correct = equal(right, given)
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, RecursionError, TypeError, ValueError):
        correct = False  # sympy could not do it: then nothing shows that they are equal
    return Verdict(correct, "ok", _canonical(given, answer))


_right = lru_cache(maxsize=8192)(check_gold)


def _canonical(node: Node, text: str) -> str:
    if (
        isinstance(node, Relation)
        and len(node.sides) == 2
        and node.operators == ("=",)
        and isinstance(node.sides[1], Number)
    ):
        node = node.sides[1]
    if isinstance(node, Quantity) and isinstance(node.value, Number):
        node = node.value
    spelling = canonical(node.value) if isinstance(node, Number) else re.sub(r"\s+", "", tidy(text))
    return spelling[:MAX_ANSWER]
