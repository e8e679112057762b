"""Knights and knaves (Smullyan 1978, "What is the name of this book?"): who tells the truth, by what each says.

Each person makes one statement, about one or two people. The roles are drawn first, each alike, then statements that
fit them, until no other roles fit all of them; that is found out by trying them all. The splits partition the puzzles
by a hash that doesn't know names, the order of the people, the order within "both", "at least one" and "if and only
if", or whether a statement is put with "not" and "if": a puzzle in such other words is in the same split, for every
seed and every configuration. Names aside, there are only some 40 puzzles of two people.

Left out: other kinds of logic puzzle; people who say several things, or nothing; part of the reward for part of the
roles, which guessing would earn. Guessing all of n roles is right once in 2^n.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from envs.base import SPLITS, GeneratedSplit, SingleTurnEnv, check_split, make_prompt, split_of
from envs.formats import R1, Format, best_reward, checked_weights
from rlreason.types import Finish, Grade, Problem, Split

MAX_PERSONS = 7
MAX_LENGTH = 500
"""Longest answer that is read, in characters; what is longer gives no answer."""

PARTS = ("accuracy", "format")
"""The parts of a grade, each in [0, 1]: ``accuracy`` (every role is right), ``format`` (the format's own score)."""

NAMES = (
    *("Ann", "Bob", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana", "Ida", "Jon", "Kim", "Leo", "Mia"),
    *("Nils", "Ola", "Pia", "Quinn", "Rosa", "Sam", "Tom", "Uma", "Vera", "Walt", "Xena", "Yann", "Zoe"),
)
_ROLES = {True: "knight", False: "knave"}
_BETWEEN = re.compile(r"[,;\n]|\band\b", re.ASCII)
_ROLE = re.compile(r"([a-z]+)(?: ?[:=] ?| is )(?:an? )?(knight|knave)", re.ASCII | re.IGNORECASE)

_STATEMENTS: Mapping[str, tuple[str, Callable[..., bool]]] = {
    "is": ("{0}", lambda a: a),
    "not": ("it is not true that {0}", lambda a: not a),
    "and": ("both of these are true: {0}, and {1}", lambda a, b: a and b),
    "or": ("at least one of these is true: {0}, or {1}", lambda a, b: a or b),
    "if": ("if {0}, then {1}", lambda a, b: not a or b),
    "iff": ("{0} if and only if {1}", lambda a, b: a == b),
}
"""The kinds of statement: their words, and when they are true, by what they are made of."""


def tagged(
    instruction: str = (
        "Put the reasoning in <think> </think> and the role of everybody in <answer> </answer> tags, like this: "
        "<think> reasoning process here </think> <answer> name: knight, name: knave </answer>"
    ),
) -> R1:
    """R1's format for roles."""
    return R1(instruction)


@dataclass(frozen=True)
class Statement:
    """What a person says: a kind of ``_STATEMENTS``, and the (person, is a knight) pairs that it is made of. People are
    numbers from 0."""

    kind: str
    about: tuple[tuple[int, bool], ...]

    def holds(self, roles: Sequence[bool]) -> bool:
        """Whether it is true; ``roles`` are True for knights."""
        return _STATEMENTS[self.kind][1](*(roles[person] == knight for person, knight in self.about))

    def words(self, speaker: int, names: Sequence[str]) -> str:
        said = (
            f"{'I am' if person == speaker else f'{names[person]} is'} a {_ROLES[knight]}"
            for person, knight in self.about
        )
        return _STATEMENTS[self.kind][0].format(*said)


@dataclass(frozen=True)
class Logic(SingleTurnEnv):
    """Puzzles of as many people as one of ``persons`` says, drawn alike; the more, the harder. Problem *i* is a
    function of (``seed``, split, *i*), and ``size`` is None.

    An answer gives each person's role once, in any order, with commas, semicolons, "and" or line breaks in between:
    ``Ann: knight, Bob: knave``. Case does not matter, ``Ann is a knight`` and ``Ann = knight`` are read alike, and a
    full stop may end it.

    ``name`` goes into metric names: give another one to a second configuration in the same run. ``weights`` are the
    reward's, of ``PARTS``. Raises ValueError for settings that make no sense, a format that can't hold words among
    them.
    """

    persons: Sequence[int] = (2, 3)
    format: Format = field(default_factory=tagged)
    system: str | None = None
    seed: int = 0
    weights: Mapping[str, float] = field(default_factory=lambda: {"accuracy": 1.0, "format": 0.1})
    name: str = "logic"

    def __post_init__(self) -> None:
        if not isinstance(self.persons, list | tuple) or not self.persons:
            raise ValueError(f"logic: persons is {self.persons!r}; it must be a list of numbers, such as [2, 3]")
        object.__setattr__(self, "persons", tuple(self.persons))  # Hydra hands over lists
        object.__setattr__(self, "weights", checked_weights(self.weights, PARTS))
        if not all(type(count) is int and 2 <= count <= MAX_PERSONS for count in self.persons):
            raise ValueError(
                f"logic: persons is {list(self.persons)}; it must be whole numbers from 2 to {MAX_PERSONS}"
            )
        if not self.name:
            raise ValueError("logic: name is empty; it is needed for metric names")
        if self.format.extract(self.format.gold("", "Ann: knight, Bob: knave")) != "Ann: knight, Bob: knave":
            raise ValueError(
                f"logic: the format {type(self.format).__name__} can't hold roles; use "
                "env.format._target_=envs.logic.tagged (or envs.formats.Boxed)"
            )

    @property
    def max_reward(self) -> float:
        return best_reward(self.format, self.weights)

    def split(self, name: str) -> Split:
        check_split(name)
        return GeneratedSplit(None, lambda index: self._drawn(name, index))

    def grade_text(self, problem: Problem, text: str, finish: Finish) -> Grade:
        roles = _read(self.format.extract(text) or "", problem.meta["names"])
        parts = {"accuracy": float(roles == problem.answer), "format": self.format.score(text) or 0.0}
        reward = sum(self.weights.get(part, 0.0) * value for part, value in parts.items())
        return Grade(reward, roles == problem.answer, "unparseable" if roles is None else "ok", parts, roles)

    def gold(self, problem: Problem) -> str:
        return self.format.gold(problem.meta["solution"], problem.answer)

    def manifest(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "source": "generated",
            "persons": list(self.persons),
            "seed": self.seed,
            "sizes": {name: self.split(name).size for name in SPLITS},
            "format": {"type": type(self.format).__name__, "instruction": self.format.instruction},
            "weights": dict(self.weights),
        }

    def _drawn(self, split: str, index: int) -> Problem:
        rng = random.Random(f"logic/{self.seed}/{split}/{index}")
        count = rng.choice(self.persons)
        while True:
            roles = tuple(rng.random() < 0.5 for _ in range(count))
            statements = [_fitting(rng, speaker, roles) for speaker in range(count)]
            if split_of(_key(statements)) == split and solutions(statements) == [roles]:
                return self._problem(sorted(rng.sample(NAMES, count)), statements, roles)

    def _problem(self, names: Sequence[str], statements: Sequence[Statement], roles: Sequence[bool]) -> Problem:
        said = [statement.words(speaker, names) for speaker, statement in enumerate(statements)]
        question = "\n".join(
            [
                "Knights always tell the truth, and knaves always lie. Each of these people is a knight or a knave.",
                *(f"{name}: {words[0].upper()}{words[1:]}." for name, words in zip(names, said, strict=True)),
                "Who is a knight, and who is a knave?",
            ]
        )
        solution = [
            f"{name} is a {_ROLES[role]}: it is {str(role).lower()} that {words.replace('I am', f'{name} is')}."
            for name, role, words in zip(names, roles, said, strict=True)
        ]
        return Problem(
            id=f"logic/{len(names)}/{hashlib.sha256(question.encode()).hexdigest()[:12]}",
            prompt=make_prompt(question, self.format.instruction, self.system),
            answer=_told(names, roles),
            meta={"persons": len(names), "names": list(names), "solution": "\n".join(solution)},
        )


def solutions(statements: Sequence[Statement]) -> list[tuple[bool, ...]]:
    """All roles that fit: knights' statements are true, knaves' are not."""
    return [
        roles
        for roles in itertools.product((True, False), repeat=len(statements))
        if all(statement.holds(roles) == role for statement, role in zip(statements, roles, strict=True))
    ]


def _fitting(rng: random.Random, speaker: int, roles: Sequence[bool]) -> Statement:
    """A statement that ``speaker`` can make; not one about the speaker alone, which says nothing or can't be said."""
    others = [person for person in range(len(roles)) if person != speaker]
    while True:
        kind = rng.choice([*_STATEMENTS])
        people = [rng.choice(others)] if kind in ("is", "not") else rng.sample(range(len(roles)), 2)
        statement = Statement(kind, tuple((person, rng.random() < 0.5) for person in people))
        if statement.holds(roles) == roles[speaker]:
            return statement


def _key(statements: Sequence[Statement]) -> str:
    """The same for puzzles that are the same in other words (see above), and at times for others: each statement is
    described by its kind, and by whom it is about: the speaker or somebody who makes such and such a statement."""
    plain = [_plain(statement) for statement in statements]
    outlines = [(kind, sorted(knight for _, knight in about)) for kind, about in plain]
    return str(
        sorted(
            (kind, sorted((knight, person == speaker, outlines[person]) for person, knight in about))
            for speaker, (kind, about) in enumerate(plain)
        )
    )


def _plain(statement: Statement) -> tuple[str, list[tuple[int, bool]]]:
    """A statement without "not" and "if", and with both sides alike of "if and only if"; the order of the sides no
    longer matters."""
    about = [*statement.about]
    (person, knight), others = about[0], about[1:]
    match statement.kind:
        case "not":
            return "is", [(person, not knight)]
        case "if":
            return "or", [(person, not knight), *others]
        case "iff":
            same = knight == others[0][1]
            return "iff", [(person, same), (others[0][0], same)]
        case kind:
            return kind, about


def _told(names: Sequence[str], roles: Sequence[bool]) -> str:
    return ", ".join(f"{name}: {_ROLES[role]}" for name, role in zip(names, roles, strict=True))


def _read(answer: str, names: Sequence[str]) -> str | None:
    """What the answer says, as ``_told`` would; None unless it gives each of ``names`` one role, and nobody else."""
    if len(answer) > MAX_LENGTH:
        return None
    pieces = [" ".join(piece.split()) for piece in _BETWEEN.split(answer.strip().removesuffix("."))]
    matches = [_ROLE.fullmatch(piece) for piece in pieces if piece]
    found = {match[1].lower(): match[2].lower() == "knight" for match in matches if match}
    if not len(found) == len(matches) == len(names) or any(name.lower() not in found for name in names):
        return None
    return _told(names, [found[name.lower()] for name in names])
