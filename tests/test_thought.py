from __future__ import annotations

import time

import pytest

from rlreason.analysis.thought import canonical, same_answer, split_thought, stated_answers


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("<think>\n3 + 4 = 7\n</think>\n<answer> 7 </answer>", "3 + 4 = 7", "7"),
        # The template or the environment had opened the thought.
        ("3 + 4 = 7\n</think>\n<answer>7</answer>", "3 + 4 = 7", "7"),
        ("</think>\n<answer>7</answer>", "", "7"),
        # Cut off: in the thought, and in the answer.
        ("<think>\nThe answer is 3. No, 3 +", "The answer is 3. No, 3 +", None),
        ("<think>\n3 + 4 = 7\n</think>\n", "3 + 4 = 7", None),
        ("<think>\n3 + 4 = 7\n</think>\n<answer>7", "3 + 4 = 7", "7"),
        # Formats that are broken.
        ("<think>3 + 4 = 7 <answer>7</answer>", "3 + 4 = 7", "7"),
        ("3 + 4 = 7 <answer>7</answer>", "3 + 4 = 7", "7"),
        ("<think>a</think><answer>6</answer> No. <answer>7</answer>", "a", "7"),
        ("<think>a</think> b </think> <answer></answer><answer>7</answer>", "a", "7"),
        # After the thought, no answer tags.
        ("<think>a</think>\nSo it is \\boxed{7}.", "a", "7"),
        ("<think>the answer is 5</think>\nThe answer is 7.", "the answer is 5", "7"),
        ("<think>a</think>\nSeven.", "a", "Seven."),
        ("<think>a <answer>5</answer> b</think>\n<answer>7</answer>", "a <answer>5</answer> b", "7"),
        # No tags at all.
        ("3 + 4 = 7\n#### 7", "3 + 4 = 7", "7"),
        ("#### Step 1: add\n3 + 4 = 7\n#### 7", "#### Step 1: add\n3 + 4 = 7", "7"),
        ("Half of 1 is $\\boxed{\\frac{1}{2}}$.", "Half of 1 is $", "\\frac{1}{2}"),
        ("3 + 4 = 7. So the answer is 7.", "3 + 4 = 7. So", "7"),
        ("3 + 4 = 7", "3 + 4 = 7", None),
        ("", "", None),
    ],
)
def test_thought_and_answer(text: str, thought: str, answer: str | None) -> None:
    parts = split_thought(text)
    assert (parts.thought, parts.answer) == (thought, answer)
    assert text[parts.start : parts.end] == thought
    if answer is not None:
        assert text[parts.answer_start : parts.answer_end] == answer


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("The answer is 12. So 12 - 2 = 10. The final answer is 10.", ["12", "10"]),
        ("So the answer is 2 * 3 = 6, and the answer should be 7", ["6", "7"]),
        ("The answer is $18.00.\n#### 18", ["18", "18"]),
        ("**Answer:** 42 apples", ["42"]),
        ("The correct answer is (B). The answer is D", ["(b)", "d"]),
        ("\\boxed{12} and \\boxed{x^2 + 1}", ["12", "x^2+1"]),
        ("the answer is \\boxed{5}", ["5"]),
        ("<answer>15 + 37 = 52 books</answer><answer> 52</answer>", ["52", "52"]),
        # No answer is stated.
        ("The answer is a whole number below 10.", []),
        ("The answer is the sum of 3 and 4.", []),
        ("The answer is not 5.", []),
        ("The answer is 16? Hardly.", []),
        ("The answer is 6 + 9", []),
        ("The answer is A large number", []),
        ("She answers 5 emails an hour.", []),
        ("#### Step 2", []),
        ("\\boxed{5", []),
        ("<answer></answer>", []),
    ],
)
def test_stated_answers(text: str, values: list[str]) -> None:
    assert [one.value for one in stated_answers(text)] == values


def test_a_statement_and_the_answer_in_it_are_found_in_the_text() -> None:
    text = "Hmm. The answer is 1,200 dollars, I think."
    (one,) = stated_answers(text)
    assert text[one.start : one.end] == "The answer is 1,200 dollars"
    assert text[one.answer_start : one.answer_end] == "1,200 dollars"


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        ("$1,200.00", "1200"),
        ("1200 dollars.", "1200"),
        ("x = 12", "12"),
        ("-4", "-4"),
        ("−4", "-4"),
        ("50%", "50"),
        ("0.5", "1/2"),
        ("2/4", "1/2"),
        ("\\frac{1}{2}", "1/2"),
        ("**7**", "7"),
        ("1/0", "1/0"),
        ("x + 1", "x+1"),
        ("1e999999999", "1e999999999"),
        ("12,34", "12,34"),
    ],
)
def test_one_spelling_for_each_number(answer: str, form: str) -> None:
    assert canonical(answer) == form


def test_answers_are_compared_as_numbers() -> None:
    assert same_answer("18", " $18.00 ")
    assert not same_answer("18", "81")


@pytest.mark.parametrize(
    "piece",
    ["<answer>", "\\boxed{", "the answer is ", "#### 1\n", "answer **", "</think>", "1", "\\boxed{" * 50 + "}" * 50],
)
def test_a_text_that_loops_takes_no_quadratic_time(piece: str) -> None:
    text = piece * (50_000 // len(piece))
    began = time.process_time()
    stated_answers(text)
    split_thought(text)
    assert time.process_time() - began < 10  # a quadratic pass takes minutes
