"""Self-correction that helped and that hurt: what stood before the text turned back on itself, and what after.

Two things are corrected. An *answer*: the last one stated before the first backtrack or switch that has one before it,
against the last one that the text states, both judged by a verifier. A *step*: an equation such as ``17 - 9 = 10``,
claimed before a backtrack and claimed again after it, both judged by exact arithmetic, so that it takes neither gold
answer nor verifier; it is for traces that state a single answer but put their steps right on the way.

Kinds are named by before and after: ``wrong_right`` helped, ``right_wrong`` hurt, and ``wrong_wrong`` and
``right_right`` changed no verdict. (Huang et al. 2023, Large language models cannot self-correct reasoning yet,
arXiv:2310.01798, count the same four, of answers before and after a prompt to think again.)

Left out: answers that are not stated as such before the turn. What the model "had in mind" then is a probe's question
(force an answer there), not one for the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import pandas as pd

from rlreason.analysis.behaviours import behaviours
from rlreason.analysis.thought import same_answer, stated_answers
from rlreason.stats import estimate

Verifier = Callable[[str, str], bool]
"""(gold, answer as it is written) to whether the answer is right."""

KINDS = ("wrong_right", "right_wrong", "wrong_wrong", "right_right")

_TURNS = ("answer_switch", "backtracking")
_NUMBER = r"-?\d{1,15}(?:\.\d{1,15})?"
_EXPRESSION = rf"\$?({_NUMBER}) ?([-+*×/÷]) ?\$?({_NUMBER})"
# Neither part of a longer expression (2 + 3 + 4 = 9) nor of a longer number (1,000 + 5).
_EQUATION = re.compile(
    rf"(?<![\w.,$)*×/÷+-])(?<![-+*×/÷)] ){_EXPRESSION} ?= ?\$?({_NUMBER})(?![\d.,]*\d)(?! ?[-+*×/÷])"
)
# A step spelled out: "2 - 6: 6 - 2 = 4, 0 - 4 = -4" claims that 2 - 6 is -4.
_SPELLED = re.compile(rf"^[ \t]*{_EXPRESSION}:[^\n]*= ?({_NUMBER})[.]?[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Change:
    """What was said before a turn and after it, each as it is written."""

    before: str
    after: str


@dataclass(frozen=True)
class Claim:
    """``text[start:end]`` says that ``expression`` has the value ``value``; ``right`` if it has."""

    expression: str
    value: str
    right: bool
    start: int
    end: int


def answer_change(text: str) -> Change | None:
    """The last answer stated before the text first turned, and the last one that it states at all. A turn is a
    backtrack or the statement of another answer, with a stated answer before it and one after it; None without."""
    stated = stated_answers(text)
    if len(stated) < 2:
        return None
    for turn in (span for span in behaviours(text) if span.name in _TURNS):
        earlier = [one for one in stated if one.end <= turn.start]
        if earlier and stated[-1].end > turn.start:
            before, after = earlier[-1], stated[-1]
            return Change(text[before.answer_start : before.answer_end], text[after.answer_start : after.answer_end])
    return None


def claims(text: str) -> list[Claim]:
    """The steps that a text claims: equations of two numbers and one operation, and those spelled out in a line.

    A value with decimals is right if it is the true one rounded to as many. Left out are equations that stand in a line
    after the words of a check: they are the check, not the step.
    """
    checks = [span.start for span in behaviours(text) if span.name == "verification"]
    spelled = list(_SPELLED.finditer(text))
    found = spelled + [
        match
        for match in _EQUATION.finditer(text)
        if not any(other.start() <= match.start() < other.end() for other in spelled)
    ]
    result = []
    for match in sorted(found, key=re.Match.start):
        line = text.rfind("\n", 0, match.start()) + 1
        truth = _true_value(match[1], match[2], match[3])
        if truth is None or any(line <= check < match.start() for check in checks):
            continue
        expression = f"{Fraction(match[1])} {match[2]} {Fraction(match[3])}"
        result.append(Claim(expression, match[4], _is_rounded(truth, match[4]), match.start(), match.end()))
    return result


def step_changes(text: str) -> list[tuple[Claim, Claim]]:
    """For each backtrack, the first step claimed between it and the next one that had been claimed before it: the last
    claim of it before, and the one after."""
    turns = [span for span in behaviours(text) if span.name == "backtracking"]
    if not turns:
        return []
    every, changes = claims(text), []
    for turn, following in zip(turns, [*(span.start for span in turns[1:]), len(text)], strict=True):
        before = {claim.expression: claim for claim in every if claim.end <= turn.start}
        again = (one for one in every if turn.end <= one.start < following and one.expression in before)
        if (after := next(again, None)) is not None:
            changes.append((before[after.expression], after))
    return changes


def correction_frame(traces: pd.DataFrame, verifier: Verifier = same_answer) -> pd.DataFrame:
    """For each row, on the traces' index, what its ``text`` corrected:

    ``before``, ``after`` and ``kind`` of the answer (``answer_change``, judged against ``gold``), missing where it has
    no such change, ``kind`` also where there is no gold answer; and ``step_<kind>``, the number of steps of each kind
    (``step_changes``). Keep ``segment == 0`` to count rollouts.
    """
    rows = []
    for text, gold in zip(traces["text"], traces["gold"], strict=True):
        change = answer_change(text)
        kind = None
        if change and isinstance(gold, str):
            kind = _kind(verifier(gold, change.before), verifier(gold, change.after))
        steps = [_kind(before.right, after.right) for before, after in step_changes(text)]
        said = (change.before, change.after) if change else (None, None)
        rows.append((*said, kind, *(steps.count(one) for one in KINDS)))
    columns = ["before", "after", "kind", *(f"step_{kind}" for kind in KINDS)]
    return pd.DataFrame(rows, columns=columns, index=traces.index)


def correction_summary(traces: pd.DataFrame, frame: pd.DataFrame, *, confidence: float = 0.95) -> pd.DataFrame:
    """Of ``correction_frame`` over these traces, a row for each of ``answer`` and ``step`` and kind: ``count`` in all;
    ``share`` of all corrections of an answer or of steps, as the mean over problems that have any, with its interval
    ``low`` to ``high`` (``stats.estimate``: problems are resampled); ``problems``, their number. NaN without any."""
    answers = pd.DataFrame({kind: (frame["kind"] == kind).astype("int64") for kind in KINDS})
    steps = frame[[f"step_{kind}" for kind in KINDS]].set_axis(list(KINDS), axis="columns")
    rows = []
    for what, counts in (("answer", answers), ("step", steps)):
        by_problem = counts.groupby(traces["problem"].to_numpy()).sum()
        by_problem = by_problem[by_problem.sum(axis="columns") > 0]
        shares = by_problem.div(by_problem.sum(axis="columns"), axis="index")
        for kind in KINDS:
            row = {"what": what, "kind": kind, "count": int(by_problem[kind].sum()), "problems": len(by_problem)}
            if len(by_problem):
                found = estimate(shares[kind], confidence=confidence)
                row |= {"share": found.mean, "low": found.low, "high": found.high}
            rows.append(row)
    columns = ["what", "kind", "count", "problems", "share", "low", "high"]
    return pd.DataFrame(rows).reindex(columns=columns)


def _kind(before: bool, after: bool) -> str:
    return f"{'right' if before else 'wrong'}_{'right' if after else 'wrong'}"


def _true_value(left: str, operation: str, right: str) -> Fraction | None:
    a, b = Fraction(left), Fraction(right)
    if operation in "/÷":
        return a / b if b else None
    return {"+": a + b, "-": a - b, "*": a * b, "×": a * b}[operation]


def _is_rounded(truth: Fraction, written: str) -> bool:
    decimals = len(written.partition(".")[2])
    return abs(truth - Fraction(written)) <= (Fraction(1, 2 * 10**decimals) if decimals else 0)
