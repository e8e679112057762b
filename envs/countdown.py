"""Countdown: make a target from a few numbers with +, -, * and / (TinyZero's task, https://github.com/Jiayi-Pan/TinyZero).

Every problem has a solution, by construction, whose intermediate results are positive whole numbers, as in the
television game. Whatever reaches the target exactly is right, by way of fractions and negative numbers too. The splits
partition the puzzles by a hash of the sorted numbers and the target: a puzzle is in one split only, in whatever order
its numbers are asked, for every seed and every configuration.

An answer is read by a small grammar and never run. Read are whole numbers in ASCII digits, the four operations and
parentheses, of at most ``MAX_LENGTH`` characters; ``x``, ``×``, ``·``, ``\\times`` and ``\\cdot`` for ``*``, ``÷`` and
``\\div`` for ``/``, ``−`` (U+2212) for ``-``; and ``= 24`` after the expression, if 24 is the target. Nothing is gained
by these: the numbers must be the given ones all the same.

Left out: signs before a number (``-3 + 8``), implied products (``2(3 + 4)``), ``\\frac``, and the other operations that
some versions of the game have; how many solutions a puzzle has.
"""

from __future__ import annotations

import ast
import itertools
import operator
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from envs.base import SPLITS, GeneratedSplit, SingleTurnEnv, check_split, make_prompt, split_of
from envs.formats import R1, Format, best_reward, checked_weights
from rlreason.types import Finish, Grade, Problem, Split

OPERATIONS = ("+", "-", "*", "/")
PARTS = ("accuracy", "format")
"""The parts of a grade, each in [0, 1]: ``accuracy`` (the expression is right), ``format`` (the format's own score)."""

MAX_COUNT = 6
MAX_NUMBER = 1_000_000
MAX_LENGTH = 200
"""Longest answer that is read, in characters; what is longer gives no answer."""

TRIED = 20_000
"""Draws in which a configuration must give a problem of each split and each count of numbers."""

_SPELLINGS = {"x": "*", "×": "*", "·": "*", "÷": "/", "−": "-", "\\times": "*", "\\cdot": "*", "\\div": "/"}
_SPELLING = re.compile("|".join(map(re.escape, _SPELLINGS)))
_READABLE = re.compile(r"[0-9+\-*/() ]+")
_SIGNS: Mapping[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_APPLY: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}


def tagged(
    instruction: str = (
        "Put the reasoning in <think> </think> and the expression in <answer> </answer> tags, like this: "
        "<think> reasoning process here </think> <answer> expression here </answer>"
    ),
) -> R1:
    """R1's format for an expression."""
    return R1(instruction)


@dataclass(frozen=True)
class Puzzle:
    """The numbers, sorted, and the target; ``str`` of it is the canonical problem. ``solution`` is one of perhaps
    several, so it does not tell puzzles apart."""

    numbers: tuple[int, ...]
    target: int
    solution: str = field(compare=False)

    def __str__(self) -> str:
        return f"{' '.join(map(str, self.numbers))} = {self.target}"


@dataclass(frozen=True)
class Countdown(SingleTurnEnv):
    """Puzzles of as many numbers as one of ``count`` says, drawn alike from the range ``numbers``, whose target lies in
    the range ``target`` (both ends included) and is none of the numbers. ``use_all``: each number is to be used exactly
    once, else at most once. ``operations`` are those that an answer may use, and that solutions do.

    More numbers, larger ones and a larger target make a puzzle harder; so do small numbers for a large target, which
    need products (of the defaults' solutions, nine operations in ten add or subtract). Problem *i* is a function of
    (``seed``, split, *i*), and ``size`` is None; a configuration with few puzzles repeats them.

    ``name`` goes into metric names: give another one to a second configuration in the same run. ``weights`` are the
    reward's, of ``PARTS``. Raises ValueError for settings that make no sense, a format that can't hold an expression
    and a target that is hardly ever met among them.
    """

    count: Sequence[int] = (3, 4)
    numbers: Sequence[int] = (1, 99)
    target: Sequence[int] = (10, 99)
    operations: Sequence[str] = OPERATIONS
    use_all: bool = True
    format: Format = field(default_factory=tagged)
    system: str | None = None
    seed: int = 0
    weights: Mapping[str, float] = field(default_factory=lambda: {"accuracy": 1.0, "format": 0.1})
    name: str = "countdown"

    def __post_init__(self) -> None:
        for key in ("count", "numbers", "target"):
            value = getattr(self, key)
            if not isinstance(value, list | tuple) or not all(type(item) is int for item in value):
                raise ValueError(f"countdown: {key} is {value!r}; it must be a list of whole numbers, such as [3, 4]")
            object.__setattr__(self, key, tuple(value))  # Hydra hands over lists
        object.__setattr__(self, "operations", tuple(self.operations))
        object.__setattr__(self, "weights", checked_weights(self.weights, PARTS))
        if not self.count or not all(2 <= count <= MAX_COUNT for count in self.count):
            raise ValueError(
                f"countdown: count is {list(self.count)}; it must be one or more numbers from 2 to {MAX_COUNT}"
            )
        for key in ("numbers", "target"):
            ends = getattr(self, key)
            if len(ends) != 2 or not 1 <= ends[0] <= ends[1] <= MAX_NUMBER:
                raise ValueError(
                    f"countdown: {key} is {list(ends)}; it must be the first and the last number of a range within 1 "
                    f"to {MAX_NUMBER}"
                )
        if not self.operations or len({*self.operations} & {*OPERATIONS}) < len(self.operations):
            raise ValueError(
                f"countdown: operations is {list(self.operations)}; it must be one or more of {list(OPERATIONS)}, "
                "each at most once"
            )
        if not self.name:
            raise ValueError("countdown: name is empty; it is needed for metric names")
        if self.format.extract(self.format.gold("", "(1 + 2) * 3")) != "(1 + 2) * 3":
            raise ValueError(
                f"countdown: the format {type(self.format).__name__} can't hold an expression; use "
                "env.format._target_=envs.countdown.tagged (or envs.formats.Boxed)"
            )
        for split, count in itertools.product(SPLITS, self.count):
            rng = random.Random(f"countdown/{self.seed}/{split}")
            if not any(itertools.islice(self._draws(rng, split, count), TRIED)):
                raise ValueError(
                    f"countdown: {TRIED} draws of {count} numbers gave no problem of the {split} split whose target "
                    f"lies within {list(self.target)}; widen env.target or env.numbers, or add to env.operations"
                )

    @property
    def max_reward(self) -> float:
        return best_reward(self.format, self.weights)

    def split(self, name: str) -> Split:
        check_split(name)
        return GeneratedSplit(None, lambda index: self._drawn(name, index))

    def grade_text(self, problem: Problem, text: str, finish: Finish) -> Grade:
        """``Grade.answer`` is the expression with the terms of its sums and products sorted, parentheses where needed:
        ``3 * (1 + 2)`` and ``(2 + 1) * 3`` are one answer."""
        puzzle: Puzzle = problem.answer
        term = _read(self.format.extract(text) or "", puzzle.target)
        right = term is not None and self._solves(term, puzzle)
        parts = {"accuracy": float(right), "format": self.format.score(text) or 0.0}
        reward = sum(self.weights.get(part, 0.0) * value for part, value in parts.items())
        return Grade(reward, right, "unparseable" if term is None else "ok", parts, None if term is None else term.text)

    def gold(self, problem: Problem) -> str:
        puzzle: Puzzle = problem.answer
        return self.format.gold(f"{puzzle.solution} = {puzzle.target}", puzzle.solution)

    def manifest(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "source": "generated",
            "count": list(self.count),
            "numbers": list(self.numbers),
            "target": list(self.target),
            "operations": list(self.operations),
            "use_all": self.use_all,
            "seed": self.seed,
            "format": {"type": type(self.format).__name__, "instruction": self.format.instruction},
            "weights": dict(self.weights),
        }

    def _solves(self, term: _Term, puzzle: Puzzle) -> bool:
        used, given = Counter(term.numbers), Counter(puzzle.numbers)
        allowed = term.signs <= {*self.operations} and (used == given if self.use_all else used <= given)
        return allowed and term.value == puzzle.target

    def _drawn(self, split: str, index: int) -> Problem:
        rng = random.Random(f"countdown/{self.seed}/{split}/{index}")
        count = rng.choice(self.count)  # once: where targets are met more often would be drawn more often
        numbers, puzzle = next(filter(None, self._draws(rng, split, count)))
        solution = ast.unparse(ast.parse(puzzle.solution, mode="eval"))  # with no more parentheses than it needs
        often = "exactly once" if self.use_all else "at most once"
        question = (
            f"Make {puzzle.target} from the numbers {_listed(numbers)} with {_listed(self.operations)}. "
            f"Use each number {often}. Parentheses are allowed."
        )
        return Problem(
            id=f"countdown/{','.join(map(str, numbers))}={puzzle.target}",
            prompt=make_prompt(question, self.format.instruction, self.system),
            answer=replace(puzzle, solution=solution),
            meta={"numbers": numbers, "target": puzzle.target, "solution": solution},
        )

    def _draws(self, rng: random.Random, split: str, count: int) -> Iterator[tuple[list[int], Puzzle] | None]:
        """Attempts without end: the numbers as they are asked, and the puzzle. None where the target came out wrong or
        the puzzle is another split's."""
        while True:
            numbers = [rng.randint(*self.numbers) for _ in range(count)]
            target, solution = _combined(rng, numbers, self.operations) or (0, "")
            puzzle = Puzzle(tuple(sorted(numbers)), target, solution)
            met = self.target[0] <= target <= self.target[1] and target not in numbers
            yield (numbers, puzzle) if met and split_of(str(puzzle)) == split else None


@dataclass(frozen=True)
class _Term:
    """An expression: its value, the numbers and operations in it, and its text. A sum is what is added (``ahead``) and
    subtracted (``behind``), a product what is multiplied and divided by; a number is neither."""

    value: Fraction
    numbers: tuple[int, ...]
    signs: frozenset[str] = frozenset()
    kind: str = "number"
    ahead: tuple[_Term, ...] = ()
    behind: tuple[_Term, ...] = ()

    @property
    def text(self) -> str:
        if self.kind == "number":
            return str(self.value)
        add, subtract = ("+", "-") if self.kind == "sum" else ("*", "/")
        ahead, behind = (sorted(self._inner(term) for term in terms) for terms in (self.ahead, self.behind))
        return f" {subtract} ".join([f" {add} ".join(ahead), *behind])

    def _inner(self, term: _Term) -> str:
        return f"({term.text})" if self.kind == "product" and term.kind == "sum" else term.text

    def sides(self, kind: str) -> tuple[tuple[_Term, ...], tuple[_Term, ...]]:
        return (self.ahead, self.behind) if self.kind == kind else ((self,), ())


def _read(answer: str, target: int) -> _Term | None:
    """What the answer says; None if it can't be read, divides by 0 or claims to be another number than the target."""
    if len(answer) > MAX_LENGTH:
        return None
    expression, equals, claimed = answer.partition("=")
    expression = " ".join(_SPELLING.sub(lambda found: _SPELLINGS[found[0]], expression).split())
    if not _READABLE.fullmatch(expression) or (equals and claimed.strip() != str(target)):
        return None
    try:
        return _evaluated(ast.parse(expression, mode="eval").body)
    except (SyntaxError, MemoryError, ZeroDivisionError):  # MemoryError: more parentheses than Python's parser takes
        return None


def _evaluated(node: ast.expr) -> _Term | None:
    match node:
        case ast.Constant(value=int(number)):
            return _Term(Fraction(number), (number,))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _SIGNS:
            a, b = _evaluated(left), _evaluated(right)
            return None if a is None or b is None else _joined(a, _SIGNS[type(op)], b)
        case _:
            return None


def _joined(a: _Term, sign: str, b: _Term) -> _Term:
    """Raises ZeroDivisionError."""
    kind = "sum" if sign in "+-" else "product"
    (ahead, behind), (to_ahead, to_behind) = a.sides(kind), b.sides(kind)
    if sign in "-/":
        to_ahead, to_behind = to_behind, to_ahead
    return _Term(
        _APPLY[sign](a.value, b.value),
        a.numbers + b.numbers,
        a.signs | b.signs | {sign},
        kind,
        ahead + to_ahead,
        behind + to_behind,
    )


def _combined(rng: random.Random, numbers: Sequence[int], operations: Sequence[str]) -> tuple[int, str] | None:
    """A random expression of all the numbers and its value; None if a result on the way is no positive whole number."""
    terms = [(number, str(number)) for number in numbers]
    while len(terms) > 1:
        (a, left), (b, right) = (terms.pop(rng.randrange(len(terms))) for _ in range(2))
        operation = rng.choice(operations)
        if (operation == "-" and a <= b) or (operation == "/" and a % b):
            return None
        value = a // b if operation == "/" else _APPLY[operation](a, b)
        terms.append((value, f"({left} {operation} {right})"))
    return terms[0]


def _listed(items: Sequence[object]) -> str:
    *others, last = map(str, items)
    return f"{', '.join(others)} and {last}" if others else last
