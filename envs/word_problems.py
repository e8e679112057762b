"""Generated word problems of a few steps, in the manner of GSM8K's easiest ones.

One person owns a number of things, and each step changes that number by +, -, * or an exact division. Every
intermediate value is a positive integer of at most ``MAX_VALUE`` (plus one addition).

Left out: several quantities at once, comparisons, fractions, money and time. These problems are for mechanics and for
curricula; a number reached on them says nothing about GSM8K.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

MAX_STEPS = 4
MAX_VALUE = 400
"""A product never exceeds this; a sum may, by one addend of at most ``MAX_ADDEND`` a step."""
MAX_ADDEND = 50

_NAMES = ("Mia", "Ben", "Ada", "Leo", "Zoe", "Sam", "Ivy", "Max", "Nora", "Omar", "Lena", "Raj")
_THINGS = ("apples", "pencils", "marbles", "books", "coins", "stickers", "cards", "shells", "beads", "stamps")
_BOXES = ("bags", "boxes", "jars", "baskets")
_SENTENCES = {
    "+": (
        "{friend} gives {name} {n} more {things}.",
        "{name} buys {n} more {things}.",
        "Then {name} finds another {n} {things}.",
        "{name} gets {n} {things} as a present.",
    ),
    "-": (
        "{name} gives {n} {things} to {friend}.",
        "{name} loses {n} of the {things}.",
        "Then {name} sells {n} {things}.",
        "{friend} borrows {n} of the {things}.",
    ),
    "*": (
        "After some more collecting, {name} has {n} times as many {things} as before.",
        "{friend} brings so many that {name} now has {n} times as many {things}.",
    ),
    "/": (
        "{name} splits the {things} equally into {n} {boxes} and keeps only one of the {boxes}.",
        "{name} shares all the {things} equally among {n} people, {name} being one of them.",
    ),
}
_QUESTIONS = ("How many {things} does {name} have now?", "How many {things} does {name} have in the end?")


@dataclass(frozen=True)
class WordProblem:
    """``solution`` is worked line by line and ends with the answer's line; ``key`` is the canonical problem: its
    operations and numbers, steps that commute in sorted order, no names (``+12+5|*3|-2``)."""

    question: str
    solution: str
    answer: int
    key: str
    operations: tuple[str, ...]


def word_problem(rng: random.Random, steps: int) -> WordProblem:
    """Draw a problem of ``steps`` steps, 1 to ``MAX_STEPS``; a pure function of the generator's state."""
    if not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"a word problem has 1 to {MAX_STEPS} steps, not {steps}")
    name, friend = rng.sample(_NAMES, 2)
    words = {"name": name, "friend": friend, "things": rng.choice(_THINGS), "boxes": rng.choice(_BOXES)}
    start = value = rng.randint(2, 60)
    sentences: list[str] = []
    lines = [f"{name} starts with {start} {words['things']}."]
    moves: list[tuple[str, int]] = []
    for step in range(steps):
        operation, number = _draw_move(rng, value)
        result = _apply(value, operation, number)
        if step == 0 and operation == "*" and rng.random() < 0.5:  # the same product told as a start
            sentences.append(f"{name} has {number} {words['boxes']} with {start} {words['things']} in each.")
            lines = []
        else:
            if step == 0:
                sentences.append(f"{name} has {start} {words['things']}.")
            sentences.append(rng.choice(_SENTENCES[operation]).format(n=number, **words))
        lines.append(f"{value} {operation} {number} = {result}")
        moves.append((operation, number))
        value = result
    sentences.append(rng.choice(_QUESTIONS).format(**words))
    return WordProblem(
        question=" ".join(sentences),
        solution="\n".join(lines),
        answer=value,
        key=_key(start, moves),
        operations=tuple(operation for operation, _ in moves),
    )


def _draw_move(rng: random.Random, value: int) -> tuple[str, int]:
    divisors = [divisor for divisor in range(2, 10) if value % divisor == 0]
    operations = ["+"]
    if value >= 3:  # so that something is left
        operations.append("-")
    if value * 2 <= MAX_VALUE:
        operations.append("*")
    if divisors:
        operations.append("/")
    operation = rng.choice(operations)
    if operation == "+":
        return operation, rng.randint(2, MAX_ADDEND)
    if operation == "-":
        return operation, rng.randint(2, value - 1)
    if operation == "*":
        return operation, rng.randint(2, min(9, MAX_VALUE // value))
    return operation, rng.choice(divisors)


def _apply(value: int, operation: str, number: int) -> int:
    if operation == "+":
        return value + number
    if operation == "-":
        return value - number
    return value * number if operation == "*" else value // number


def _key(start: int, moves: list[tuple[str, int]]) -> str:
    """Runs of + and - commute, and so do runs of * and /; the start belongs to the first run."""
    runs: list[list[str]] = []
    additive: bool | None = None
    for operation, number in moves:
        if (operation in "+-") != additive:
            additive = operation in "+-"
            runs.append([] if runs else [f"+{start}" if additive else f"*{start}"])
        runs[-1].append(f"{operation}{number}")
    return "|".join("".join(sorted(run)) for run in runs)
