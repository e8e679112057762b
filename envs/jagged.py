"""What models that do harder things stumble over: which of 9.11 and 9.9 is larger, and arithmetic in one breath.

Asked with and without working, the same problems show what the tokens in between are worth. The splits of sums and
products are those of ``envs.arithmetic``; those of comparisons partition the pairs, whichever number is named first.

Left out: which of two numbers is smaller, negative ones, several comparisons at once. Division: ``84/7`` is a number
that equals the right answer, so the question would be one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from envs.arithmetic import Arithmetic
from envs.base import SPLITS, Answer, GeneratedSplit, SingleTurnEnv, check_split, make_prompt, split_of
from envs.formats import R1, Format, best_reward, checked_weights, grade_number
from envs.verify.numbers import parse_number
from envs.working import steps
from rlreason.types import Finish, Grade, Problem, Split

TASKS = ("compare", "arithmetic")
OPERATIONS = ("+", "-", "*")

MAX_DIGITS = 6
"""Of an operand; the working of a longer product fills pages."""

MAX_DECIMALS = 6
MAX_WHOLE = 1000

_NUMBER = re.compile(r"\s?[-\u2212]?(?:0|[1-9][0-9]{0,2}(?:,[0-9]{3})++|[1-9][0-9]*+)(?:\.[0-9]++)?\.?\s*+")


@dataclass(frozen=True)
class AtOnce:
    """The format of an answer without working: the number in its usual form, and nothing else but a full stop and white
    space after it, and one white space before it.

    Leading zeros, fractions and lines of white space are refused: tokens before the answer are tokens to think.
    """

    instruction: str = "Answer at once: write the number and nothing else."

    def extract(self, text: str) -> str | None:
        return text.strip() if _NUMBER.fullmatch(text) and parse_number(text) is not None else None

    def score(self, text: str) -> float | None:
        """1.0 if the text is a number, else 0."""
        return float(self.extract(text) is not None)

    def gold(self, reasoning: str, answer: str) -> str:
        """The answer alone."""
        return answer


@dataclass(frozen=True)
class Jagged(SingleTurnEnv):
    """Comparisons and arithmetic, which take turns if both are among ``tasks``, graded by exact value.

    - ``compare``: the larger of two numbers with the same whole part (1 to ``max_whole``) and different numbers of
      decimals (1 to ``max_decimals``, none of them ending in 0), in either order. In a trap the decimals read as a
      whole number mislead, as in version numbers and dates: 9.11 looks larger than 9.9. ``trap_share`` is the chance
      of one. At 1 the shorter number is always right and at 0 hardly ever, so that the length gives the answer away.
    - ``arithmetic``: the problems of ``envs.arithmetic`` with two operands, ``operations`` and ``digits``.

    With ``working`` the answer is given in ``format``, whose instruction asks for reasoning (``Plain`` has none).
    Without it the answer is ``AtOnce``: a text with anything besides the number is incorrect, however long, and
    ``format`` must be left as it is. The ``lenient`` part overlooks that.

    With ``arithmetic`` alone the splits are as large as those of ``envs.arithmetic``; else problem *i* is a function of
    (``seed``, split, *i*), and ``size`` is None. Raises ValueError for settings that make no sense.
    """

    tasks: tuple[str, ...] = TASKS
    working: bool = True
    max_whole: int = 20
    max_decimals: int = 2
    trap_share: float = 0.5
    operations: tuple[str, ...] = ("+", "*")
    digits: int = 2
    format: Format = field(default_factory=R1)
    system: str | None = None
    seed: int = 0
    weights: Mapping[str, float] = field(default_factory=lambda: {"accuracy": 1.0, "format": 0.2, "lenient": 0.0})
    name: str = "jagged"

    def __post_init__(self) -> None:
        for key, known in (("tasks", TASKS), ("operations", OPERATIONS)):
            chosen = tuple(getattr(self, key))
            object.__setattr__(self, key, chosen)
            if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= set(known):
                raise ValueError(
                    f"jagged: {key} is {list(chosen)}; it must be one or more of {list(known)}, each at most once"
                )
        object.__setattr__(self, "weights", checked_weights(self.weights))
        if not 1 <= self.max_whole <= MAX_WHOLE:
            raise ValueError(f"jagged: max_whole is {self.max_whole}; it must lie between 1 and {MAX_WHOLE}")
        if not 2 <= self.max_decimals <= MAX_DECIMALS:
            raise ValueError(f"jagged: max_decimals is {self.max_decimals}; it must lie between 2 and {MAX_DECIMALS}")
        if not 0 <= self.trap_share <= 1:
            raise ValueError(f"jagged: trap_share is {self.trap_share}; it must lie between 0 and 1")
        if not 1 <= self.digits <= MAX_DIGITS:
            raise ValueError(f"jagged: digits is {self.digits}; it must lie between 1 and {MAX_DIGITS}")
        if not self.working and self.format != R1():
            raise ValueError(
                f"jagged: format is {self.format}, which has no effect with working=false, where the answer is a "
                "number alone; leave it out, or use working=true"
            )
        if not self.name:
            raise ValueError("jagged: name is empty; it is needed for metric names")

    @property
    def max_reward(self) -> float:
        return best_reward(self._form, self.weights)

    def split(self, name: str) -> Split:
        check_split(name)
        arithmetic = Arithmetic(operations=self.operations, digits=self.digits, seed=self.seed).split(name)

        def make(index: int) -> Problem:
            turn, which = divmod(index, len(self.tasks))
            if self.tasks[which] == "compare":
                return self._comparison(name, index)
            return self._arithmetic(arithmetic[turn if arithmetic.size is None else turn % arithmetic.size])

        return GeneratedSplit(None if "compare" in self.tasks else arithmetic.size, make)

    def grade_text(self, problem: Problem, text: str, finish: Finish) -> Grade:
        grade = grade_number(Answer(problem, text, finish), format=self._form, weights=self.weights)
        if self.working or self._form.extract(text) is not None:
            return grade
        # A copy of the prompt, which is no answer elsewhere and therefore overlooked, is thinking time here.
        parts = {**grade.parts, "accuracy": 0.0}
        reward = sum(self.weights.get(part, 0.0) * value for part, value in parts.items())
        return replace(grade, reward=reward, correct=False, status="unparseable", parts=parts, answer=None)

    def gold(self, problem: Problem) -> str:
        return self._form.gold(problem.meta["solution"], problem.answer)

    def manifest(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "source": "generated",
            "tasks": list(self.tasks),
            "working": self.working,
            "max_whole": self.max_whole,
            "max_decimals": self.max_decimals,
            "trap_share": self.trap_share,
            "operations": list(self.operations),
            "digits": self.digits,
            "seed": self.seed,
            "sizes": {name: self.split(name).size for name in SPLITS},
            "format": {"type": type(self._form).__name__, "instruction": self._form.instruction},
            "weights": dict(self.weights),
        }

    @property
    def _form(self) -> Format:
        return self.format if self.working else AtOnce()

    def _arithmetic(self, posed: Problem) -> Problem:
        """A problem of ``envs.arithmetic`` as one of ours."""
        expression = posed.meta["solution"].partition(" = ")[0]
        return Problem(
            id=f"jagged/{posed.id}",
            prompt=make_prompt(f"What is {expression}?", self._form.instruction, self.system),
            answer=posed.answer,
            meta={
                "task": "arithmetic",
                "operations": posed.meta["operations"],
                "digits": self.digits,
                "solution": "\n".join(step.line(step.result) for step in steps(expression)),
            },
        )

    def _comparison(self, split: str, index: int) -> Problem:
        rng = random.Random(f"jagged/{self.seed}/{split}/{index}")
        trap = rng.random() < self.trap_share
        while True:
            shorter, longer = _decimals(rng, self.max_decimals)
            whole = rng.randint(1, self.max_whole)
            smaller, larger = sorted((shorter, longer), key=lambda decimals: f"{decimals:0<{MAX_DECIMALS}}")
            is_trap = int(smaller) > int(larger)
            if is_trap == trap and split_of(f"jagged/{whole}.{smaller}/{whole}.{larger}") == split:
                break
        named = [f"{whole}.{shorter}", f"{whole}.{longer}"]
        rng.shuffle(named)
        return Problem(
            id=f"jagged/compare/{'/'.join(named)}",
            prompt=make_prompt(
                f"Which number is larger, {named[0]} or {named[1]}?", self._form.instruction, self.system
            ),
            answer=f"{whole}.{larger}",
            meta={
                "task": "compare",
                "trap": trap,
                "decimals": [len(shorter), len(longer)],
                "solution": _compared(whole, smaller, larger),
            },
        )


def _decimals(rng: random.Random, most: int) -> tuple[str, str]:
    """The decimals of two numbers, those of the second more; neither ends in 0."""
    lengths = sorted(rng.sample(range(1, most + 1), 2))
    first, second = (f"{10 * rng.randrange(10 ** (n - 1)) + rng.randint(1, 9):0{n}}" for n in lengths)
    return first, second


def _compared(whole: int, smaller: str, larger: str) -> str:
    """Filled up with zeros, the decimals are compared as whole numbers."""
    places = max(len(smaller), len(larger))
    low, high = (decimals.ljust(places, "0") for decimals in (smaller, larger))
    return (
        f"Both have {whole} before the point. With {places} decimals they are {whole}.{low} and {whole}.{high}.\n"
        f"{low} is less than {high}, so {whole}.{larger} is larger."
    )
