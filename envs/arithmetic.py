"""Generated arithmetic: expressions (``What is 3 + 5?``) and word problems of 1 to 4 steps.

The splits partition the space of problems by a hash of the canonical problem: 3 + 5 and 5 + 3 are one problem, so
both are in the same split, for every seed and for every configuration that contains them.

Left out: parentheses, fractions and decimals as operands, and inexact division.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from envs.base import SPLITS, Answer, GeneratedSplit, SingleTurnEnv, check_split, make_prompt, split_of
from envs.formats import Format, Plain, best_reward, checked_weights, grade_number
from envs.verify.numbers import MAX_DIGITS
from envs.word_problems import MAX_STEPS, word_problem
from rlreason.types import Finish, Grade, Problem, Split

OPERATIONS = ("+", "-", "*", "/")

MAX_ENUMERATED = 20_000
"""Spaces of at most so many ordered expressions are enumerated; larger ones are drawn from."""

_Expression = tuple[tuple[int, ...], tuple[str, ...]]  # n operands, n - 1 operations between them


@dataclass(frozen=True)
class Arithmetic(SingleTurnEnv):
    """Arithmetic problems, graded by exact comparison.

    ``operations`` are drawn from for each place between two of the ``terms`` operands; operands are
    0 to 10**``digits`` - 1; * and / bind more tightly than + and -, from left to right. A difference may be negative;
    a division is always exact. With ``word_problem_steps`` 1 to 4 the problems are word problems of so many steps
    instead, with their own numbers and all four operations, and the three fields above stay at their defaults.

    Up to ``MAX_ENUMERATED`` ordered expressions, the splits are finite and hold each of them exactly once, in an order
    that ``seed`` shuffles. Beyond, and for word problems, problem *i* is a function of (``seed``, split, *i*) and
    ``size`` is None. There, expressions with / are drawn so that the first operand of a product is a multiple of all
    its divisors; the other exact ones (4 * 3 / 6) do not occur.

    ``name`` goes into metric names: give another one to a second configuration in the same run.
    ``weights`` are the reward's (see ``envs.formats.PARTS``). ValueError for settings that make no sense.
    """

    operations: tuple[str, ...] = ("+",)
    digits: int = 1
    terms: int = 2
    word_problem_steps: int = 0
    format: Format = field(default_factory=Plain)
    system: str | None = None
    seed: int = 0
    weights: Mapping[str, float] = field(default_factory=lambda: {"accuracy": 1.0, "format": 0.2, "lenient": 0.0})
    name: str = "arithmetic"

    def __post_init__(self) -> None:
        # Hydra hands over lists; a single string would be taken apart into its letters, which is what "+-" wants too.
        object.__setattr__(self, "operations", tuple(self.operations))
        object.__setattr__(self, "weights", checked_weights(self.weights))
        unknown = [operation for operation in self.operations if operation not in OPERATIONS]
        if unknown or not self.operations or len(set(self.operations)) != len(self.operations):
            raise ValueError(
                f"arithmetic: operations is {list(self.operations)}; it must be one or more of {list(OPERATIONS)}, "
                "each at most once"
            )
        if self.digits < 1 or self.terms < 2 or self.digits * self.terms > MAX_DIGITS:
            raise ValueError(
                f"arithmetic: digits is {self.digits} and terms is {self.terms}; digits must be at least 1, terms at "
                f"least 2, and their product at most {MAX_DIGITS}"
            )
        if not 0 <= self.word_problem_steps <= MAX_STEPS:
            raise ValueError(
                f"arithmetic: word_problem_steps is {self.word_problem_steps}; it must be 0 (expressions) or "
                f"1 to {MAX_STEPS}"
            )
        if self.word_problem_steps and (self.operations, self.digits, self.terms) != (("+",), 1, 2):
            raise ValueError(
                "arithmetic: operations, digits and terms have no effect on word problems; leave them at their "
                "defaults ['+'], 1 and 2, or set word_problem_steps to 0"
            )
        if not self.name:
            raise ValueError("arithmetic: name is empty; it is needed for metric names")

    @property
    def max_reward(self) -> float:
        return best_reward(self.format, self.weights)

    def split(self, name: str) -> Split:
        check_split(name)
        if self.word_problem_steps:
            return GeneratedSplit(None, lambda index: self._drawn_word_problem(name, index))
        if _space(self.operations, self.digits, self.terms) <= MAX_ENUMERATED:
            expressions = _enumerated(self.operations, self.digits, self.terms, self.seed)[name]
            return GeneratedSplit(len(expressions), lambda index: self._problem(expressions[index]))
        return GeneratedSplit(None, lambda index: self._problem(self._drawn_expression(name, index)))

    def grade_text(self, problem: Problem, text: str, finish: Finish) -> Grade:
        """As a number, which the problem itself is not: copied, ``6 / 3`` would be read as a fraction, and right."""
        expression, _, _ = problem.meta["solution"].partition(" = ")
        if "/" in expression and not self.word_problem_steps:
            copied = r"(?<!\d)" + r"\s*".join(map(re.escape, expression.split())) + r"(?!\d)"
            text = re.sub(copied, " ", text)
        return grade_number(Answer(problem, text, finish), format=self.format, weights=self.weights)

    def gold(self, problem: Problem) -> str:
        return self.format.gold(problem.meta["solution"], problem.answer)

    def manifest(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "source": "generated",
            "operations": list(self.operations),
            "digits": self.digits,
            "terms": self.terms,
            "word_problem_steps": self.word_problem_steps,
            "seed": self.seed,
            "sizes": {name: self.split(name).size for name in SPLITS},
            "format": {"type": type(self.format).__name__, "instruction": self.format.instruction},
            "weights": dict(self.weights),
        }

    def _problem(self, expression: _Expression) -> Problem:
        answer = _value(expression)
        assert answer is not None  # only exact expressions get here
        text = _text(expression, " ")
        return Problem(
            id=f"arithmetic/{_text(expression, '')}",
            prompt=make_prompt(f"What is {text}?", self.format.instruction, self.system),
            answer=str(answer),
            meta={
                "operations": list(expression[1]),
                "digits": self.digits,
                "terms": self.terms,
                "solution": f"{text} = {answer}",
            },
        )

    def _drawn_expression(self, split: str, index: int) -> _Expression:
        rng = random.Random(f"arithmetic/{self.seed}/{split}/{index}")
        while True:
            expression = _draw(rng, self.operations, self.digits, self.terms)
            if split_of(_key(expression)) == split:
                return expression

    def _drawn_word_problem(self, split: str, index: int) -> Problem:
        rng = random.Random(f"arithmetic/words/{self.seed}/{split}/{index}")
        while True:
            drawn = word_problem(rng, self.word_problem_steps)
            if split_of(drawn.key) == split:
                break
        wording = hashlib.sha256(drawn.question.encode()).hexdigest()[:12]
        return Problem(
            id=f"arithmetic/words/{drawn.key}/{wording}",
            prompt=make_prompt(drawn.question, self.format.instruction, self.system),
            answer=str(drawn.answer),
            meta={
                "operations": list(drawn.operations),
                "steps": self.word_problem_steps,
                "solution": drawn.solution,
            },
        )


def _space(operations: tuple[str, ...], digits: int, terms: int) -> int:
    return (10**digits) ** terms * len(operations) ** (terms - 1)


@lru_cache(maxsize=32)
def _enumerated(operations: tuple[str, ...], digits: int, terms: int, seed: int) -> dict[str, list[_Expression]]:
    """Every exact ordered expression, by split, shuffled by the seed."""
    splits: dict[str, list[_Expression]] = {name: [] for name in SPLITS}
    for between in itertools.product(operations, repeat=terms - 1):
        for operands in itertools.product(range(10**digits), repeat=terms):
            expression = (operands, between)
            if _value(expression) is not None:
                splits[split_of(_key(expression))].append(expression)
    for name, expressions in splits.items():
        random.Random(f"arithmetic/{seed}/{name}").shuffle(expressions)
    return splits


def _draw(rng: random.Random, operations: tuple[str, ...], digits: int, terms: int) -> _Expression:
    """A random exact expression. Divisors have a random number of digits: a uniform one would leave quotients of 0
    and 1 only."""
    largest = 10**digits - 1
    between = tuple(rng.choice(operations) for _ in range(terms - 1))
    operands: list[int] = []
    first = 0  # where the current product begins
    divisor = 1  # the product of its divisors
    for place in range(terms):
        operation = between[place - 1] if place else "+"
        if operation in "+-":
            if place:
                operands[first] = divisor * rng.randint(0, largest // divisor)
            first, divisor = place, 1
            operands.append(0)  # drawn when the product's divisors are known
        elif operation == "*":
            operands.append(rng.randint(0, largest))
        else:
            number = rng.randint(1, min(10 ** rng.randint(1, digits) - 1, largest // divisor))
            divisor *= number
            operands.append(number)
    operands[first] = divisor * rng.randint(0, largest // divisor)
    return tuple(operands), between


def _products(expression: _Expression) -> list[tuple[str, list[tuple[str, int]]]]:
    """The expression as signed products: ``2 - 6 / 3`` is ``[("+", [("*", 2)]), ("-", [("*", 6), ("/", 3)])]``."""
    operands, between = expression
    products: list[tuple[str, list[tuple[str, int]]]] = []
    for operation, operand in zip(("+", *between), operands, strict=True):
        if operation in "+-":
            products.append((operation, [("*", operand)]))
        else:
            products[-1][1].append((operation, operand))
    return products


def _value(expression: _Expression) -> int | None:
    """The value with the usual precedence, from left to right; None where a division is not exact."""
    total = 0
    for sign, factors in _products(expression):
        product = 1
        for operation, operand in factors:
            if operation == "*":
                product *= operand
            elif operand == 0 or product % operand:
                return None
            else:
                product //= operand
        total += product if sign == "+" else -product
    return total


def _key(expression: _Expression) -> str:
    """The canonical problem: factors sorted within each product, then the signed products sorted."""
    return "".join(
        sorted(
            sign + "".join(sorted(f"{operation}{operand}" for operation, operand in factors))
            for sign, factors in _products(expression)
        )
    )


def _text(expression: _Expression, space: str) -> str:
    operands, between = expression
    rest = (f"{space}{operation}{space}{operand}" for operation, operand in zip(between, operands[1:], strict=True))
    return str(operands[0]) + "".join(rest)
