"""How an operation on whole numbers is worked out on paper: by claims of the form ``a + b = c``, and by way of easier
ones where the operands are large: ``47 + 38: 40 + 30 = 70, 7 + 8 = 15, 70 + 15 = 85``.

Left out: parentheses and inexact divisions, which ``envs.arithmetic`` doesn't pose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Claim = tuple[int, str, int, int]
"""a, operation, b, and what a operation b is said to be."""


@dataclass(frozen=True)
class Step:
    """One operation of an expression, and the claims that lead to its result, which is the last one's."""

    a: int
    operation: str
    b: int
    claims: Sequence[Claim]

    @property
    def result(self) -> int:
        return self.claims[-1][3]

    def line(self, result: int) -> str:
        """The step with ``result`` in place of its own."""
        last = (*self.claims[-1][:3], result)
        written = ", ".join(_claim(*claim) for claim in [*self.claims[:-1], last])
        at_once = self.claims[0][:3] == (self.a, self.operation, self.b)
        return written if at_once else f"{self.a} {self.operation} {self.b}: {written}"

    def check(self, result: int) -> str:
        """What shows whether ``result`` is right: from it back to the first operand, or a product the other way round,
        since dividing is harder than what it would check."""
        if self.operation == "*":
            back, expected = (self.b, "*", self.a, self.a * self.b), result
        else:
            inverse = {"+": "-", "-": "+", "/": "*"}[self.operation]
            value = {"-": result - self.b, "+": result + self.b, "*": result * self.b}[inverse]
            back, expected = (result, inverse, self.b, value), self.a
        if back[3] == expected:
            return f"Let me check: {_claim(*back)}. Right."
        return f"Let me check: {_claim(*back)}, not {expected}. Wait, that is wrong."


def _claim(a: int, operation: str, b: int, result: int) -> str:
    return f"{a} {operation} {b} = {result}"


def steps(expression: str) -> Iterator[Step]:
    """The operations of an expression in the order in which they are done: products first, then sums."""
    tokens = expression.split(" ")
    sums: list[tuple[str, int]] = []
    for operation, operand in zip(["+", *tokens[1::2]], map(int, tokens[::2]), strict=True):
        if operation in "+-":
            sums.append((operation, operand))
        else:
            sign, value = sums.pop()
            step = Step(value, operation, operand, (_product if operation == "*" else _quotient)(value, operand))
            sums.append((sign, step.result))
            yield step
    total = sums[0][1]
    for operation, operand in sums[1:]:
        step = Step(total, operation, operand, (_sum if operation == "+" else _difference)(total, operand))
        total = step.result
        yield step


# How an operation is done: claims of which the last has the result. Operands are 0 or more where nothing else is said.


def _sum(a: int, b: int) -> list[Claim]:
    """``a`` may be negative."""
    if b == 0:
        return [(a, "+", b, a)]
    if a < 0:
        return _difference(b, -a) if b >= -a else _negated(_difference(-a, b))
    place = _place(min(a, b))
    if place == 1 or a % place == 0 or b % place == 0:
        return [(a, "+", b, a + b)]
    high, low = _sum(a - a % place, b - b % place), _sum(a % place, b % place)
    return [*high, *low, *_sum(high[-1][3], low[-1][3])]


def _difference(a: int, b: int) -> list[Claim]:
    """``a`` may be negative."""
    if b == 0:
        return [(a, "-", b, a)]
    if a < 0:
        return _negated(_sum(-a, b))
    if a < b:
        return _negated(_difference(b, a))
    high = b - b % _place(b)
    return [(a, "-", high, a - high), *(_difference(a - high, b - high) if b > high else [])]


def _negated(claims: list[Claim]) -> list[Claim]:
    result = claims[-1][3]
    return [*claims, (0, "-", result, -result)]


def _product(a: int, b: int) -> list[Claim]:
    small, large = sorted((a, b))
    place = _place(small)
    if small < 2 or small == place or (small < 10 and large % _place(large) == 0):
        return [(a, "*", b, a * b)]
    if small >= 10 and small % place == 0:
        digit = _product(large, small // place)
        return [*digit, (digit[-1][3], "*", place, a * b)]
    if small < 10:
        high = large - large % _place(large)
        first, second = _product(high, small), _product(large - high, small)
    else:
        first, second = _product(large, small - small % place), _product(large, small % place)
    return [*first, *second, *_sum(first[-1][3], second[-1][3])]


def _quotient(a: int, b: int) -> list[Claim]:
    """``a`` is a multiple of ``b``."""
    quotient = a // b
    high = quotient - quotient % _place(quotient)
    if b == 1 or quotient == high:
        return [(a, "/", b, quotient)]
    rest = _quotient(a - high * b, b)
    return [(high * b, "/", b, high), *rest, *_sum(high, quotient - high)]


def _place(number: int) -> int:
    """The value of a 1 in its first digit: 100 for 376. 1 for 0."""
    return 10 ** (len(str(number)) - 1)
