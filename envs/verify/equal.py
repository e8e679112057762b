"""Whether an answer says the same as the right one.

``equal`` takes the structures that ``expression.parse`` found. What the problem's answer does not say, the policy's
need not say either (``5`` for ``x = 5`` or ``5 km``), but what both say must agree (``y = 5`` is not ``x = 5``, ``5
m`` is not ``5 km``). What is not understood equals only what is written in the same way.

Left out: general systems of equations and inequalities in several variables, beyond a multiple of one relation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

import sympy

from envs.verify import units
from envs.verify.names import is_name, variable
from envs.verify.nodes import (
    Formula,
    Group,
    Matrix,
    NamedSet,
    Node,
    Number,
    Quantity,
    Ratio,
    Relation,
    SetOperation,
    Words,
)
from envs.verify.sets import MIRRORED, as_set, same_set
from envs.verify.symbolic import NotAFormula, rounds_to, same_function, same_value, value_of


def equal(gold: Node, answer: Node) -> bool:
    """Whether ``answer`` is right. May take forever: call it where it can be killed."""
    if gold == answer:
        return True
    if isinstance(gold, Relation) or isinstance(answer, Relation):
        return _relations(gold, answer)
    if isinstance(gold, Quantity) or isinstance(answer, Quantity):
        return _quantities(gold, answer)
    if isinstance(gold, Group | SetOperation | NamedSet) or isinstance(answer, Group | SetOperation | NamedSet):
        return _collections(gold, answer)
    if isinstance(gold, Matrix) or isinstance(answer, Matrix):
        return _matrices(gold, answer)
    if isinstance(gold, Ratio) or isinstance(answer, Ratio):
        return _ratios(gold, answer)
    if isinstance(gold, Words) or isinstance(answer, Words):
        return _words(gold, answer)
    return _scalars(gold, answer)


def _scalars(gold: Number | Formula, answer: Number | Formula) -> bool:
    if isinstance(gold, Formula) and isinstance(answer, Formula) and _squeezed(gold.text) == _squeezed(answer.text):
        return True
    try:
        return same_value(gold, answer)
    except NotAFormula:
        return False


def _squeezed(text: str) -> str:
    return re.sub(r"(?<![A-Za-z])[ ]+|[ ]+(?![A-Za-z])", "", text)


def _words(gold: Node, answer: Node) -> bool:
    if not isinstance(gold, Words | Formula) or not isinstance(answer, Words | Formula):
        return False
    left, right = gold.text, answer.text
    return left == right or (
        left.casefold() == right.casefold() and re.search("[a-z]{3}", left + " " + right) is not None
    )


# --- quantities --------------------------------------------------------------------------------------------------


def _quantities(gold: Node, answer: Node) -> bool:
    if isinstance(gold, Quantity) and isinstance(answer, Quantity):
        if {gold.unit.dimension, answer.unit.dimension} == {"degree", "radian"}:
            return equal(_in_radians(gold), _in_radians(answer))
        if gold.unit.dimension != answer.unit.dimension:
            return False
        if gold.unit.factor == answer.unit.factor:
            return equal(gold.value, answer.value)
        return equal(_scaled(gold.value, gold.unit.factor), _scaled(answer.value, answer.unit.factor))
    quantity, other = (gold, answer) if isinstance(gold, Quantity) else (answer, gold)
    assert isinstance(quantity, Quantity)
    if isinstance(other, Formula) and _squeezed(other.text).replace(" ", "") == quantity.text:
        return True
    if quantity.unit == units.PERCENT:
        part = _scaled(quantity.value, Fraction(1, 100))
        if quantity is answer:  # a percent sign counts where the problem's answer has one; else it divides by 100
            return equal(gold, part)
        return isinstance(quantity.value, Number) and (equal(quantity.value, other) or equal(part, other))
    value = quantity.value
    return equal(value, other) if quantity is gold else equal(other, value)


def _in_radians(angle: Quantity) -> Node:
    if angle.unit.dimension == "radian" or not isinstance(angle.value, Number | Formula):
        return angle.value
    return Formula(rf"\frac{{\pi}}{{180}} \cdot ({_written(angle.value)})")


def _written(value: Number | Formula) -> str:
    if isinstance(value, Formula):
        return value.text
    return rf"\frac{{{value.value.numerator}}}{{{value.value.denominator}}}"


def _scaled(value: Node, factor: Fraction) -> Node:
    if isinstance(value, Number):
        return Number(value.value * factor, value.digits)
    if isinstance(value, Formula):
        return Formula(rf"\frac{{{factor.numerator}}}{{{factor.denominator}}} \cdot ({value.text})")
    return value


# --- relations ---------------------------------------------------------------------------------------------------


def _assigned(node: Relation) -> tuple[Node | None, list[Node]]:
    """What a chain of equalities says: the name on its left or right, if any, and the values, all of which are to
    agree. Without values if it contradicts itself (``1 = 2``) or says something else."""
    if not set(node.operators) <= {"=", "~"}:
        return None, []
    sides = list(node.sides)
    operators = list(node.operators)
    name = sides[0] if is_name(sides[0]) else sides[-1] if is_name(sides[-1]) else None
    while len(sides) > 1 and is_name(sides[0]):
        sides, operators = sides[1:], operators[1:]
    while len(sides) > 1 and is_name(sides[-1]):
        sides, operators = sides[:-1], operators[:-1]
    if (any(is_name(side) for side in sides) and len(sides) > 1) or "~" in operators[:-1]:
        return name, []
    for left, right, operator in zip(sides, sides[1:], operators, strict=False):
        if not (_approximates(left, right) if operator == "~" else equal(left, right)):
            return name, []
    return name, sides


def _approximates(exact: Node, decimal: Node) -> bool:
    """Whether a decimal, of few digits perhaps, is the rounded value of the exact one before the sign ≈."""
    if not isinstance(decimal, Number) or decimal.digits is None or not isinstance(exact, Number | Formula):
        return False
    if isinstance(exact, Number) and exact.digits is not None:
        return False
    try:
        return rounds_to(decimal, value_of(exact), least=1)
    except (NotAFormula, TypeError):
        return False


def _relations(gold: Node, answer: Node) -> bool:
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        (own, values), (name, answers) = _assigned(gold), _assigned(answer)
        if values and answers and own is not None and name is not None and equal(own, name):
            return any(equal(value, answer) for value in values for answer in answers)
        left, right = as_set(gold), as_set(answer)
        if left is not None and right is not None:
            return variable(gold) == variable(answer) and same_set(left, right)
        return _same_relation(gold, answer)
    relation, other, is_gold = (gold, answer, True) if isinstance(gold, Relation) else (answer, gold, False)
    assert isinstance(relation, Relation)
    if relation.operators == ("in",):
        return equal(relation.sides[1], other) if is_gold else equal(other, relation.sides[1])
    _, values = _assigned(relation)
    if values:
        if (
            not is_gold
            and relation.operators[-1] == "~"
            and not (isinstance(other, Number) and other.digits is not None)
        ):
            values = values[:-1] or values  # the rounded value, only where the right answer is a rounded one
        return any(equal(value, other) if is_gold else equal(other, value) for value in values)
    if isinstance(other, Group | SetOperation | NamedSet | Words):
        left, right = as_set(relation), as_set(other)
        return left is not None and right is not None and same_set(left, right)
    return False


def _same_relation(gold: Relation, answer: Relation) -> bool:
    """Whether one relation is a multiple of the other: ``2x - y + 1 = 0`` and ``y = 2x + 1``."""
    if len(gold.operators) != len(answer.operators) or len(gold.operators) != 1:
        return len(gold.sides) == len(answer.sides) and (
            gold.operators == answer.operators
            and all(equal(left, right) for left, right in zip(gold.sides, answer.sides, strict=True))
        )
    try:
        left, right = (value_of(r.sides[0]) - value_of(r.sides[1]) for r in (gold, answer))
    except NotAFormula:
        return gold.operators == answer.operators and all(map(equal, gold.sides, answer.sides))
    if not left.free_symbols or left.free_symbols != right.free_symbols:
        return False
    point = {
        symbol: sympy.Rational(7 + 4 * place, 5 + place)
        for place, symbol in enumerate(sorted(left.free_symbols, key=str))
    }
    here, there = (sympy.N(side.subs(point), 30) for side in (left, right))
    if not here.is_real or not there.is_real or there == 0:
        return False
    factor = sympy.nsimplify(here / there, rational=False, tolerance=sympy.Float("1e-18"))
    operator = gold.operators[0] if factor > 0 else MIRRORED.get(gold.operators[0], "")
    return operator == answer.operators[0] and same_function(left, right * factor)


# --- lists, tuples, intervals, sets ------------------------------------------------------------------------------


def _collections(gold: Node, answer: Node) -> bool:
    if isinstance(gold, Group) and isinstance(answer, Group) and not _any_inequalities(gold, answer):
        ours, theirs = _named_values(gold), _named_values(answer)
        if ours is not None and theirs is not None:
            return ours.keys() == theirs.keys() and all(equal(ours[name], theirs[name]) for name in ours)
        if ours is not None:
            gold = Group("()", tuple(ours.values()))
        if theirs is not None:
            answer = Group("()", tuple(theirs.values()))
        if (
            len(gold.items) == 2
            and {gold.brackets, answer.brackets} & {"[]", "[)", "(]"}
            and gold.brackets != answer.brackets
        ):
            return False  # an interval, and no interval
        if gold.brackets == answer.brackets or "" in (gold.brackets, answer.brackets):
            return _same_items(gold, answer)
        if len(gold.items) > 2 and {gold.brackets, answer.brackets} == {"()", "[]"}:
            return _in_order(gold.items, answer.items)  # three or more are no interval
        return False
    if isinstance(gold, Words) or isinstance(answer, Words):
        words, other = (gold, answer) if isinstance(gold, Words) else (answer, gold)
        assert isinstance(words, Words)
        return other == NamedSet("empty") and words.text.casefold() in _EMPTY_WORDS
    if (
        isinstance(gold, Group)
        and gold.brackets == "{}"
        and len(gold.items) == 1
        and not isinstance(answer, SetOperation | NamedSet)
    ):
        return equal(gold.items[0], answer)
    left, right = as_set(gold), as_set(answer)
    return left is not None and right is not None and same_set(left, right)


_EMPTY_WORDS = frozenset(
    {
        "no solution",
        "no solutions",
        "no real solution",
        "no real solutions",
        "none",
        "empty set",
        "the empty set",
        "does not exist",
    }
)


def _named_values(group: Group) -> dict[str, Node] | None:
    """Values by name, in the order of the names, of a bare list such as ``y = 2, x = 1``; None for any other."""
    if group.brackets or not all(isinstance(item, Relation) for item in group.items):
        return None
    found: dict[str, Node] = {}
    for item in group.items:
        assert isinstance(item, Relation)
        name, values = _assigned(item)
        if not isinstance(name, Formula | Words) or not values or name.text in found:
            return None
        found[name.text] = values[0]
    if len({name.partition("_")[0] for name in found}) < len(found):
        return None  # x_1 and x_2: the roots, in whatever order
    return dict(sorted(found.items()))


def _any_inequalities(*groups: Group) -> bool:
    """Whether one of them is a bare list of inequalities, which together describe a set."""
    return any(
        not group.brackets
        and all(isinstance(item, Relation) and not {*item.operators} & {"=", "~"} for item in group.items)
        for group in groups
    )


def _same_items(gold: Group, answer: Group) -> bool:
    if gold.brackets == "{}" and answer.brackets == "{}":
        return _covers(gold.items, answer.items) and _covers(answer.items, gold.items)
    if "{}" in (gold.brackets, answer.brackets) or (gold.brackets == "" and answer.brackets == ""):
        return _in_any_order(gold.items, answer.items)
    return _in_order(gold.items, answer.items)


def _in_order(gold: Sequence[Node], answer: Sequence[Node]) -> bool:
    return len(gold) == len(answer) and all(map(equal, gold, answer))


def _in_any_order(gold: Sequence[Node], answer: Sequence[Node]) -> bool:
    rest = list(answer)
    if len(rest) != len(gold):
        return False
    for item in gold:
        place = next((place for place, other in enumerate(rest) if equal(item, other)), None)
        if place is None:
            return False
        del rest[place]
    return True


def _covers(items: Sequence[Node], others: Sequence[Node]) -> bool:
    return all(any(equal(item, other) for item in items) for other in others)


# --- matrices and ratios -----------------------------------------------------------------------------------------


def _matrices(gold: Node, answer: Node) -> bool:
    if isinstance(gold, Matrix) and isinstance(answer, Matrix):
        return len(gold.rows) == len(answer.rows) and all(map(_in_order, gold.rows, answer.rows))
    return False


def _ratios(gold: Node, answer: Node) -> bool:
    """``2 : 4`` is ``1 : 2``, and ``1/2`` if it has two terms."""
    left, right = _terms(gold), _terms(answer)
    if left is None or right is None or len(left) != len(right):
        return False
    if not left[0] or not right[0]:
        return left == right
    return all(a * right[0] == b * left[0] for a, b in zip(left, right, strict=True))


def _terms(node: Node) -> list[Fraction] | None:
    if isinstance(node, Number):
        return [Fraction(node.value.numerator), Fraction(node.value.denominator)]
    if isinstance(node, Ratio) and all(isinstance(term, Number) for term in node.terms):
        return [term.value for term in node.terms if isinstance(term, Number)]
    return None
