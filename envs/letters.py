"""Tasks about single characters, which a model that reads tokens doesn't see: spelling, counting a letter, every n-th
letter, writing backwards, counting dots.

Each is easy once the word has been spelt out (tokens to think), and the gold completions do that. The splits partition
the words, and the rows of dots, by a hash: a word is in one split only, whatever is asked about it, for every seed and
every configuration.

Left out: capitals, accents and whole sentences; rows of other characters.
"""

from __future__ import annotations

import itertools
import random
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from envs.base import SPLITS, Answer, GeneratedSplit, SingleTurnEnv, check_split, make_prompt, split_of
from envs.formats import R1, Format, best_reward, checked_weights, grade_answers, grade_number
from envs.verify import Item, Verdict
from envs.words import ENGLISH, made_up
from rlreason.types import Finish, Grade, Problem, Split

TASKS = ("spell", "count_letter", "nth_letters", "reverse", "count_dots")
NUMERIC = ("count_letter", "count_dots")
"""The tasks whose answers are numbers; those of the others are letters."""

WORDS = ("english", "made_up")
MAX_LENGTH = 20
MAX_DOTS = 200

_LETTER = re.compile(r"[A-Za-z]")
_WORD = re.compile(r"[A-Za-z]++")
_SPELT = re.compile(r"[A-Za-z](?:(?:\s*+[-,]\s*+|\s++)[A-Za-z])++")
_AROUND = "\"'`*."
_HYPHENATED = re.compile(r"[A-Za-z]++(?:-[A-Za-z]++)*+")
_TAG = re.compile(r"<[^<>]*+>")


def tagged(
    instruction: str = (
        "Put the reasoning in <think> </think> and the answer in <answer> </answer> tags, like this: "
        "<think> reasoning process here </think> <answer> answer here </answer>"
    ),
) -> R1:
    """R1's format for answers that need not be numbers."""
    return R1(instruction)


@dataclass(frozen=True)
class Letters(SingleTurnEnv):
    """Questions about the letters of words of ``min_length`` to ``max_length`` letters, and about rows of ``min_dots``
    to ``max_dots`` dots. ``tasks`` take turns:

    - ``spell``: the letters with hyphens between them;
    - ``count_letter``: how often a letter occurs. Each number of times that a letter of the alphabet occurs in the word
      is asked about as often as the others; who always says 1 is right in 43 % of the default problems;
    - ``nth_letters``: letters n, 2n, 3n, ... as one word; n is ``min_n`` to ``max_n``;
    - ``reverse``: the word backwards. No word is a palindrome;
    - ``count_dots``.

    With ``words`` ``english`` the splits are finite: everyday words (``envs.words``), each once for each task, with a
    letter and n that ``seed`` chooses, and each row of dots once. With ``made_up`` words problem *i* is a function of
    (``seed``, split, *i*), and ``size`` is None; rows of dots come again then. Rows alone are always finite.

    Numbers are graded as in every environment. Letters must be the right ones and no others, after ``canonical``:
    case, quotation marks, asterisks and a full stop around the answer don't matter; ``g-a-r``, ``g, a, r`` and
    ``g a r`` are spelt alike; a spelt word and a whole one differ. ``lenient`` is then the last word of the text.

    Raises ValueError for settings that make no sense, a format that can't hold the answers among them.
    """

    tasks: tuple[str, ...] = TASKS
    words: str = "english"
    min_length: int = 4
    max_length: int = 8
    min_n: int = 2
    max_n: int = 3
    min_dots: int = 3
    max_dots: int = 30
    format: Format = field(default_factory=tagged)
    system: str | None = None
    seed: int = 0
    weights: Mapping[str, float] = field(default_factory=lambda: {"accuracy": 1.0, "format": 0.2, "lenient": 0.0})
    name: str = "letters"

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", tuple(self.tasks))
        object.__setattr__(self, "weights", checked_weights(self.weights))
        if not self.tasks or len(set(self.tasks)) != len(self.tasks) or not set(self.tasks) <= set(TASKS):
            raise ValueError(
                f"letters: tasks is {list(self.tasks)}; it must be one or more of {list(TASKS)}, each at most once"
            )
        if self.words not in WORDS:
            raise ValueError(f"letters: words is {self.words!r}; it must be one of {', '.join(WORDS)}")
        if not 3 <= self.min_length <= self.max_length <= MAX_LENGTH:
            raise ValueError(
                f"letters: words of {self.min_length} to {self.max_length} letters; min_length must be at least 3, "
                f"and max_length no less and at most {MAX_LENGTH}"
            )
        if not 2 <= self.min_n <= self.max_n <= self.min_length:
            raise ValueError(
                f"letters: every n-th letter with n from {self.min_n} to {self.max_n}; min_n must be at least 2, and "
                f"max_n no less and at most min_length ({self.min_length}), so that there is such a letter"
            )
        if not 1 <= self.min_dots <= self.max_dots <= MAX_DOTS:
            raise ValueError(
                f"letters: {self.min_dots} to {self.max_dots} dots; min_dots must be at least 1, and max_dots no less "
                f"and at most {MAX_DOTS}"
            )
        if not self.name:
            raise ValueError("letters: name is empty; it is needed for metric names")
        spelling = [task for task in self.tasks if task not in NUMERIC]
        if spelling and any(self.format.extract(self.format.gold("", text)) != text for text in ("ab", "a-b")):
            raise ValueError(
                f"letters: the format {type(self.format).__name__} can't hold the answers of {', '.join(spelling)}, "
                "which are letters; use env.format._target_=envs.letters.tagged, or leave only "
                f"tasks that ask for a number: env.tasks=[{','.join(NUMERIC)}]"
            )
        about_words = self.tasks != ("count_dots",)
        if about_words and self.words == "english":
            self._check_each_split(_words(self.min_length, self.max_length), "length", "english words")
        if "count_dots" in self.tasks:
            self._check_each_split(_rows(self.min_dots, self.max_dots), "dots", "rows of dots")

    @property
    def max_reward(self) -> float:
        return best_reward(self.format, self.weights)

    def split(self, name: str) -> Split:
        check_split(name)
        if self.words == "made_up" and self.tasks != ("count_dots",):
            return GeneratedSplit(None, lambda index: self._drawn(name, index))
        words, rows = _words(self.min_length, self.max_length), _rows(self.min_dots, self.max_dots)
        listed = _listed(self.tasks, words, rows, self.seed)[name]
        return GeneratedSplit(len(listed), lambda index: self._problem(*listed[index], f"{self.seed}"))

    def grade_text(self, problem: Problem, text: str, finish: Finish) -> Grade:
        answer = Answer(problem, text, finish)
        if problem.meta["task"] in NUMERIC:
            return grade_number(answer, format=self.format, weights=self.weights)
        return grade_answers([answer], _SameLetters(), format=self.format, weights=self.weights)[0]

    def gold(self, problem: Problem) -> str:
        return self.format.gold(problem.meta["solution"], problem.answer)

    def manifest(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "source": "generated",
            "tasks": list(self.tasks),
            "words": self.words,
            "length": [self.min_length, self.max_length],
            "n": [self.min_n, self.max_n],
            "dots": [self.min_dots, self.max_dots],
            "seed": self.seed,
            "sizes": {name: self.split(name).size for name in SPLITS},
            "format": {"type": type(self.format).__name__, "instruction": self.format.instruction},
            "weights": dict(self.weights),
        }

    def _check_each_split(self, subjects: Sequence[str], key: str, what: str) -> None:
        for name in SPLITS:
            count = sum(_split(subject) == name for subject in subjects)
            if count < 2:
                raise ValueError(
                    f"letters: min_{key} is {getattr(self, f'min_{key}')} and max_{key} is "
                    f"{getattr(self, f'max_{key}')}; of these the {name} split has {count} {what}, and needs 2 at "
                    f"least: widen the range{', or use words=made_up' if key == 'length' else ''}"
                )

    def _drawn(self, split: str, index: int) -> Problem:
        task = self.tasks[index % len(self.tasks)]
        rng = random.Random(f"letters/{self.seed}/{split}/{index}")
        while True:
            if task == "count_dots":
                subject = "." * rng.randint(self.min_dots, self.max_dots)
            else:
                subject = made_up(rng, rng.randint(self.min_length, self.max_length))
            if _split(subject) == split:
                return self._problem(task, subject, f"{self.seed}/{split}/{index}")

    def _problem(self, task: str, subject: str, place: str) -> Problem:
        """``task`` about a word or a row of dots; what else there is to choose is a function of ``place`` and both."""
        rng = random.Random(f"letters/{place}/{task}/{subject}")
        match task:
            case "spell":
                asked = _spell(subject)
            case "count_letter":
                asked = _count_letter(subject, _letter(subject, rng))
            case "nth_letters":
                asked = _nth_letters(subject, rng.randint(self.min_n, self.max_n))
            case "reverse":
                asked = _reverse(subject)
            case _:
                asked = _count_dots(subject)
        about = len(subject) if task == "count_dots" else subject
        return Problem(
            id="/".join(map(str, ("letters", task, about, *asked.detail.values()))),
            prompt=make_prompt(asked.question, self.format.instruction, self.system),
            answer=asked.answer,
            meta={"task": task, "length": len(subject), **asked.detail, "solution": asked.solution},
        )


def canonical(text: str) -> str | None:
    """One spelling for each answer of letters: ``tac`` for a word, ``c-a-t`` for one that is spelt; None for what is
    neither, more than one word or letters that aren't ASCII among them."""
    text = text.strip().strip(_AROUND).strip()
    if _SPELT.fullmatch(text):
        return "-".join(_LETTER.findall(text)).lower()
    return text.lower() if _WORD.fullmatch(text) else None


@dataclass(frozen=True)
class _SameLetters:
    """The ``envs.verify.Verifier`` of answers that are letters."""

    def check(self, items: Sequence[Item]) -> list[Verdict]:
        return [self._verdict(item) for item in items]

    @staticmethod
    def _verdict(item: Item) -> Verdict:
        text: str | None = item.text
        if item.whole:
            words = _HYPHENATED.findall(_TAG.sub(" ", item.text)) if item.finished else []
            text = words[-1] if words else None
        answer = None if text is None else canonical(text)
        return Verdict(answer == item.gold, "unparseable" if answer is None else "ok", answer)


@dataclass(frozen=True)
class _Asked:
    """A question, its answer, and how one finds it a letter at a time. ``detail``: what was chosen besides the word."""

    question: str
    answer: str
    solution: str
    detail: Mapping[str, Any] = field(default_factory=dict)


def _spell(word: str) -> _Asked:
    question = f'Spell the word "{word}" with a hyphen between each two letters.'
    return _Asked(question, "-".join(word), _numbered(word))


def _count_letter(word: str, letter: str) -> _Asked:
    so_far = itertools.accumulate(int(other == letter) for other in word)
    counted = ", ".join(f"{other} {count}" for other, count in zip(word, so_far, strict=True))
    return _Asked(
        f'How many times does the letter "{letter}" occur in the word "{word}"?',
        str(word.count(letter)),
        f"{'-'.join(word)}\nThe number of {letter} so far: {counted}",
        {"letter": letter},
    )


def _nth_letters(word: str, n: int) -> _Asked:
    nth = {2: "2nd", 3: "3rd"}.get(n, f"{n}th")  # n is at most MAX_LENGTH: no 22nd
    picked = ", ".join(f"{place} {word[place - 1]}" for place in range(n, len(word) + 1, n))
    return _Asked(
        f'Write every {nth} letter of the word "{word}", beginning with the {nth}, as one word.',
        word[n - 1 :: n],
        f"{_numbered(word)}\nEvery {nth}: {picked}",
        {"n": n},
    )


def _reverse(word: str) -> _Asked:
    backwards = word[::-1]
    solution = f"{'-'.join(word)}\nBackwards: {'-'.join(backwards)}"
    return _Asked(f'Write the word "{word}" backwards.', backwards, solution)


def _count_dots(row: str) -> _Asked:
    return _Asked(f"How many dots are in this row? {row}", str(len(row)), _numbered(row))


def _numbered(characters: str) -> str:
    return ", ".join(f"{place} {character}" for place, character in enumerate(characters, start=1))


def _letter(word: str, rng: random.Random) -> str:
    """Each number of times that a letter occurs is as likely as the others, 0 included: a letter drawn out of the word
    would nearly always be there once."""
    counts = {letter: word.count(letter) for letter in string.ascii_lowercase}
    wanted = rng.choice(sorted({*counts.values()}))
    return rng.choice([letter for letter, count in counts.items() if count == wanted])


def _split(subject: str) -> str:
    return split_of(f"letters/{subject}")


def _words(shortest: int, longest: int) -> tuple[str, ...]:
    return tuple(word for word in ENGLISH if shortest <= len(word) <= longest)


def _rows(shortest: int, longest: int) -> tuple[str, ...]:
    return tuple("." * length for length in range(shortest, longest + 1))


@lru_cache(maxsize=32)
def _listed(
    tasks: tuple[str, ...], words: tuple[str, ...], rows: tuple[str, ...], seed: int
) -> dict[str, list[tuple[str, str]]]:
    """Every task about every word or row, by split: each task in an order of its own, taking turns while they last."""
    splits: dict[str, list[tuple[str, str]]] = {}
    for name in SPLITS:
        queues = []
        for task in tasks:
            subjects = rows if task == "count_dots" else words
            queue = [(task, subject) for subject in subjects if _split(subject) == name]
            random.Random(f"letters/{seed}/{name}/{task}").shuffle(queue)
            queues.append(queue)
        turns = itertools.zip_longest(*queues)
        splits[name] = [one for turn in turns for one in turn if one is not None]
    return splits
