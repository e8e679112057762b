"""Arithmetic worked step by step, to imitate before reinforcement learning: a cold start that a program writes.

Each line does one operation, in the usual precedence and from left to right within it, by way of easier ones where the
operands are large: ``47 + 38: 40 + 30 = 70, 7 + 8 = 15, 70 + 15 = 85``. Some lines are checked (``Let me check:
19 - 7 = 12. Right.``); some hold a planted slip, which the check that follows finds and the next line puts right. Every
``a + b = c`` in the text is true except the planted ones, and the final answer always is.

Left out: other wordings of the steps and checks. The policy is to learn that there are steps and checks; reinforcement
finds out what they are worth.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from envs.arithmetic import Arithmetic
from envs.data.base import Splits, first_problems
from rlreason.types import Demonstration, Message, Problem, Split

_Claim = tuple[int, str, int, int]  # a, operation, b and what a operation b is said to be


@dataclass(frozen=True)
class WorkedArithmetic:
    """Demonstrations for the first problems of ``env``, expressions of any number of terms in its own format:
    ``num_train`` from its train split, ``num_validation`` from its validation split.

    Each step has a slip with probability ``error_rate``, and a right step is checked with probability ``check_rate``.
    With probability ``direct_rate`` an answer is given at once, without a worked step: so that the same weights can be
    asked both ways. All are a function of ``seed`` and the problem.

    Raises ValueError for settings that make no sense, word problems among them, and for more problems than there are.
    """

    env: Arithmetic
    num_train: int
    num_validation: int
    check_rate: float = 0.2
    error_rate: float = 0.1
    direct_rate: float = 0.0
    seed: int = 0
    name: str = "worked"
    _splits: Splits[Demonstration] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.env.word_problem_steps:
            raise ValueError("worked: word problems are not worked here; set data.env.word_problem_steps=0")
        for key in ("check_rate", "error_rate", "direct_rate"):
            rate = getattr(self, key)
            if not 0 <= rate <= 1:
                raise ValueError(f"worked: {key} is {rate}; it must lie between 0 and 1")
        splits = Splits(
            self._demonstrations(self.env.split("train"), self.num_train, "num_train"),
            self._demonstrations(self.env.split("validation"), self.num_validation, "num_validation"),
        )
        object.__setattr__(self, "_splits", splits)

    def split(self, name: str) -> Sequence[Demonstration]:
        return self._splits[name]

    def manifest(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "source": "generated",
            "sizes": self._splits.sizes,
            "check_rate": self.check_rate,
            "error_rate": self.error_rate,
            "direct_rate": self.direct_rate,
            "seed": self.seed,
            "env": self.env.manifest(),
        }

    def _demonstrations(self, split: Split, count: int, key: str) -> list[Demonstration]:
        return [self._demonstration(problem) for problem in first_problems(split, count, what=f"worked: {key}")]

    def _demonstration(self, problem: Problem) -> Demonstration:
        rng = random.Random(f"worked/{self.seed}/{problem.id}")
        lines = []
        direct = random.Random(f"direct/{self.seed}/{problem.id}").random() < self.direct_rate
        for step in [] if direct else _steps(problem.meta["solution"].partition(" = ")[0]):
            if rng.random() < self.error_rate:
                wrong = _near(step.result, rng)
                lines += [step.line(wrong), step.check(wrong), step.line(step.result)]
                continue
            lines.append(step.line(step.result))
            if rng.random() < self.check_rate:
                lines.append(step.check(step.result))
        solved: Message = {"role": "assistant", "content": self.env.format.gold("\n".join(lines), problem.answer)}
        return Demonstration([*problem.prompt, solved], problem.id)


@dataclass(frozen=True)
class _Step:
    """One operation of an expression, and the claims that lead to its result, which is the last one's."""

    a: int
    operation: str
    b: int
    claims: Sequence[_Claim]

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


def _near(result: int, rng: random.Random) -> int:
    """A likely slip: off by one, or by a carry, with the same sign."""
    near = [result + 1, result - 1, result + 10, result - 10]
    return rng.choice([number for number in near if (number < 0) == (result < 0)])


def _claim(a: int, operation: str, b: int, result: int) -> str:
    return f"{a} {operation} {b} = {result}"


def _steps(expression: str) -> Iterator[_Step]:
    """The operations of an expression in the order in which they are done: products first, then sums."""
    tokens = expression.split(" ")
    sums: list[tuple[str, int]] = []
    for operation, operand in zip(["+", *tokens[1::2]], map(int, tokens[::2]), strict=True):
        if operation in "+-":
            sums.append((operation, operand))
        else:
            sign, value = sums.pop()
            step = _Step(value, operation, operand, (_product if operation == "*" else _quotient)(value, operand))
            sums.append((sign, step.result))
            yield step
    total = sums[0][1]
    for operation, operand in sums[1:]:
        step = _Step(total, operation, operand, (_sum if operation == "+" else _difference)(total, operand))
        total = step.result
        yield step


# How an operation is done: claims of which the last has the result. Operands are 0 or more where nothing else is said.


def _sum(a: int, b: int) -> list[_Claim]:
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


def _difference(a: int, b: int) -> list[_Claim]:
    """``a`` may be negative."""
    if b == 0:
        return [(a, "-", b, a)]
    if a < 0:
        return _negated(_sum(-a, b))
    if a < b:
        return _negated(_difference(b, a))
    high = b - b % _place(b)
    return [(a, "-", high, a - high), *(_difference(a - high, b - high) if b > high else [])]


def _negated(claims: list[_Claim]) -> list[_Claim]:
    result = claims[-1][3]
    return [*claims, (0, "-", result, -result)]


def _product(a: int, b: int) -> list[_Claim]:
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


def _quotient(a: int, b: int) -> list[_Claim]:
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
