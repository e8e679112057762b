"""What an answer can say, as data: the structures that ``expression`` reads and ``equal`` compares. No logic.

Left out: functions, sequences, geometric objects; such answers stay formulas or words.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from envs.verify.units import Unit


class Unreadable(ValueError):
    """This is no answer that anybody could compare: empty, unbalanced, in doubt of itself, prose."""


@dataclass(frozen=True)
class Number:
    """An exact value. ``digits``: significant digits if it is written as a decimal, which may stand for a rounded
    value; None for an integer or a fraction."""

    value: Fraction
    digits: int | None = None


@dataclass(frozen=True)
class Formula:
    """A scalar expression in tidy LaTeX, without blanks."""

    text: str


@dataclass(frozen=True)
class Words:
    """A name, a choice, yes or no; compared as it is written (case aside, unless it is a single letter)."""

    text: str


@dataclass(frozen=True)
class Quantity:
    """A value and what it counts. ``text`` is how it was written, should it be a product after all (``3 m``)."""

    value: Node
    unit: Unit
    text: str


@dataclass(frozen=True)
class Group:
    """Several values. ``brackets`` are ``()``, ``[]``, ``[)``, ``(]``, ``{}`` for a set, or none for a bare list.

    Order matters within round and square brackets; two items in those may be an interval too.
    """

    brackets: Literal["()", "[]", "[)", "(]", "{}", ""]
    items: tuple[Node, ...]
    joined: Literal["", "and", "or"] = field(default="", compare=False)
    """The word between the items of a bare list."""


@dataclass(frozen=True)
class SetOperation:
    """``left`` ∪, ∩ or ∖ ``right``: ``cup``, ``cap``, ``setminus``."""

    operator: str
    left: Node
    right: Node


@dataclass(frozen=True)
class NamedSet:
    """``R``, ``Z``, ``N``, ``Q``, ``C``, or ``empty``."""

    name: str


@dataclass(frozen=True)
class Relation:
    """``sides[0] operators[0] sides[1] ...``; operators are ``= < > <= >= != in notin ~``."""

    sides: tuple[Node, ...]
    operators: tuple[str, ...]


@dataclass(frozen=True)
class Matrix:
    """Rows of cells, all of one length."""

    rows: tuple[tuple[Node, ...], ...]


@dataclass(frozen=True)
class Ratio:
    """``a : b : ...``"""

    terms: tuple[Node, ...]


Node = Number | Formula | Words | Quantity | Group | SetOperation | NamedSet | Relation | Matrix | Ratio
