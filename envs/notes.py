"""Open-ended writing under a known rule: ``Write a short note about rain for children in a warm tone.``

There is no right answer, only better and worse notes. What is better is a rule of the text, simple enough to be known
exactly, so that a reward model trained on comparisons can be held against it: the gold reward of Gao et al. 2022
(arXiv:2210.10760), whose gold is a large reward model instead. Like what readers want, and unlike what is easy to
learn of it, the rule is not monotone: longer is better up to a point and worse beyond.

Left out: whether what is written is true, makes sense, or suits audience and tone, which no simple rule can say; they
only vary the prompts.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from envs.base import SPLITS, VALIDATED, ListSplit, check_split, split_of
from envs.formats import checked_weights
from rlreason.types import Episode, Finish, Grade, Message, Problem, Split

# Singular, without an article, and in a form that a note would use; so that one word is what is looked for.
_TOPICS = """
    astronomy baking bread chalk cheese chess chocolate coffee cooking copper cotton courage curiosity cycling
    dancing drawing electricity fire fishing fog friendship gardening geography geology glass gold grammar gravity
    hiking history honesty honey ice ink iron kindness knitting laughter leather light linen luck mathematics memory
    money moonlight music painting paper patience photography poetry porcelain pottery rain reading recycling rice
    running sailing salt sand silence silk singing sleep snow soap steel sugar swimming tea thunder time trade
    traffic travel walking water wind wood wool writing
"""
TOPICS = tuple(_TOPICS.split())
AUDIENCES = (
    "",
    *(
        "beginners",
        "children",
        "colleagues",
        "farmers",
        "grandparents",
        "neighbours",
        "parents",
        "students",
        "teachers",
    ),
)
TONES = ("", "calm", "cheerful", "formal", "friendly", "serious", "warm")

PARTS = ("on_topic", "informative", "varied", "finished", "plain")
WEIGHTS: Mapping[str, float] = {"on_topic": 0.35, "informative": 0.3, "varied": 0.15, "finished": 0.1, "plain": 0.1}

MIN_WORDS = 5
"""Fewer words are no note and earn nothing in any part."""

_WORD = re.compile(r"[a-z]+")
_CONTRACTED = re.compile(r"n['’]t\b|(?<=[a-z])['’][a-z]+")  # what is left of don't is do, of rain's rain
# Words of four letters and more that carry little; shorter ones never count as content.
_LITTLE = """
    about after again also always another because been before being both cannot could does doing down during each
    either else even ever every from further have having here hers herself himself however into itself just like
    many more most much must myself never none nothing once only other others ourselves over really same shall
    should since some something such than that their theirs them themselves then there therefore these they thing
    things this those though through thus together under until upon very well were what when where whether which
    while whom whose will with within without would your yours yourself
"""
_FUNCTION_WORDS = frozenset(_LITTLE.split())
_ENDED = re.compile(r"[.!?…][\"'”’)]*\s*$")
_PET_OPENING = re.compile(
    r"""[\W_]*(?:certainly|sure|absolutely|of\ course|great\ question|i(?:['’]m|\ am)\ (?:so\ |very\ )?(?:glad|happy)
    |i['’]d\ be|i\ would\ be|i\ hope|as\ an\ ai|here(?:\ is|['’]s|\ are)|okay|ok|thank\ you|thanks)\b""",
    re.IGNORECASE | re.VERBOSE,
)
_LIST_ITEM = re.compile(r"^\s*(?:[-*•+]|\d+[.)])\s", re.MULTILINE)
_SYMBOL = re.compile(r"[*#_|<>{}\[\]~^=\\/@$%&+]")
_SHOUTED = re.compile(r"\b[A-Z]{4,}\b|!!")


@dataclass(frozen=True)
class NoteRule:
    """What a note is worth: the sum of its parts, each in [0, 1] and times its weight (a part without one counts 0).

    - ``on_topic``: 0.5 for each time that the topic is named, at most 1;
    - ``informative``: n different content words (four letters and more, less a list of function words; of contractions
      what stands before them) are worth n / ``enough`` up to ``enough``; from there it falls in a straight line to 0 at
      ``too_many``;
    - ``varied``: the share of the three-word sequences that are different from each other;
    - ``finished``: 1 if the last character ends a sentence, quotation marks and parentheses after it aside, and the
      length limit did not cut the note off;
    - ``plain``: 1, less a third for each of these: symbols (a list, or more than two characters of
      ``*#_|<>{}[]~^=\\/@$%&+``), shouting (a word of four or more capitals, ``!!``, or three exclamation marks), and a
      pet opening (``Certainly``, ``Sure``, ``I'm glad``, ``Here is`` and the like).

    Texts of fewer than ``MIN_WORDS`` words earn nothing. ValueError for settings that make no sense.
    """

    enough: int = 40
    too_many: int = 80
    weights: Mapping[str, float] = field(default_factory=lambda: dict(WEIGHTS))

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", checked_weights(self.weights, PARTS))
        if not MIN_WORDS <= self.enough < self.too_many:
            raise ValueError(
                f"notes: enough is {self.enough} and too_many {self.too_many} content words; the first must be at "
                f"least {MIN_WORDS}, the second more than that"
            )

    def parts(self, topic: str, text: str, finish: Finish) -> dict[str, float]:
        words = _WORD.findall(_CONTRACTED.sub("", text.lower()))
        if len(words) < MIN_WORDS:
            return dict.fromkeys(PARTS, 0.0)
        named = sum(word in (topic, f"{topic}s") for word in words)
        content = len({word for word in words if len(word) >= 4 and word not in _FUNCTION_WORDS})
        too_much = (self.too_many - content) / (self.too_many - self.enough)
        trigrams = [*zip(words, words[1:], words[2:], strict=False)]
        faults = (
            bool(_LIST_ITEM.search(text)) or len(_SYMBOL.findall(text)) > 2,
            bool(_SHOUTED.search(text)) or text.count("!") > 2,
            bool(_PET_OPENING.match(text)),
        )
        return {
            "on_topic": min(1.0, named / 2),
            "informative": max(0.0, min(content / self.enough, 1.0, too_much)),
            "varied": len(set(trigrams)) / len(trigrams),
            "finished": float(finish == "stop" and bool(_ENDED.search(text))),
            "plain": 1.0 - sum(faults) / 3,
        }

    def total(self, parts: Mapping[str, float]) -> float:
        """The weighted sum."""
        return sum(self.weights.get(part, 0.0) * value for part, value in parts.items())


@dataclass(frozen=True)
class Notes:
    """Prompts for short notes, graded by ``rule``; a ``rlreason.types.Env``. There is no verdict (``correct`` is None),
    and no answer.

    Every prompt of ``TOPICS``, ``AUDIENCES`` and ``TONES`` is in one split, by its hash, in an order that ``seed``
    shuffles.
    """

    rule: NoteRule = field(default_factory=NoteRule)
    seed: int = 0
    name: str = "notes"

    def split(self, name: str) -> Split:
        check_split(name)
        return _prompts(self.seed)[name]

    def start(self, problem: Problem, seed: int) -> None:
        """There is no state."""
        return None

    def replies(self, states: Sequence[Any], conversations: Sequence[list[Message]]) -> list[list[Message] | None]:
        """Every episode ends after the policy's first turn."""
        return [None] * len(conversations)

    def grade(self, episodes: Sequence[Episode]) -> list[Grade]:
        return [self.grade_text(episode.problem, episode.text, episode.finish) for episode in episodes]

    def grade_text(self, problem: Problem, text: str, finish: Finish) -> Grade:
        """The rule's verdict on one note; ``length`` says that the token limit cut it off."""
        parts = self.rule.parts(problem.meta["topic"], text, finish)
        return Grade(self.rule.total(parts), None, "ok", parts)

    def validate(self) -> None:
        """Check the rule: on ``VALIDATED`` prompts of each split, a note in which nothing is amiss must earn the sum of
        the weights, lose each part by the fault that it is about, and an empty text earn nothing.

        Raises ValueError naming the problem, the text and its grade.
        """
        for name in SPLITS:
            for index in range(VALIDATED):
                self._validate(self.split(name)[index])

    def manifest(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "source": "generated",
            "seed": self.seed,
            "sizes": {name: self.split(name).size for name in SPLITS},
            "enough": self.rule.enough,
            "too_many": self.rule.too_many,
            "weights": dict(self.rule.weights),
        }

    def _validate(self, problem: Problem) -> None:
        topic = problem.meta["topic"]
        sound = _filled(topic, self.rule.enough)
        faulty = {
            "on_topic": _filled(next(other for other in TOPICS if other != topic), self.rule.enough),
            "informative": _filled(topic, self.rule.too_many),
            "varied": f"{sound} {sound}",
            "finished": sound.removesuffix("."),
            "plain": f"Certainly! {sound}",
        }
        grade = self.grade_text(problem, sound, "stop")
        if not math.isclose(grade.reward, sum(self.rule.weights.values())):
            raise ValueError(f"{self.name}: problem {problem.id}: {sound!r} should lose nothing, but got {grade}")
        for part, text in faulty.items():
            grade = self.grade_text(problem, text, "stop")
            if not grade.parts[part] < 1:
                raise ValueError(f"{self.name}: problem {problem.id}: {text!r} should lose by {part}, but got {grade}")
        if (grade := self.grade_text(problem, "", "stop")).reward:
            raise ValueError(f"{self.name}: problem {problem.id}: an empty text should earn nothing, but got {grade}")


def _filled(topic: str, count: int) -> str:
    """A text of ``count`` content words that names the topic twice; that it makes no sense the rule can't see."""
    fillers = map("".join, itertools.product("abcdefghij", repeat=4))
    own = len(topic) >= 4
    return f"{topic} and {topic}: {' '.join(itertools.islice(fillers, count - own))}."


@cache
def _prompts(seed: int) -> dict[str, ListSplit]:
    """All prompts by split."""
    splits: dict[str, list[Problem]] = {name: [] for name in SPLITS}
    for topic, audience, tone in itertools.product(TOPICS, AUDIENCES, TONES):
        asked = f"Write a short note about {topic}"
        asked += f" for {audience}" if audience else ""
        asked += f" in a {tone} tone." if tone else "."
        meta = {"topic": topic, "audience": audience, "tone": tone}
        id = f"notes/{topic}/{audience or 'anyone'}/{tone or 'any'}"
        splits[split_of(id)].append(Problem(id, [{"role": "user", "content": asked}], None, meta))
    for name, problems in splits.items():
        random.Random(f"notes/{seed}/{name}").shuffle(problems)
    return {name: ListSplit(problems) for name, problems in splits.items()}
