"""A calculator: exact arithmetic with numbers, ``+ - * / ** ( )``.

Values are fractions: 0.1 + 0.2 is 0.3. What a policy writes is read by a small grammar and never run, in time linear
in its length; numbers and limits are those of ``envs.verify.numbers``, and no value on the way may have more than
``MAX_DIGITS`` digits, so that a tower of powers costs nothing. ``^``, ``×``, ``·``, ``÷``, ``−`` and one ``=`` at the
end are read too.

Left out: roots, logarithms and other functions; percent signs, which stand for two things.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from envs.tools.tool import Result, Schema, text_function
from envs.verify.numbers import MAX_DIGITS, parse_number

MAX_LENGTH = 300
"""Longest expression that is read, in characters."""

MAX_PARENTHESES = 30

_TOKEN = re.compile(r"[ \t\n]*(?:([0-9][0-9,]*(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|\.[0-9]+)|(\*\*|[-+*/()]))")
_SPELLINGS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "^": "\0"})
_NUMBERS = ".0123456789"
_SHOWN_DIGITS = 10
_TOO_LARGE = f"a value has more than {MAX_DIGITS} digits"
_GOLD = (("47 * 38", "1786"), ("-(1 + 2) / 8 + 2 ** 3", "7.625"), ("2 / 3", "0.6666666667"))


class _Unreadable(ValueError):
    """No expression, or none with a value; the message is for the policy."""


@dataclass(frozen=True)
class Calculator:
    """The tool. ``name`` and ``description`` are what the prompt says of it."""

    name: str = "calculator"
    description: str = "works out an expression with + - * / ** and parentheses"

    @property
    def schema(self) -> Schema:
        return text_function(self.name, self.description, "expression")

    def __call__(self, arguments: Sequence[Mapping[str, Any]]) -> list[Result]:
        return [_calculated(given["expression"]) for given in arguments]

    def validate(self) -> None:
        for expression, value in _GOLD:
            found = _calculated(expression)
            if found != Result(value):
                raise ValueError(f"{self.name}: {expression} should be {value}, but is {found}")

    def manifest(self) -> Mapping[str, Any]:
        return {"type": "calculator", "name": self.name, "description": self.description}


def _calculated(expression: str) -> Result:
    try:
        return Result(_shown(_Reader(expression).value()))
    except _Unreadable as error:
        return Result(str(error), "refused")


class _Reader:
    """Recursive descent: a sum of products of powers. ``MAX_LENGTH`` and ``MAX_PARENTHESES`` bound its depth."""

    def __init__(self, expression: str) -> None:
        if len(expression) > MAX_LENGTH or expression.count("(") > MAX_PARENTHESES:
            raise _Unreadable(
                f"the expression has more than {MAX_LENGTH} characters or {MAX_PARENTHESES} pairs of parentheses"
            )
        text = expression.translate(_SPELLINGS).replace("\0", "**").rstrip().removesuffix("=").rstrip()
        self._tokens: list[str] = []
        place = 0
        while place < len(text):
            token = _TOKEN.match(text, place)
            if token is None:
                rest = text[place:].strip()
                raise _Unreadable(f"can't read {rest[:20]!r}; write numbers with + - * / ** and parentheses")
            self._tokens.append(token[1] or token[2])
            place = token.end()
        self._place = 0

    def value(self) -> Fraction:
        """Raises _Unreadable."""
        found = self._sum()
        if self._next:
            raise _Unreadable(f"{self._next!r} stands where the expression should end")
        return found

    @property
    def _next(self) -> str:
        return self._tokens[self._place] if self._place < len(self._tokens) else ""

    def _take(self) -> str:
        token = self._next
        self._place += 1
        return token

    def _sum(self) -> Fraction:
        total = self._product()
        while self._next in ("+", "-"):
            total = _bounded(total + self._product() if self._take() == "+" else total - self._product())
        return total

    def _product(self) -> Fraction:
        product = self._signed()
        while self._next in ("*", "/"):
            divided, factor = self._take() == "/", self._signed()
            if divided and not factor:
                raise _Unreadable("division by zero")
            product = _bounded(product / factor if divided else product * factor)
        return product

    def _signed(self) -> Fraction:
        """Signs bind less tightly than powers: -2 ** 2 is -4."""
        sign = 1
        while self._next in ("+", "-"):
            sign *= -1 if self._take() == "-" else 1
        return sign * self._power()

    def _power(self) -> Fraction:
        base = self._atom()
        if self._next != "**":
            return base
        self._take()
        return _raised(base, self._signed())

    def _atom(self) -> Fraction:
        token = self._take()
        if token == "(":
            found = self._sum()
            if self._take() != ")":
                raise _Unreadable("a parenthesis is not closed")
            return found
        if token[:1] not in _NUMBERS:
            raise _Unreadable(f"a number is missing before {token!r}")
        if not token:
            raise _Unreadable("a number is missing at the end")
        number = parse_number(token)
        if number is None:
            raise _Unreadable(f"can't read the number {token[:20]!r}")
        return number


def _bounded(value: Fraction) -> Fraction:
    if max(abs(value.numerator), value.denominator) >= 10**MAX_DIGITS:
        raise _Unreadable(_TOO_LARGE)
    return value


def _raised(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise _Unreadable("an exponent must be a whole number")
    if not base and exponent < 0:
        raise _Unreadable("division by zero")
    power, size = int(exponent), max(abs(base.numerator), base.denominator)
    if size == 1 and power:  # 0, 1 and -1: only whether the power is even matters
        power = 2 - power % 2
    if abs(power) * (size.bit_length() - 1) > 4 * MAX_DIGITS:  # bits that it has at least; a digit has 3.3
        raise _Unreadable(_TOO_LARGE)
    return _bounded(base**power)


def _shown(value: Fraction) -> str:
    """Whole numbers as they are, others as decimals: exactly where few digits will do, else rounded to ten."""
    if value.denominator == 1:
        return str(value.numerator)
    digits = _SHOWN_DIGITS
    if 10**digits % value.denominator == 0:
        scaled = abs(value.numerator) * (10**digits // value.denominator)
        whole, part = divmod(scaled, 10**digits)
        sign = "-" if value < 0 else ""
        return f"{sign}{whole}.{part:0{digits}d}".rstrip("0")
    return f"{float(value):.{digits}g}"
