r"""A text cut into thought and answer, and every answer that it states on the way.

The formats are those that models are trained to write: DeepSeek-R1's ``<think>…</think><answer>…</answer>``
(https://arxiv.org/abs/2501.12948, table 1), GSM8K's ``#### 18`` (https://arxiv.org/abs/2110.14168), ``\boxed{18}``
(https://arxiv.org/abs/2103.03874), and plain prose that says "the answer is 18". This module is for reading, not for
grading: it is lenient where a format is broken. The traces' column ``answer`` holds what the environment graded.

Left out: answers that nothing names (the last number of a plain text), since any number would be one; and the
equality of expressions, which is a verifier's work: values are compared as numbers, or else as they are written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Parts:
    """``text[start:end]`` is the thought, ``text[answer_start:answer_end]`` the answer, each without tags and the
    white space around it. Both of the latter are None where there is no answer, as after a truncation."""

    text: str
    start: int
    end: int
    answer_start: int | None = None
    answer_end: int | None = None

    @property
    def thought(self) -> str:
        return self.text[self.start : self.end]

    @property
    def answer(self) -> str | None:
        return None if self.answer_start is None else self.text[self.answer_start : self.answer_end]


@dataclass(frozen=True)
class Stated:
    r"""An answer that a text states: ``text[start:end]`` is the statement (``\boxed{18}``, ``the answer is 18``),
    ``text[answer_start:answer_end]`` the answer in it, and ``value`` that answer's ``canonical`` form."""

    value: str
    start: int
    end: int
    answer_start: int
    answer_end: int


_NUMBER = r"[-−+]?\s?\$?\s?-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,40})?(?:\.\d{1,40})?(?:\s?/\s?\d{1,40})?"
# A number as an answer: with a percent or degree sign, or a unit of up to three words.
_WITH_UNIT = re.compile(rf"({_NUMBER})(?:\s?(?:\\?[%$]|°))?(?:\s[A-Za-z()./-]+){{0,3}}")
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\{(-?\d{1,40})\}\{(\d{1,40})\}")
_LATEX = re.compile(r"\\[()\[\],!]|\\text|\*\*|[${}\"“”]")
_OPTION = re.compile(r"\(?[A-J]\)?(?=[.,:]|\s*$)")

_LONGEST = 200  # characters of an answer; what is longer is no answer, and boxes in boxes would take quadratic time
_BRACE = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*)?(?<!\\)[{}]")
_HASHES = re.compile(r"(?m)^[ \t]*####(?!#)[ \t]*(?P<answer>[-−+$]{0,2} ?\.?\d[^\n]*)")
_BLOCK = re.compile(r"(?<!<)<answer>(?P<answer>[^<]*)")
_SAID = re.compile(
    r"(?:\b(?:the|my|our) )?\b(?:(?:final|correct|right|overall) )?answer\b(?:\*\*)?"
    r"(?: to (?:the|this|our|part) (?:\S+ )?(?:question|problem)?)?"
    r"\s*(?:(?:is|becomes|(?:should|must|will|would) be)\b(?! not\b):?|[:=])"
    r"(?:\*\*)?\s*(?:(?:simply|just|actually|therefore|thus|then|now|about|approximately|exactly|indeed) )*"
    rf"(?=(?P<answer>[^\n<]{{1,{_LONGEST}}}))",  # looked at, not consumed: it may hold the next statement
    re.IGNORECASE,
)
# Where what an answer "is" ends: with its sentence, or where a reason or the next thing begins.
_END = re.compile(r"[.!;](?=\s|$|\*)|, |\s(?:because|since|so|but|and|as|which|for|when|if)\s")


def canonical(answer: str) -> str:
    r"""One spelling for each number: ``$1,200.00``, ``1200`` and ``1200 dollars`` are all ``1200``; ``0.5``, ``2/4``
    and ``\frac{1}{2}`` are ``1/2``. Of an equation, its right-hand side. What is no number comes back in lower case,
    without white space and LaTeX's dollars and braces."""
    plain = _right_hand_side(answer)
    number = _number(plain)
    return re.sub(r"\s", "", plain).lower() if number is None else str(number)


def same_answer(gold: str, answer: str) -> bool:
    """Whether the two have the same ``canonical`` form."""
    return canonical(gold) == canonical(answer)


def stated_answers(text: str) -> list[Stated]:
    r"""The answers that a text states, in their order: what ``<answer>`` and ``\boxed{}`` hold, a line ``#### 18``,
    and "the (final) answer is 18", "Answer: 18", "the answer should be 18".

    What the answer "is" counts only if it is a number, an equation that ends in one, or an option's letter ("the answer
    is a whole number" states none), and not in a question. Where one statement lies in another ("the answer is
    \boxed{18}"), the outer one counts once, with the inner one's answer.
    """
    found: list[Stated] = []
    for candidate in sorted(_candidates(text), key=lambda one: one.start):
        if found and candidate.start < found[-1].end:
            last = found[-1]
            found[-1] = Stated(
                candidate.value, last.start, max(last.end, candidate.end), candidate.answer_start, candidate.answer_end
            )
        else:
            found.append(candidate)
    return [one for one in found if one.value]


def split_thought(text: str) -> Parts:
    r"""Thought and answer of a completion.

    The thought begins after ``<think>``, or with the text where the template or the environment had opened it. It ends
    at the first ``</think>``; without one at ``<answer>``; and in a text without any of these tags, where the last
    stated answer (``stated_answers``) begins. An opened thought that nothing ends runs to the end of the text.

    The answer is the last one stated after the thought, or, after a ``</think>``, whatever follows it.
    """
    opened, closed, tag = text.find("<think>"), text.find("</think>"), text.find("<answer>")
    start = opened + len("<think>") if opened >= 0 and (closed < 0 or opened < closed) else 0
    if closed >= 0:
        end, rest = closed, closed + len("</think>")
    elif tag >= start:
        end = rest = tag
    elif opened < 0 and (stated := stated_answers(text)):
        end = rest = stated[-1].start
    else:
        end = rest = len(text)
    blocks = [block.span("answer") for block in _BLOCK.finditer(text, rest) if block["answer"].strip()]
    others = [(one.answer_start, one.answer_end) for one in stated_answers(text[rest:])]
    if blocks:
        answer = blocks[-1]
    elif others:
        answer = rest + others[-1][0], rest + others[-1][1]
    else:
        answer = rest, len(text)
    inside = _stripped(text, *answer)
    return Parts(text, *_stripped(text, start, end), *(inside if inside[0] < inside[1] else (None, None)))


def _candidates(text: str) -> Iterator[Stated]:
    if "boxed" in text or "fbox" in text:
        for start, inside, end in _boxes(text):
            yield Stated(canonical(text[inside:end]), start, end + 1, inside, end)
    for mark, pattern in (("####", _HASHES), ("<answer>", _BLOCK)):
        if mark in text:
            for match in pattern.finditer(text):
                start, end = _stripped(text, *match.span("answer"))
                if start < end:
                    yield Stated(canonical(text[start:end]), text.index(mark, match.start()), end, start, end)
    if "answer" in text or "Answer" in text:
        yield from filter(None, map(_said, _SAID.finditer(text)))


def _said(match: re.Match[str]) -> Stated | None:
    """What follows "the answer is", if it is an answer."""
    said = match["answer"]
    stop = _END.search(said)
    clause = said[: stop.start()] if stop else said
    if "?" in clause or "boxed" in clause:  # a box speaks for itself
        return None
    option = _OPTION.match(clause)
    written = option[0] if option else clause[clause.rfind("=") + 1 :]
    if not option and _number(_right_hand_side(written)) is None:
        return None
    end = match.start("answer") + (option.end() if option else len(clause))
    start, end = _stripped(match.string, end - len(written), end)
    return Stated(canonical(written), match.start(), end, start, end)


def _boxes(text: str) -> Iterator[tuple[int, int, int]]:
    """Of each box that is closed, where it begins, where its content begins, where its closing brace stands."""
    opened: list[re.Match[str]] = []
    for brace in _BRACE.finditer(text):
        if brace[0][-1] == "{":
            opened.append(brace)
        elif opened and (start := opened.pop())["box"] and brace.start() - start.end() <= _LONGEST:
            yield start.start(), start.end(), brace.start()


def _right_hand_side(answer: str) -> str:
    return _LATEX.sub("", _LATEX_FRACTION.sub(r"\1/\2", answer)).rpartition("=")[2].strip().rstrip(".!")


def _number(text: str) -> Fraction | None:
    """The exact value of a number and its unit. Fraction alone would read ``1e999999999``, and never come back."""
    found = _WITH_UNIT.fullmatch(text)
    try:
        return Fraction(re.sub(r"[\s$,+]", "", found[1]).replace("−", "-")) if found else None
    except (ValueError, ZeroDivisionError):
        return None


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """The range without the white space at its ends."""
    inside = text[start:end]
    start += len(inside) - len(inside.lstrip())
    return start, start + len(inside.strip())
