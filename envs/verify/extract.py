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
from envs.verify.expression import parse
from envs.verify.nodes import Number, Quantity, Unreadable
from envs.verify.units import PERCENT

Mark = Literal["boxed", "hash", "tag", "phrase", "number"]

MARKS: tuple[Mark, ...] = ("boxed", "hash", "tag", "phrase", "number")

MAX_TEXT = 200_000
"""Only so many characters at the end of a completion are searched."""

_LAST_PHRASES = 20
_TAIL = 200
_SPAN = 400
_SAID = 500
_DIFFERENT = 20
_SENTENCE = 2000


@dataclass(frozen=True)
class Found:
    """An answer as written (None: denied, doubted, part of something else, or broken off), the mark that it was found
    by, and where that begins and ends."""

    text: str | None
    mark: Mark
    start: int
    end: int


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
        text = _visible(completion[-MAX_TEXT:])
        if self.after_thinking:
            text = text.rpartition("</think>")[2]
            if "<think>" in text:
                return None  # still thinking when it ended
        found: list[Found] = []
        if "boxed" in self.marks:
            found += _boxes(text)
        if "hash" in self.marks:
            found += _hashes(text, finished)
        tags = _tags(text)
        if "tag" in self.marks:
            found += tags
        if "phrase" in self.marks:
            found += [f for f in _phrases(text, finished) if not any(tag.start < f.start < tag.end for tag in tags)]
        if found:
            return _last(text, found)
        return _last_number(text) if "number" in self.marks and finished else None


_END_TOKEN = re.compile(r"<(?:/s|eos|\|[a-z_]{1,30}\|)>$")


def _visible(text: str) -> str:
    """The text without end tokens, and without what a reader of the rendered text would not see or would see struck
    out."""
    text = text.rstrip()
    while match := _END_TOKEN.search(text[-40:]):
        text = text[: len(text) - len(match[0])].rstrip()
    for opening, closing in (("<!--", "-->"), ("\\iffalse", "\\fi"), ("~~", "~~")):
        text = _without(text, opening, closing)
    return text


def _without(text: str, opening: str, closing: str) -> str:
    pieces, position = [], 0
    while (start := text.find(opening, position)) >= 0:
        end = text.find(closing, start + len(opening))
        if end < 0:
            break
        pieces.append(text[position:start])
        position = end + len(closing)
    return "".join([*pieces, text[position:]])


def _last(text: str, found: list[Found]) -> str | None:
    found.sort(key=lambda answer: answer.start)
    last = found[-1]
    # An enclosing mark repeats the inner one: "the answer is \\boxed{5}" is one answer, found twice.
    inner = [f for f in found if f.mark == "boxed" and last.start <= f.start and last.mark != "boxed"]
    last = inner[-1] if inner else last
    if last.mark in ("boxed", "tag") and not _agree([f.text for f in found if f.mark == last.mark]):
        return None
    if last.text is None or prose.denied_before(text, last.start):
        return None
    after = text[last.end : last.end + _TAIL]
    if last.mark == "boxed" and prose.second_value(after) and not _repeats(last.text, after):
        return None
    return None if prose.hedged(after) and not _repeats(last.text, after) else last.text


_AGAIN = re.compile(r"[ ]*(?:\$|\\\)|\\\])*[ ]*,?[ ]*(?:or|i\.e\.|that is),?[ ]*(\$[^$\n]+\$|[0-9][^\s,;]*)")


def _repeats(answer: str, after: str) -> bool:
    """Whether what follows arrives at the same value: "1/2, or 0.5", "wait, let me check: 2 + 3 = 5"."""
    match = _AGAIN.match(after)
    if match is not None:
        return _said(match[1].strip("$").rstrip(".")) == _said(answer)
    end = _SENTENCE_END.search(after, 8)
    sentence = after[: end.start()] if end else after
    numbers = [found[0].strip() for found in _NUMBER.finditer(sentence) if found[0].strip()]
    return bool(numbers) and _said(numbers[-1]) == _said(answer) and not prose.DOUBTFUL.search(sentence)


def _agree(answers: Sequence[str | None]) -> bool:
    different = {*answers}
    return len(different) == 1 or (len(different) <= _DIFFERENT and len({_said(answer) for answer in different}) == 1)


def _said(text: str | None) -> object:
    """What an answer says, so that boxes of ``\\frac{1}{2}`` and of ``0.5`` agree; None if it is none."""
    if text is None or len(text) > _SAID:
        return text
    try:
        node = parse(text)
    except Unreadable:
        return re.sub(r"\s", "", text)
    if isinstance(node, Quantity) and node.unit == PERCENT and isinstance(node.value, Number):
        return node.value.value / 100
    return node.value if isinstance(node, Number) else node


# --- marks -------------------------------------------------------------------------------------------------------

_BOX = re.compile(r"\\f?box(?:ed)?(?![A-Za-z])[ ]*(\{|[0-9A-Za-z]+)?")


def _boxes(text: str) -> list[Found]:
    """Boxes; None for one whose braces don't close, or that is part of a larger expression. A placeholder is no box."""
    found = []
    end = 0
    for match in _BOX.finditer(text):
        if match.start() < end or match[1] is None:
            continue
        if match[1] == "{":
            closing = _closing_brace(text, match.end())
            if closing is None:
                found.append(Found(None, "boxed", match.start(), len(text)))
                break
            inside, end = text[match.end() : closing], closing + 1
        else:
            inside, end = match[1], match.end()
        if not prose.is_placeholder(inside):
            percent = _PERCENT.match(text, end)
            alone = _stands_alone(text, match.start(), percent.end() if percent else end)
            answer = inside + (r"\%" if percent and "%" not in inside else "")
            found.append(Found(answer if alone else None, "boxed", match.start(), percent.end() if percent else end))
    return found


_PREFIX = re.compile(
    r"""(?:[-+*/^_<>≤≥≠√|]|[0-9a-zA-Z)]|(?<!\\)\{
    |\\(?:cdot|times|div|pm|mp|sqrt|le|ge|leq|geq|lt|gt|neq?|not=?|pi)(?![A-Za-z]))[ ]*$""",
    re.VERBOSE,
)
_STUCK_PREFIX = re.compile(r"(?:[-+*/^_√0-9]|(?<!\\)\{)$")
_WRAPPER = re.compile(
    r"\\(?:text(?:bf|it|rm|normal)?|math(?:bf|rm|it)|boldsymbol|bm|underline|(?:text)?color\{[a-z]+\}|displaystyle|large|Large|"
    r"huge|Huge|quad|qquad|Rightarrow|implies|therefore|left|right|to|approx|sim)[ ]*\{?[ ]*$"
)
_SUFFIX = re.compile(
    r"""[ ]*(?:[-+*/^!<>0-9{(\[]|\.[0-9]|[a-zA-Z](?![a-zA-Z])
    |\\(?:cdot|times|div|pm|mp|[dt]?frac|sqrt|pi|le|ge|leq|geq|lt|gt|neq?|binom|sin|cos|tan|ln|log)(?![A-Za-z]))""",
    re.VERBOSE,
)
_STUCK_SUFFIX = re.compile(r"[\^_{0-9a-zA-Z]|\.[0-9]")
_DEGREES = re.compile(r"[ ]*\^[ ]*\{?[ ]*\\circ")


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Whether a box is all of its formula, but for a name and an equals sign before it and a unit behind."""
    before = text[max(0, start - _SPAN) : start]
    paragraph = before[before.rfind("\n\n") + 1 :]
    formula = paragraph.replace("\\$", "").count("$") % 2 == 1 or any(
        paragraph.rfind(opening) > paragraph.rfind(closing) for opening, closing in ((r"\[", r"\]"), (r"\(", r"\)"))
    )
    wrapped = _WRAPPER.search(before)
    prefix = _PREFIX if formula else _STUCK_PREFIX
    if not wrapped and prefix.search(paragraph):
        return False
    suffix = _SUFFIX if formula else _STUCK_SUFFIX
    return suffix.match(text, end) is None or _DEGREES.match(text, end) is not None


def _closing_brace(text: str, start: int) -> int | None:
    depth = 1
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += (match[0] == "{") - (match[0] == "}")
        if depth == 0:
            return match.start()
    return None


_PERCENT = re.compile(r"[ ]?\$?[ ]?\\?%")

_HASH = re.compile(r"(?<!#)####(?!#)[ \t]*+([^\n]*)")


def _hashes(text: str, finished: bool) -> list[Found]:
    """What follows ``####`` on its line, if a digit, a letter of choice or mathematics is in it and not a heading."""
    found = []
    for match in _HASH.finditer(text):
        inside = match[1].strip().strip("*").strip()
        cut_off = not finished and match.end() >= len(text.rstrip())
        if inside and not cut_off and not prose.is_placeholder(inside) and not _HEADING.match(inside):
            found.append(Found(inside, "hash", match.start(), match.end()))
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
            if not prose.is_placeholder(inside):
                found.append(Found(_from_prose(inside), "tag", opened.start(), match.end()))
            opened = None
    return found


_PHRASE = re.compile(
    r"""(?<![A-Za-z])(?<!final[ ])(?<!correct[ ])(?<!right[ ])(?<!exact[ ])(?:(?:the|our|my|a|this)[ ]+)?
    (?:(?:final|correct|right|exact|numerical|simplified)[ ]+){0,3}+(?P<noun>answer|result|solution|option|choice)s?
    (?:[ ]+(?:to|of|for)[ ][^.:\n]{1,80}?)?[ *_]*
    (?P<verb>(?:is|are|was|equals|becomes|(?:would|should|must|will)[ ]be)\b|:|=)[ *_]*(?:\\?\n[ ]*)?
    (?:therefore|thus|then|hence|so|simply|just|exactly|indeed|now|clearly|given[ ]by|equal[ ]to)?
    [ ]*:?[ *_]*(?:\n[ ]*)*""",
    re.IGNORECASE | re.VERBOSE,
)
_SENTENCE_END = re.compile(r"\n|</answer>|。|[.!?](?=\s|$|\*|\"|'|\))|(?<=[0-9)}$])[.](?=[ ]*[A-Z])")


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
        answer = None if prose.denied_after(sentence) else _from_prose(sentence)
        if answer is None or not prose.is_placeholder(answer):
            found.append(Found(answer, "phrase", match.start(), stop))
    return found


# --- prose -------------------------------------------------------------------------------------------------------

_MATH = re.compile(r"\s*(?:\$\$([^$]+)\$\$|\$([^$\n]+)\$|\\\[(.+?)\\\]|\\\((.+?)\\\))", re.DOTALL)
_UNIT = re.compile(r"[A-Za-z]{1,12}(?: [a-z]{2,12})?")


def _from_prose(sentence: str) -> str | None:
    """The answer within a phrase's sentence or a tag: a box, the only formula, what stands before a reason."""
    boxes = _boxes(sentence)
    if boxes:
        return boxes[-1].text if _agree([box.text for box in boxes]) else None
    sentence = sentence.strip().strip('*_` \n"').rstrip(".!").strip()
    while sentence and not sentence[-1].isalnum() and sentence[-1] not in "%)]}$°'!\\":
        sentence = sentence[:-1]
    if "otherwise" in sentence:
        return None
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
    """The last number of a text, or the formula that it is in, if the text ends on it."""
    text = text[-_SENTENCE:]
    last = None
    for match in _NUMBER.finditer(text):
        if match[0].strip():
            last = match
    if last is None:
        return None
    formulas = [match for match in _MATH.finditer(text) if match.start() <= last.start() < match.end()]
    start, end = (formulas[-1].start(), formulas[-1].end()) if formulas else last.span()
    if not prose.ends_the_text(text, start, end):
        return None
    return next(part for part in formulas[-1].groups() if part).strip() if formulas else last[0].strip()
