"""What only names a quantity: ``x``, ``f(x)``, ``AB``. Left out: what the name stands for in the problem."""

from __future__ import annotations

import re

from envs.verify.nodes import Formula, Group, Node, Relation, Words

_SYMBOL = r"(?:[A-Za-z]|\\[a-z]+)(?:_(?:\{[^{}]*\}|[A-Za-z0-9]))?'*"
_NAME = re.compile(
    rf"""{_SYMBOL}(?:\^\{{-1\}})?(?:[ ]*\([^()=]*\))?            # x, x_1, f(x), f^{{-1}}(x)
    |[A-Z]{{2,4}}|\|?[A-Z]{{2}}\|?|[A-Z]\([^=]*\)             # AB, ABC, |AB|, P(A)
    |m?[ ]*\\(?:angle|triangle|overline|vec|hat|bar|widehat)[ ]*\{{?[A-Za-z]+\}}?
    |\\frac\{{d[a-z]?\}}\{{d[a-z]\}}|\\lim.*""",
    re.VERBOSE,
)


def is_name(node: Node) -> bool:
    """Whether it only names what is asked for: ``x``, ``f(x)``, ``AB``, ``\\angle ABC``, words."""
    if isinstance(node, Formula):
        return _NAME.fullmatch(node.text) is not None and node.text not in ("e", "i", r"\pi", r"\infty")
    if isinstance(node, Group):
        return node.brackets == "()" and all(map(is_name, node.items))
    return isinstance(node, Words)


def variable(relation: Relation) -> Node | None:
    """What a relation is about: the first of its sides that is a name."""
    return next((side for side in relation.sides if is_name(side)), None)
