from __future__ import annotations

import math

import pandas as pd
import pytest

from rlreason.analysis.corrections import (
    KINDS,
    Change,
    answer_change,
    claims,
    correction_frame,
    correction_summary,
    step_changes,
)


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("The answer is 18. Wait, that's wrong. The answer is 16.", Change("18", "16")),
        ("The answer is 12. And 2 more. The answer is 14.", Change("12", "14")),  # a switch without a word
        ("The answer is 18. Wait, let me check. The answer is 18.", Change("18", "18")),
        # Several turns: from before the first to the end.
        ("The answer is 1. Wait, no. The answer is 2. Hmm, wait. The answer is 3.", Change("1", "3")),
        # A backtrack before any answer corrects something else; the next one counts.
        ("Wait, it's 6 people. The answer is 1. Wait, no. The answer is 2.", Change("1", "2")),
        ("<think>\nSo the answer is 12.\n</think>\n<answer>13</answer>", Change("12", "13")),
        ("Wait, it's 6 people. The answer is 1.", None),
        ("The answer is 1. Wait, is it?", None),
        ("The answer is 7. So the answer is 7.", None),
        ("Wait. No.", None),
    ],
)
def test_the_answer_before_the_first_turn_and_at_the_end(text: str, change: Change | None) -> None:
    assert answer_change(text) == change


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("3 + 4 = 7", [("3 + 4", "7", True)]),
        ("17 - 9 = 10, 10*3=30", [("17 - 9", "10", False), ("10 * 3", "30", True)]),
        ("-4 + 5 = 1\n7 ÷ 2 = 3.5", [("-4 + 5", "1", True), ("7 ÷ 2", "3.5", True)]),
        ("10 / 3 = 3.33 and 10 / 3 = 3.34", [("10 / 3", "3.33", True), ("10 / 3", "3.34", False)]),
        ("$5 * 3 = $15", [("5 * 3", "15", True)]),
        # A step spelled out claims what its line ends in.
        ("2 - 6: 6 - 2 = 4, 0 - 4 = -4", [("2 - 6", "-4", True)]),
        ("-2 - 4: 2 + 4 = 6, 0 - 6 = 6", [("-2 - 4", "6", False)]),
        # The check is not the step.
        ("19 - 7 = 10\nLet me check: 10 + 7 = 17, not 19.", [("19 - 7", "10", False)]),
        # No step of two numbers.
        ("2 + 3 + 4 = 9, (2 + 3) * 4 = 20, 3 + 4 = 9 - 2, 1,000 + 5 = 1,005, x + 1 = 2, 3 / 0 = 5", []),
    ],
)
def test_the_steps_that_a_text_claims(text: str, found: list[tuple[str, str, bool]]) -> None:
    assert [(claim.expression, claim.value, claim.right) for claim in claims(text)] == found


def step(first: int, again: int) -> str:
    return f"17 - 9 = {first}\nLet me check: {first} + 9 = 17, not 16. Wait, that is wrong.\n17 - 9 = {again}"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (step(10, 8), [("10", "8")]),
        (step(8, 8), [("8", "8")]),
        # The first backtrack ends where the second begins; the last claim before each is the one before it.
        (step(10, 9) + "\nWait, no.\n17 - 9 = 8", [("10", "9"), ("9", "8")]),
        # Another step follows, not the same one again.
        ("17 - 9 = 10\nWait, that is wrong.\n16 - 9 = 7", []),
        ("17 - 9 = 10\n17 - 9 = 8", []),
        # A check that computes the step itself is not its claim: the claim is 10.
        ("17 - 9 = 10\nLet me check: 17 - 9 = 8. Wait, that is wrong.\n17 - 9 = 8", [("10", "8")]),
    ],
)
def test_steps_claimed_again_after_a_backtrack(text: str, values: list[tuple[str, str]]) -> None:
    assert [(before.value, after.value) for before, after in step_changes(text)] == values


def traces() -> pd.DataFrame:
    def answer(before: int, after: int) -> str:
        return f"The answer is {before}. Wait, no. The answer is {after}."

    rows = [
        ("a", "8", answer(7, 8)),
        ("a", "8", answer(8, 7)),
        ("b", "8", answer(7, 8)),
        ("b", "8", "The answer is 8."),
        ("c", None, answer(7, 8)),
        ("d", "8", step(10, 8)),
        ("d", "8", step(10, 8) + "\nWait, no.\n17 - 9 = 7"),
        ("e", "8", step(8, 8)),
    ]
    return pd.DataFrame(rows, columns=["problem", "gold", "text"], index=range(10, 18))


def test_a_row_for_each_trace() -> None:
    frame = correction_frame(traces())
    assert list(frame.index) == list(range(10, 18))
    assert frame["kind"].tolist()[:3] == ["wrong_right", "right_wrong", "wrong_right"]
    assert frame["kind"].isna().tolist() == [False] * 3 + [True] * 5
    assert frame["before"].dropna().tolist() == ["7", "8", "7", "7"]
    assert frame["step_wrong_right"].tolist() == [0, 0, 0, 0, 0, 1, 1, 0]
    assert frame["step_right_wrong"].tolist() == [0, 0, 0, 0, 0, 0, 1, 0]
    assert frame["step_right_right"].tolist() == [0, 0, 0, 0, 0, 0, 0, 1]
    assert frame["step_wrong_wrong"].sum() == 0


def test_the_verifier_is_the_caller_s() -> None:
    asked = []

    def verifier(gold: str, answer: str) -> bool:
        asked.append((gold, answer))
        return answer == "7"

    frame = correction_frame(traces().head(1), verifier)
    assert asked == [("8", "7"), ("8", "8")]
    assert frame["kind"].tolist() == ["right_wrong"]


def test_the_sum_counts_corrections_and_resamples_problems() -> None:
    summary = correction_summary(traces(), correction_frame(traces())).set_index(["what", "kind"])
    assert len(summary) == 2 * len(KINDS)
    # Problem a is helped in 1 of 2, b in 1 of 1: the mean over the two problems is 0.75, between their 0.5 and 1.
    helped = summary.loc[("answer", "wrong_right")]
    assert (helped["count"], helped["problems"], helped["share"]) == (2, 2, 0.75)
    assert (helped["low"], helped["high"]) == (0.5, 1.0)
    hurt = summary.loc[("answer", "right_wrong")]
    assert (hurt["count"], hurt["share"]) == (1, 0.25)
    # Steps: problem d has 2 helped and 1 hurt, e 1 of no consequence.
    assert summary.loc["step"]["count"].tolist() == [2, 1, 0, 1]
    assert summary.loc[("step", "wrong_right"), "share"] == pytest.approx(1 / 3)
    assert summary.loc["answer"]["share"].sum() == pytest.approx(1)


def test_without_corrections_there_is_no_share() -> None:
    none = traces().iloc[[3]]
    summary = correction_summary(none, correction_frame(none))
    assert summary["count"].tolist() == [0] * 8
    assert all(math.isnan(share) for share in summary["share"])
