"""Finding behaviours in a text by the words they are known by: cues, the rules made of them, and how they are applied.

Left out: what the rules are, which is ``behaviour_rules``' matter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

from rlreason.analysis.thought import stated_answers

Place = Literal["anywhere", "sentence", "statement"]


@dataclass(frozen=True)
class Span:
    """``text[start:end]`` shows the behaviour ``name``."""

    name: str
    start: int
    end: int


_SENTENCE = re.compile(r"(?:^|(?<=[.!?…:;—–*>✓]))[\s\"“(]*", re.MULTILINE)
_INTERJECTION = re.compile(
    r"(?:but|hmm+|oh|ah|okay|ok|so|well|and|now|um+|uh|actually|alright|alternatively|no|wait|yes)\b[,.…!]*[^\S\n]+"
)
_MOST_INTERJECTIONS = 3
_LETTER_OR_BREAK = re.compile(r"[^\W\d_]|\n")


@dataclass(frozen=True)
class Reading:
    """A text and what every rule needs to know of it.

    ``lower`` is the text in lower case and with straight apostrophes, character for character; ``plain`` the same with
    one space for any white space. ``sentences`` says where each begins (with the text, a line, or after a mark) and
    where its words do, which may be after up to three interjections: a pair for each number of them. ``statements`` are
    those that follow no question.
    """

    text: str
    lower: str
    plain: str
    sentences: list[tuple[int, int]]
    statements: list[tuple[int, int]]

    @classmethod
    def of(cls, text: str) -> Reading:
        lower = text.lower().replace("’", "'")
        if len(lower) != len(text):  # a letter such as İ, which is two in lower case
            lower = "".join(letter.lower() if len(letter.lower()) == 1 else letter for letter in text).replace("’", "'")
        sentences: list[tuple[int, int]] = []
        statements: list[tuple[int, int]] = []
        for mark in _SENTENCE.finditer(lower):
            places = [(mark.end(), mark.end())]
            while len(places) <= _MOST_INTERJECTIONS and (said := _INTERJECTION.match(lower, places[-1][1])):
                places.append((mark.end(), said.end()))
            sentences += places
            if "\n" in mark[0] or not text.endswith("?", 0, mark.start()):
                statements += places
        return cls(text, lower, " ".join(lower.split()), sentences, statements)


@dataclass(frozen=True)
class Cue:
    """A regular expression for texts in lower case with straight apostrophes; a space in it stands for white space.

    ``words``: the plain text holds one of them wherever the pattern matches (``|`` between). Looking for them first is
    what makes the rules quick. ``at``: the pattern matches anywhere; or where a sentence or statement begins, after at
    most three interjections ("Is it prime? No, that's 3 * 7" is no statement and takes nothing back).
    """

    words: str
    pattern: str
    at: Place = "anywhere"

    @cached_property
    def regex(self) -> re.Pattern[str]:
        return re.compile(self.pattern.replace(" ", r"\s+"))

    @cached_property
    def needed(self) -> tuple[str, ...]:
        return tuple(self.words.split("|"))

    def may_match(self, reading: Reading) -> bool:
        """Whether one of ``words`` is there."""
        for word in self.needed:  # noqa: SIM110 - asked 80 times a text, and any() takes twice as long
            if word in reading.plain:
                return True
        return False

    def matches(self, reading: Reading) -> list[tuple[int, int]]:
        """Where the pattern matches, whatever ``words`` say."""
        if self.at == "anywhere":
            return [match.span() for match in self.regex.finditer(reading.lower)]
        begins = reading.sentences if self.at == "sentence" else reading.statements
        return [(begin, match.end()) for begin, at in begins if (match := self.regex.match(reading.lower, at))]


@dataclass(frozen=True)
class Rule:
    """A behaviour: what counts as one, who described it, and the cues of which any is enough."""

    name: str
    definition: str
    source: str
    cues: tuple[Cue, ...]

    def spans(self, reading: Reading) -> list[Span]:
        """Where cues match. Matches that overlap, or have no letter and no line break between them, are one: "Let me
        check: 3 + 4 = 7. Right." is one check."""
        cues = (cue for cue in self.cues if cue.may_match(reading))
        spans: list[Span] = []
        for start, end in sorted(place for cue in cues for place in cue.matches(reading)):
            if spans and not _LETTER_OR_BREAK.search(reading.lower, spans[-1].end, start):
                spans[-1] = Span(self.name, spans[-1].start, max(spans[-1].end, end))
            else:
                spans.append(Span(self.name, start, end))
        return spans


@dataclass(frozen=True)
class AnswerSwitch:
    """A behaviour seen in the answers that a text states, whatever its words."""

    name: str
    definition: str
    source: str

    def spans(self, reading: Reading) -> list[Span]:
        """The statements whose answer differs from the one stated before."""
        stated = stated_answers(reading.text)
        changed = (after for before, after in pairwise(stated) if after.value != before.value)
        return [Span(self.name, one.start, one.end) for one in changed]
