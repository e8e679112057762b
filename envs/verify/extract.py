r"""The final answer of a completion, as the policy wrote it.

``Extraction`` says which marks count: ``\boxed{}``, a line ``####``, ``<answer>`` tags, a phrase such as "the answer
is", and, where there is none of these, the last number. The last mark in the text wins, so guessing early and often
gains nothing. What gives no single answer gives none: boxes (or tags) that differ, an answer that is denied or
doubted, the instruction quoted, a text that stops before the answer or in the middle of it.

Runs in the trainer's own process, so every step takes linear time and no pattern backtracks over more than a line.

Left out: deciding what an answer is worth (``equal``), and reading minds. "It is 3. Or is it 4?" gives no answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from envs.verify import prose
from envs.verify.expression import Number, Unreadable, parse

Mark = Literal["boxed", "hash", "tag", "phrase", "number"]

MARKS: tuple[Mark, ...] = ("boxed", "hash", "tag", "phrase", "number")

MAX_TEXT = 200_000
"""Only so many characters at the end of a completion are searched."""

_LAST_PHRASES = 20
_TAIL = 200
_SENTENCE = 2000


@dataclass(frozen=True)
class Found:
    """An answer as written (None: denied, doubted or broken off), the mark that it was found by, and where that
    begins."""

    text: str | None
    mark: Mark
    start: int


@dataclass(frozen=True)
class Extraction:
    """Which marks of a final answer count. ``after_thinking``: only what follows the last ``</think>``, where there
    is one.

    Raises ValueError for an unknown mark or for none.
    """

    marks: Sequence[Mark] = MARKS
    after_thinking: bool = True

    def __post_init__(self) -> None:
        unknown = [mark for mark in self.marks if mark not in MARKS]
        if unknown or not self.marks:
            raise ValueError(f"extraction marks are {list(self.marks)}; they must be some of {', '.join(MARKS)}")

    def __call__(self, completion: str, *, finished: bool = True) -> str | None:
        """The final answer as written, or None. ``finished`` False: the token limit cut the completion off, so that an
        answer at its very end may be incomplete, and without a mark there is none."""
        text = completion[-MAX_TEXT:]
        if self.after_thinking:
            _, closed, rest = text.rpartition("</think>")
            if closed:
                text = rest
            elif "<think>" in text:
                return None  # still thinking when it ended
        found: list[Found] = []
        if "boxed" in self.marks:
            found += _boxes(text)
        if "hash" in self.marks:
            found += _hashes(text, finished)
        if "tag" in self.marks:
            found += _tags(text)
        if "phrase" in self.marks:
            found += _phrases(text, finished)
        if found:
            return _last(text, found)
        return _last_number(text) if "number" in self.marks and finished else None


def _last(text: str, found: list[Found]) -> str | None:
    found.sort(key=lambda answer: answer.start)
    last = found[-1]
    # An enclosing mark repeats the inner one: "the answer is \\boxed{5}" is one answer, found twice.
    inner = [f for f in found if f.mark == "boxed" and last.start <= f.start and last.mark != "boxed"]
    last = inner[-1] if inner else last
    if last.mark in ("boxed", "tag"):
        end = _end(text, last)
        if not _agree([f.text for f in found if f.mark == last.mark]) or prose.hedged(text[end : end + _TAIL]):
            return None
    return None if prose.denied_before(text, last.start) else last.text


def _agree(answers: Sequence[str | None]) -> bool:
    different = {*answers}
    return len(different) == 1 or len({_said(answer) for answer in different}) == 1


def _end(text: str, found: Found) -> int:
    """Where a box or a tag ends."""
    if found.mark == "tag":
        return text.lower().find("</answer>", found.start) + len("</answer>")
    opened = _BOX.match(text, found.start)
    assert opened is not None
    closed = _closing_brace(text, opened.end()) if opened[1] == "{" else None
    return opened.end() if closed is None else closed + 1


def _said(text: str | None) -> object:
    """What an answer says, so that boxes of ``\\frac{1}{2}`` and of ``0.5`` agree; None if it is none."""
    if text is None:
        return None
    try:
        node = parse(text)
    except Unreadable:
        return re.sub(r"\s", "", text)
    return node.value if isinstance(node, Number) else node


# --- marks -------------------------------------------------------------------------------------------------------

_BOX = re.compile(r"\\f?box(?:ed)?(?![A-Za-z])[ ]*(\{|[0-9A-Za-z]+)?")
_PLACEHOLDER = re.compile(
    r"""[\s.]*(?:(?:(?:the|your|final|insert|put|here|numeric(?:al)?|correct)\s+)*
    (?:answer|number|result|value|expression|solution|option|letter|choice)(?:\s+here)?
    |\.{2,}|…|\\ldots|\\dots|\\cdots|\\text\{[^{}]*answer[^{}]*\}|_+|\?+|n|ans)?[\s.]*""",
    re.IGNORECASE | re.VERBOSE,
)


def _boxes(text: str) -> list[Found]:
    """Boxes whose braces close; a placeholder such as ``\\boxed{answer}`` is none."""
    found = []
    end_of_last = 0
    for match in _BOX.finditer(text):
        if match.start() < end_of_last or match[1] is None:
            continue
        if match[1] == "{":
            end = _closing_brace(text, match.end())
            if end is None:
                found.append(Found(None, "boxed", match.start()))
                break
            inside = text[match.end() : end]
            end_of_last = end
        else:
            inside = match[1]
        if not _PLACEHOLDER.fullmatch(inside):
            found.append(Found(_unit_behind(text, end_of_last, inside), "boxed", match.start()))
    return found


def _closing_brace(text: str, start: int) -> int | None:
    depth = 1
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += (match[0] == "{") - (match[0] == "}")
        if depth == 0:
            return match.start()
    return None


_PERCENT = re.compile(r"[ ]?\$?[ ]?\\?%")


def _unit_behind(text: str, end: int, inside: str) -> str:
    """The box's content with the percent sign that stands right behind it."""
    return inside + r"\%" if end and _PERCENT.match(text, end + 1) and "%" not in inside else inside


_HASH = re.compile(r"(?<!#)####(?!#)[ \t]*+([^\n]*)")


def _hashes(text: str, finished: bool) -> list[Found]:
    """What follows ``####`` on its line, if a digit, a letter of choice or mathematics is in it and not a heading."""
    found = []
    for match in _HASH.finditer(text):
        inside = match[1].strip().strip("*").strip()
        cut_off = not finished and match.end() >= len(text.rstrip())
        if inside and not cut_off and not _PLACEHOLDER.fullmatch(inside) and not _HEADING.match(inside):
            found.append(Found(inside, "hash", match.start()))
    return found


_HEADING = re.compile(
    r"(?:step|part|case|solution|answer|final|explanation|conclusion|note|example|problem|question|calculation|verification|check)\b",
    re.IGNORECASE,
)

_TAG = re.compile(r"</?answer>", re.IGNORECASE)


def _tags(text: str) -> list[Found]:
    """Blocks ``<answer>...</answer>`` that open and close; a box inside is the answer, not what is around it."""
    found: list[Found] = []
    opened: re.Match[str] | None = None
    for match in _TAG.finditer(text):
        if not match[0].startswith("</"):
            opened = match
        elif opened is not None:
            inside = text[opened.end() : min(match.start(), opened.end() + _SENTENCE)]
            if not _PLACEHOLDER.fullmatch(inside):
                found.append(Found(_from_prose(inside), "tag", opened.start()))
            opened = None
    return found


_PHRASE = re.compile(
    r"""(?<![A-Za-z])(?:(?:the|our|my|a|this)[ ]+)?
    (?:(?:final|correct|right|exact|numerical|simplified)[ ]+)*(?P<noun>answer|result|solution)s?
    (?:[ ]+(?:to|of|for)[ ][^.:\n]{1,80}?)?[ *_]*
    (?P<verb>(?:is|are|was|equals|becomes|(?:would|should|must|will)[ ]be)\b|:|=)[ *_]*(?:\\?\n[ ]*)?
    (?:therefore|thus|then|hence|so|simply|just|exactly|indeed|now|clearly|given[ ]by|equal[ ]to)?
    [ ]*:?[ *_]*(?:\n[ ]*)*""",
    re.IGNORECASE | re.VERBOSE,
)
_SENTENCE_END = re.compile(r"\n|[.!?](?=\s|$|\*|\"|'|\))|(?<=[0-9)}$])[.](?=[ ]*[A-Z])")


def _phrases(text: str, finished: bool) -> list[Found]:
    """What follows "the answer is", up to the end of the sentence."""
    found = []
    for match in list(_PHRASE.finditer(text))[-_LAST_PHRASES:]:
        if match["noun"].lower() != "answer" and match["verb"].lower() != "is":
            continue  # "the solutions are as follows", "Solution: first we"
        end = _SENTENCE_END.search(text, match.end())
        stop = end.start() if end else len(text)
        math = _MATH.match(text, match.end())
        if math:  # a formula may run over several lines
            stop = max(stop, math.end())
            line = _SENTENCE_END.search(text, stop)
            stop = line.start() if line else len(text)
        if not finished and stop >= len(text.rstrip()):
            continue
        sentence = text[match.end() : min(stop, match.end() + _SENTENCE)]
        if not sentence.strip() or _BOX.search(sentence):
            continue  # a box speaks for itself
        if prose.denied_after(sentence):
            found.append(Found(None, "phrase", match.start()))
        else:
            answer = _from_prose(sentence)
            if answer is None or not _PLACEHOLDER.fullmatch(answer):
                found.append(Found(answer, "phrase", match.start()))
    return found


# --- prose -------------------------------------------------------------------------------------------------------

_MATH = re.compile(r"\s*(?:\$\$([^$]+)\$\$|\$([^$\n]+)\$|\\\[(.+?)\\\]|\\\((.+?)\\\))", re.DOTALL)
_UNIT = re.compile(r"[A-Za-z]{1,12}(?: [a-z]{2,12})?")


def _from_prose(sentence: str) -> str | None:
    """The answer within a phrase's sentence or a tag: a box, the only formula, what stands before a reason."""
    boxes = _boxes(sentence)
    if boxes:
        return boxes[-1].text if _agree([box.text for box in boxes]) else None
    sentence = sentence.strip().strip("*_` \n").rstrip(".!").strip()
    formulas = list(_MATH.finditer(sentence))
    if len(formulas) == 1:
        before, after = sentence[: formulas[0].start()], sentence[formulas[0].end() :]
        if prose.hedged(after) or prose.DOUBTFUL.search(before):
            return None
        if not re.search(r"[0-9]", before + prose.without_reason(after)):
            inside = next((part.strip() for part in formulas[0].groups() if part), "")
            unit = after.strip()
            return inside + (rf"\text{{ {unit}}}" if _UNIT.fullmatch(unit) else "")
    return prose.without_subject(prose.without_reason(sentence))


_NUMBER = re.compile(
    r"""(?<![A-Za-z0-9_])(?:(?<![)\]}])[-+−])?[$€£]?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)?(?:\.[0-9]+|(?<=[0-9]))
    (?:[ ]?/[ ]?[0-9]+(?!\.?[0-9]))?(?:[eE][+-]?[0-9]+)?[ ]?%?""",
    re.VERBOSE,
)


def _last_number(text: str) -> str | None:
    """The last number of a text, if the text ends on it."""
    text = text[-_SENTENCE:]
    last = None
    for match in _NUMBER.finditer(text):
        if match[0].strip():
            last = match
    if last is None or not prose.ends_the_text(text, last.start(), last.end()):
        return None
    return last[0].strip()
