"""Answers as sets of real numbers: intervals, unions, finite sets, inequalities in one variable.

Left out: sets in several dimensions, and sets given by a property that is no chain of inequalities.
"""

from __future__ import annotations

from typing import Any

import sympy

from envs.verify.names import is_name, variable
from envs.verify.nodes import Group, NamedSet, Node, Relation, SetOperation
from envs.verify.symbolic import NotAFormula, value_of

MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
"""What becomes of a sign when its sides change places."""

_NAMED = {
    "R": sympy.S.Reals,
    "Z": sympy.S.Integers,
    "N": sympy.S.Naturals,
    "Q": sympy.S.Rationals,
    "C": sympy.S.Complexes,
    "empty": sympy.S.EmptySet,
}


def as_set(node: Node) -> Any:
    """A sympy set of real numbers, or None: intervals, unions, finite sets, inequalities in one variable."""
    try:
        return _set(node)
    except (NotAFormula, TypeError, ValueError, NotImplementedError):
        return None


def _set(node: Node) -> Any:
    if isinstance(node, NamedSet):
        return _NAMED[node.name]
    if isinstance(node, SetOperation):
        left, right = _set(node.left), _set(node.right)
        return {"cup": sympy.Union, "cap": sympy.Intersection, "setminus": sympy.Complement}[node.operator](left, right)
    if isinstance(node, Group):
        if node.brackets == "":
            parts = [item for item in node.items if isinstance(item, Relation)]
            if len(parts) == len(node.items) and len({variable(part) for part in parts}) == 1:
                both = sympy.Intersection(*(_set(part) for part in parts))
                # A bare comma means whichever leaves something.
                if node.joined == "and" or (node.joined == "" and both != sympy.S.EmptySet):
                    return both
                return sympy.Union(*(_set(part) for part in parts))
            raise NotAFormula("a list is no set")
        if node.brackets == "{}":
            return sympy.FiniteSet(*(value_of(item).doit() for item in node.items))
        if len(node.items) != 2:
            raise NotAFormula("no interval")
        low, high = (value_of(item).doit() for item in node.items)
        if not (low < high) == True:  # noqa: E712  a point, then, or not to be decided
            raise NotAFormula("no interval")
        return sympy.Interval(low, high, left_open=node.brackets[0] == "(", right_open=node.brackets[1] == ")")
    if isinstance(node, Relation):
        return _solutions(node)
    raise NotAFormula("no set")


def _solutions(node: Relation) -> Any:
    """The real numbers that ``1 < x <= 4`` or ``x != 3`` allows: a name on one side of each sign, a constant on the
    other."""
    if node.operators == ("in",) and is_name(node.sides[0]):
        return _set(node.sides[1])
    found: Any = sympy.S.Reals
    for left, operator, right in zip(node.sides, node.operators, node.sides[1:], strict=False):
        if is_name(right) and not is_name(left) and operator in MIRRORED:
            left, operator, right = right, MIRRORED[operator], left
        if not is_name(left) or is_name(right) or operator not in MIRRORED:
            raise NotAFormula("no inequality in one variable")
        bound = value_of(right).doit()
        if bound.free_symbols:
            raise NotAFormula("no constant bound")
        found = sympy.Intersection(found, _allowed(operator, bound))
    return found


def _allowed(operator: str, bound: Any) -> Any:
    if operator == "=":
        return sympy.FiniteSet(bound)
    if operator == "!=":
        return sympy.Complement(sympy.S.Reals, sympy.FiniteSet(bound))
    if operator in ("<", "<="):
        return sympy.Interval(-sympy.oo, bound, right_open=operator == "<")
    return sympy.Interval(bound, sympy.oo, left_open=operator == ">")


def same_set(left: Any, right: Any) -> bool:
    """Whether two sympy sets are equal; False where that can't be decided."""
    if left == right:
        return True
    empty = sympy.SymmetricDifference(left, right).is_empty
    return bool(empty)
