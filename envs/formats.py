"""How an answer is written down, and the grade of an answer in such a format.

A format says what is added to the prompt, how the answer is extracted (strictly), how well the text keeps to the
format, and what a perfect completion looks like. ``grade_number`` and ``grade_answers`` are where environments turn
a text into a grade.

Left out: rewards for how the reasoning reads. A reward model is an environment of its own.

What is known to be tolerated: with ``Plain``, and in the ``lenient`` part, whoever writes the right number last is
right, whatever stands before it. That is why ``lenient`` has weight 0 unless a config says otherwise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from envs.base import Answer
from envs.verify import Extraction, Item, Verdict, Verifier
from envs.verify.numbers import canonical, last_number, parse_number
from rlreason.types import Grade, Message

PARTS = ("accuracy", "format", "lenient")
"""The parts of a grade, each in [0, 1]: ``accuracy`` (the strictly extracted answer is right), ``format`` (the format's
own score, where it has one), ``lenient`` (an answer is found in whatever form, and right)."""

_BOXED = Extraction(("boxed",))
_HASH = re.compile(r"(?<!#)####(?!#)[ \t]*+([^\n]*)")
_TAG = re.compile(r"(</?(?:think|answer)>)")
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


class Format(Protocol):
    """An answer format. ``instruction`` is added to the prompt on a line of its own (nothing if empty)."""

    @property
    def instruction(self) -> str: ...

    def extract(self, text: str) -> str | None:
        """The answer as written, or None if the text does not give exactly one in this format."""
        ...

    def score(self, text: str) -> float | None:
        """How well the text keeps to the format, in [0, 1]; None if the format asks for nothing."""
        ...

    def gold(self, reasoning: str, answer: str) -> str:
        """A completion in perfect format."""
        ...


@dataclass(frozen=True)
class Plain:
    """No format: the answer is the last number in the text."""

    instruction: str = ""

    def extract(self, text: str) -> str | None:
        return last_number(text)

    def score(self, text: str) -> float | None:
        return None

    def gold(self, reasoning: str, answer: str) -> str:
        return f"{reasoning}\nThe answer is {answer}.".lstrip()


@dataclass(frozen=True)
class Hash:
    """GSM8K's own format (Cobbe et al. 2021, https://arxiv.org/abs/2110.14168): a last line ``#### 18``.

    Extraction takes the last ``####`` that is followed by a number and nothing else on its line; headings such as
    ``#### Step 2: add`` are no answers. So a text that gives two answers is judged by its second one, but does not
    get the full format score.
    """

    instruction: str = "Think step by step. End with the answer on a line of its own, like this: #### number"

    def extract(self, text: str) -> str | None:
        answers = [found for found in _HASH.findall(text) if parse_number(found) is not None]
        return answers[-1].strip() if answers else None

    def score(self, text: str) -> float | None:
        """1.0 if the text ends with a line ``#### number`` and has no other ``####``; 0.5 if some ``####`` is followed
        by a number; else 0."""
        last_line = text.rstrip().rpartition("\n")[2].strip()
        match = _HASH.fullmatch(last_line)
        if match and parse_number(match[1]) is not None and text.count("####") == 1:
            return 1.0
        starts = (found.split(maxsplit=1) for found in _HASH.findall(text))
        return 0.5 if any(words and parse_number(words[0]) is not None for words in starts) else 0.0

    def gold(self, reasoning: str, answer: str) -> str:
        return f"{reasoning}\n#### {answer}".lstrip()


@dataclass(frozen=True)
class Boxed:
    """The usual format of competition mathematics (Hendrycks et al. 2021, https://arxiv.org/abs/2103.03874): the
    answer in ``\\boxed{}``, after the thinking where there is some. Boxes that differ give no answer."""

    instruction: str = "Reason step by step, and put the final answer within \\boxed{}."

    def extract(self, text: str) -> str | None:
        return _BOXED(text)

    def score(self, text: str) -> float | None:
        """1.0 if there is an answer in a box."""
        return float(self.extract(text) is not None)

    def gold(self, reasoning: str, answer: str) -> str:
        return f"{reasoning}\nThe answer is $\\boxed{{{answer}}}$.".lstrip()


@dataclass(frozen=True)
class R1:
    """DeepSeek-R1-Zero's format (https://arxiv.org/abs/2501.12948, table 1): ``<think>…</think><answer>…</answer>``."""

    instruction: str = (
        "Put the reasoning in <think> </think> and the answer, a number, in <answer> </answer> tags, like this: "
        "<think> reasoning process here </think> <answer> answer here </answer>"
    )

    def extract(self, text: str) -> str | None:
        """The content of the answer blocks after the first ``</think>``, if they all say the same.

        None without ``</think>``, without an answer block, with blocks that differ, or with answer tags that do not
        pair up.
        """
        _, closed, rest = text.partition("</think>")
        pieces = re.split(r"(</?answer>)", rest)  # text, tag, text, tag, ..., text
        tags, blocks = pieces[1::2], [block.strip() for block in pieces[2::4]]
        if not closed or not blocks or tags != ["<answer>", "</answer>"] * len(blocks):
            return None
        return blocks[0] if len({_value(block) for block in blocks}) == 1 else None

    def score(self, text: str) -> float | None:
        """0.25 for each of the four tags that occurs exactly once, at most 0.75; 1.0 only if the whole text is one
        think block followed by one answer block (white space around them aside).

        Blocks that are empty, or quoted from the instruction, earn nothing: their tags are not counted.
        """
        pieces = _TAG.split(text)
        quoted = self._quoted()
        index = 1
        while index + 2 < len(pieces):
            block = (pieces[index], " ".join(pieces[index + 1].split()), pieces[index + 2])
            if _pairs(block[0], block[2]) and (not block[1] or block in quoted):
                pieces[index] = pieces[index + 2] = "quoted"
                index += 2
            index += 2
        tags = tuple(pieces[1::2])
        if tags == _TAGS and not "".join(pieces[i] for i in (0, 4, 8)).strip():
            return 1.0
        return min(0.75, 0.25 * sum(tags.count(tag) == 1 for tag in _TAGS))

    def gold(self, reasoning: str, answer: str) -> str:
        return f"<think>\n{reasoning or 'I know this.'}\n</think>\n<answer>{answer}</answer>"

    def _quoted(self) -> set[tuple[str, str, str]]:
        pieces = _TAG.split(self.instruction)
        blocks = zip(pieces[1::2], pieces[2::2], pieces[3::2], strict=False)
        return {(start, " ".join(inside.split()), end) for start, inside, end in blocks if _pairs(start, end)}


def checked_weights(weights: Mapping[str, float], parts: Sequence[str] = PARTS) -> dict[str, float]:
    """The weights as a plain dict; ValueError for an unknown part, or a weight that is negative or not finite."""
    for part, weight in weights.items():
        if part not in parts:
            raise ValueError(f"weights: there is no reward part {part!r}; the parts are {', '.join(parts)}")
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"weights: {part} is {weight}; a weight must be a finite number, 0 or more")
    return {part: float(weight) for part, weight in weights.items()}


def best_reward(format: Format, weights: Mapping[str, float]) -> float:
    """What a right answer in perfect format earns: the sum of the weights, less ``format`` where it has no score."""
    return sum(weight for part, weight in weights.items() if part != "format" or format.score("") is not None)


def grade_number(answer: Answer, *, format: Format, weights: Mapping[str, float]) -> Grade:
    """Grade a completion whose answer is a number, at once and without a verifier's help.

    The problem's answer is the right number as a string. The reward is the weighted sum of the parts (see ``PARTS``; a
    part without a weight counts 0); ``Grade.parts`` holds them unweighted, all of them, so that each is logged.
    ``correct`` is the strict verdict, ``answer`` the canonical strict answer; without one the status is
    ``unparseable``.

    Two things never count as an answer: a verbatim copy of the prompt, or of its question, whose last number happens
    to be right; and a number that the token limit may have cut off (``finish`` is ``length`` and it ends the text).
    After a truncation without a strict answer, ``lenient`` is 0.

    Raises ValueError if the problem's answer is not a number: an unreadable gold answer must never pay.
    """
    gold = parse_number(answer.problem.answer)
    if gold is None:
        raise ValueError(f"the problem's own answer, {answer.problem.answer!r}, is not a number")
    body = _body(answer, format)
    strict = _number(format.extract(body))
    last = _number(last_number(body)) if strict is not None or answer.finish != "length" else None
    verdict = Verdict(
        strict == gold, "unparseable" if strict is None else "ok", None if strict is None else canonical(strict)
    )
    return _grade(answer, verdict, lenient=last == gold, format=format, weights=weights)


def grade_answers(
    answers: Sequence[Answer], verifier: Verifier, *, format: Format, weights: Mapping[str, float]
) -> list[Grade]:
    """Grade completions whose answers are mathematics, as ``grade_number`` does for numbers, by a verifier.

    ``accuracy`` is the verdict on what the format extracts, ``lenient`` that on whatever the verifier's own
    extraction finds in the whole text. A check that failed for no fault of the policy's gives status ``error``, and
    that row no reward.

    Raises ValueError if a problem's own answer can't be read.
    """
    bodies = [_body(answer, format) for answer in answers]
    strict = [format.extract(body) for body in bodies]
    asked = [place for place, found in enumerate(strict) if found is not None]
    items = [Item(answers[place].problem.answer, strict[place] or "") for place in asked]
    items += [
        Item(answer.problem.answer, body, whole=True, finished=answer.finish != "length")
        for answer, body in zip(answers, bodies, strict=True)
    ]
    verdicts = verifier.check(items)
    by_format = dict(zip(asked, verdicts, strict=False))
    return [
        _grade(
            answer,
            by_format.get(place, Verdict(False, "unparseable")),
            lenient=verdicts[len(asked) + place].correct,
            format=format,
            weights=weights,
        )
        for place, answer in enumerate(answers)
    ]


def _grade(answer: Answer, verdict: Verdict, *, lenient: bool, format: Format, weights: Mapping[str, float]) -> Grade:
    if verdict.status == "error":
        return Grade(0.0, None, "error")
    parts = {"accuracy": float(verdict.correct), "lenient": float(lenient)}
    format_score = format.score(answer.text)
    if format_score is not None:
        parts["format"] = format_score
    reward = sum(weights.get(part, 0.0) * value for part, value in parts.items())
    return Grade(reward, verdict.correct, verdict.status, parts, verdict.answer)


def _body(answer: Answer, format: Format) -> str:
    """The text without echoes of the prompt and without a number at its end that may have been cut off."""
    body = _without_echo(answer.text, answer.problem.prompt, format.instruction)
    return body.rstrip("0123456789.,/") if answer.finish == "length" else body


def _number(text: str | None) -> Fraction | None:
    return None if text is None else parse_number(text)


def _value(block: str) -> str:
    number = parse_number(block)
    return block if number is None else canonical(number)


def _pairs(start: str, end: str) -> bool:
    return (start, end) in (("<think>", "</think>"), ("<answer>", "</answer>"))


def _without_echo(text: str, prompt: Sequence[Message], instruction: str) -> str:
    for message in prompt:
        content = message["content"]
        for echo in (content, content.removesuffix(instruction).strip()):
            if echo:
                text = text.replace(echo, " ")
    return text
