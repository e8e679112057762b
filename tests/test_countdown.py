"""Countdown: what is read, what counts as a solution, and that every problem has one and is in one split."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from envs.base import SPLITS, split_of
from envs.countdown import Countdown, Puzzle, tagged
from envs.formats import R1, Boxed, Hash, Plain
from rlreason.types import Finish, Grade, Problem

CONF = str(Path(__file__).resolve().parent.parent / "conf")
MAKES_24 = Puzzle((2, 3, 4, 6), 24, "6 * 4 * (3 - 2)")


def grade(answer: str, puzzle: Puzzle = MAKES_24, finish: Finish = "stop", **settings: Any) -> Grade:
    """The grade of an answer in perfect format; an answer with tags of its own is graded as it stands."""
    text = answer if "<" in answer else f"<think>Hm.</think>\n<answer>{answer}</answer>"
    return Countdown(**settings).grade_text(Problem("one", [], puzzle), text, finish)


@pytest.mark.parametrize(
    "answer",
    [
        "6 * 4 * (3 - 2)",
        "((6))*4*(3-2)",
        "6 × 4 × (3 − 2)",
        "6x4x(3-2)",
        "6 · 4 ÷ (3 - 2)",
        "6 \\times 4 \\cdot (3-2)",
        "6 \\div (3-2) * 4",
        " 4 * 6\n* (3 - 2) ",
        "6 * 4 * (3 - 2) = 24",
        "6 * 4 * (3 - 2)=24",
        "6 * 4 / (3 - 2)",
        "3 * 6 + 4 + 2",
    ],
)
def test_right_by_hand(answer: str) -> None:
    result = grade(answer)
    assert (result.correct, result.status, result.reward) == (True, "ok", 1.1)


def test_fractions_on_the_way_are_exact() -> None:
    # 8 / (3 - 8/3) = 8 / (1/3) = 24; in floating point it is 23.99...
    assert grade("8 / (3 - 8 / 3)", Puzzle((3, 3, 8, 8), 24, "")).correct
    assert not grade("100000 / 3 * 3 + 1", Puzzle((1, 3, 3, 100000), 100002, "")).correct
    assert grade("1 / 3 * (3 - 2)", Puzzle((1, 2, 3, 3), 0, "")).correct is False
    assert grade("2 - 3 + 4 * 6", Puzzle((2, 3, 4, 6), 23, "")).correct  # negative ones are allowed on the way, too


@pytest.mark.parametrize(
    "answer",
    [
        "6 * 4",  # not all
        "6 * 4 * (3 - 2) * 1",  # one too many
        "(6 + 2) * 3 / (4 / 4)",  # 4 twice
        "0x6 * 4 * (3 - 2)",  # 0 times 6, and there is no 0
        "24",
        "64 - 32 - 4 - 4",  # digits put together
        "6 * 4 - (3 - 2)",  # 23
    ],
)
def test_expressions_that_are_no_solution(answer: str) -> None:
    result = grade(answer)
    assert (result.correct, result.status, result.parts) == (False, "ok", {"accuracy": 0.0, "format": 1.0})


@pytest.mark.parametrize(
    "answer",
    [
        "",
        " ",
        "expression here",
        "6 * 4 * (3 - 2) = 25",
        "6 * 4 * (3 - 2) = 24 = 24",
        "6 * 4 * (3 - 2) = ２４",
        "24 = 6 * 4 * (3 - 2)",
        "= 24",
        "6 * 4 * (3 - 2) or 6 * (4 + 3 - 2)",
        "6 * 4 * (3 - 2), 6",
        "6 * 4 * (3 - 2",
        "6 * 4 * (3 - 2))",
        "6 4 (3 - 2)",
        "6(4)(3 - 2)",
        "6 ** 4",
        "6 // 4",
        "-2 + 3 + 6 * 4 - 1",
        "6 * +4 * (3 - 2)",
        "6 * 4 * (3 - 2) # 24",
        "6.0 * 4 * (3 - 2)",
        "6_0 * 4",
        "06 * 4 * (3 - 2)",
        "٦ * 4 * (3 - 2)",
        "6 * 4 / (2 + 4 - 6)",
        "6 / 0",
        "6 if 4 else 3",
        "abs(6) * 4",
        "__import__('os')",
        "max(3, 4)",
        "nan",
        "inf",
        "9" * 5000,
        "6 * 4 * (3 - 2)" + " " * 200 + "+ 0",
        "(" * 99 + "6" + ")" * 99,  # readable, and no solution
        "(" * 100_000,
        "6 *\x00 4 * (3 - 2)",
        "6 *\ud800 4",
    ],
)
def test_what_can_not_be_read_is_not_right(answer: str) -> None:
    result = grade(answer)
    assert result.correct is False
    assert result.parts["accuracy"] == 0.0
    if answer[:99] != "(" * 99 or len(answer) > 200:
        assert (result.status, result.answer) == ("unparseable", None)


@pytest.mark.parametrize(
    "text",
    [
        "6 * 4 * (3 - 2)",
        "<think>6 * 4 * (3 - 2)</think>",
        "<think>So</think><answer>6 * 4 * (3 - 2)",
        "<think>So <answer>6 * 4 * (3 - 2)</answer>",
        "<think>So</think><answer>6 * 4 * (3 - 2)</answer><answer>6 * 4 + 3 - 2</answer>",
        "<think>So</think><answer>6 + 4 + 3 + 2</answer><answer>6 * 4 * (3 - 2)</answer>",
        "<think>So</think><answer><answer>6 * 4 * (3 - 2)</answer></answer>",
    ],
)
@pytest.mark.parametrize("finish", ["stop", "length"])
def test_no_single_answer_in_the_format_is_none(text: str, finish: Finish) -> None:
    result = grade(text, finish=finish) if "<" in text else grade(f"<think>{text}", finish=finish)
    assert (result.correct, result.status, result.answer) == (False, "unparseable", None)
    assert result.reward < 0.1


def test_at_most_once() -> None:
    for answer, right in (("6 * 4", True), ("6 * 4 * (3 - 2)", True), ("6 * (2 + 2)", False), ("24", False)):
        assert grade(answer, use_all=False).correct is right, answer
    puzzle = Puzzle((5, 5, 7), 10, "")
    assert grade("5 + 5", puzzle, use_all=False).correct  # a number that is given twice may be used twice
    assert not grade("5 + 5", puzzle).correct


def test_only_the_operations_that_are_allowed() -> None:
    puzzle = Puzzle((1, 2, 5), 4, "5 - (2 - 1)")
    assert grade("5 - (2 - 1)", puzzle, operations=["-"]).correct  # though 1 + 5 - 2 is its canonical form
    assert not grade("5 - 2 + 1", puzzle, operations=["-"]).correct
    assert grade("5 - 2 + 1", puzzle).correct


def test_the_canonical_answer_is_the_same_for_what_commutes() -> None:
    same = ["(2 + 1) * 3 / 4 / (7 - 5)", "3 * (1 + 2) / ((7 - 5) * 4)", "3 / 4 * ((1 + 2) / (7 - 5))"]
    assert {grade(text).answer for text in same} == {"(1 + 2) * 3 / (7 - 5) / 4"}
    assert grade("1 - (2 - 3)").answer == grade("3 + 1 - 2").answer == "1 + 3 - 2"
    assert grade("1 - 2 - 3").answer == "1 - 2 - 3"
    assert grade("2 / (3 / 4)").answer == "2 * 4 / 3"
    assert len({grade(text).answer for text in ("6 * 4", "6 + 4", "6 - 4", "4 - 6", "6 / 4", "4 / 6")}) == 6


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_all": False, "count": [2, 5], "numbers": [1, 9]},
        {"operations": ["-"], "count": [3], "target": [1, 99]},
        {"operations": ["/"], "count": [3], "numbers": [1, 24], "target": [1, 24]},
        {"count": [6], "numbers": [1, 25], "target": [100, 999], "format": Boxed()},
        {"count": [2], "numbers": [1, 3], "target": [1, 9]},  # a handful of puzzles, again and again
    ],
    ids=str,
)
def test_every_problem_has_a_solution_and_is_in_its_split(settings: dict[str, Any]) -> None:
    """Solutions are worked out by Python's own arithmetic on fractions, not by ours."""
    env = Countdown(**settings)
    env.validate()
    low, high = env.numbers
    for name in SPLITS:
        for problem in (env.split(name)[index] for index in range(20)):
            puzzle = problem.answer
            solution = re.sub(r"(\d+)", r"Fraction(\1)", puzzle.solution)
            assert eval(solution, {"Fraction": Fraction}) == puzzle.target
            assert tuple(sorted(map(int, re.findall(r"\d+", puzzle.solution)))) == puzzle.numbers
            assert len(puzzle.numbers) in env.count
            assert low <= puzzle.numbers[0] <= puzzle.numbers[-1] <= high
            assert env.target[0] <= puzzle.target <= env.target[1]
            assert puzzle.target not in puzzle.numbers
            assert {*re.findall(r"[-+*/]", puzzle.solution)} <= {*env.operations}
            numbers = [int(number) for number in re.findall(r"\d+", problem.prompt[0]["content"].split(". ")[0])]
            assert Counter(numbers) == Counter([puzzle.target, *puzzle.numbers])
            assert split_of(" ".join(map(str, puzzle.numbers)) + f" = {puzzle.target}") == name


def test_splits_never_meet_in_whatever_order_and_for_every_seed() -> None:
    keys: dict[str, set[str]] = {name: set() for name in SPLITS}
    orders: set[str] = set()
    for seed, name in itertools.product((0, 1), SPLITS):
        split = Countdown(seed=seed, count=[2], numbers=[1, 12], target=[1, 30]).split(name)
        found = [split[index] for index in range(500)]
        keys[name] |= {str(problem.answer) for problem in found}
        orders |= {problem.id for problem in found}
    assert len(orders) > sum(map(len, keys.values())) > 100  # 3, 5 and 5, 3 both occur
    for one, other in itertools.combinations(SPLITS, 2):
        assert not keys[one] & keys[other]


def test_problems_are_pinned() -> None:
    """The same on every machine and in every process."""
    env = Countdown(system="You are quick.")
    problem = env.split("train")[0]
    assert problem == Countdown(system="You are quick.").split("train")[0]
    assert problem.id == "countdown/3,42,9=54"
    assert [message["role"] for message in problem.prompt] == ["system", "user"]
    assert problem.prompt[1]["content"] == (
        "Make 54 from the numbers 3, 42 and 9 with +, -, * and /. Use each number exactly once. Parentheses are "
        f"allowed.\n{tagged().instruction}"
    )
    assert problem.answer == Puzzle((3, 9, 42), 54, "any")
    assert str(problem.answer) == "3 9 42 = 54"
    assert env.gold(problem) == "<think>\n9 + (3 + 42) = 54\n</think>\n<answer>9 + (3 + 42)</answer>"
    other = Countdown(seed=1).split("train")
    assert [other[i].id for i in range(9)] != [env.split("train")[i].id for i in range(9)]


def test_counts_are_drawn_alike() -> None:
    """Though three numbers meet the target several times as often as five."""
    split = Countdown(count=[3, 5]).split("train")
    counts = Counter(len(split[index].answer.numbers) for index in range(200))
    assert abs(counts[3] / 200 - 0.5) < 0.106  # three standard deviations


def test_an_echo_of_the_prompt_earns_nothing() -> None:
    env = Countdown()
    problem = env.split("train")[0]
    for text in (problem.prompt[0]["content"], tagged().instruction):
        assert env.grade_text(problem, text, "stop") == Grade(
            0.0, False, "unparseable", {"accuracy": 0.0, "format": 0.0}, None
        )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"count": 3}, r"count is 3; it must be a list of whole numbers"),
        ({"numbers": "19"}, r"numbers is '19'; it must be a list"),
        ({"target": [1.5, 9]}, r"target is \[1.5, 9\]; it must be a list"),
        ({"count": []}, r"count is \[\]; it must be one or more numbers from 2 to 6"),
        ({"count": [1]}, r"count is \[1\]"),
        ({"count": [7]}, r"count is \[7\]"),
        ({"numbers": [9]}, r"numbers is \[9\]; it must be the first and the last number of a range"),
        ({"numbers": [9, 1]}, r"numbers is \[9, 1\]"),
        ({"target": [0, 9]}, r"target is \[0, 9\]"),
        ({"operations": []}, r"operations is \[\]; it must be one or more of"),
        ({"operations": ["+", "^"]}, r"operations is \['\+', '\^'\]"),
        ({"operations": ["+", "+"]}, "each at most once"),
        ({"weights": {"lenient": 1.0}}, "no reward part 'lenient'; the parts are accuracy, format"),
        ({"name": ""}, "name is empty"),
        ({"format": Plain()}, r"the format Plain can't hold an expression; use env\.format"),
        ({"format": Hash()}, "the format Hash can't hold"),
        ({"numbers": [1, 9], "target": [100_000, 100_000]}, r"draws of 3 numbers gave no problem of the train split"),
        ({"numbers": [1, 1], "count": [2], "target": [1, 9]}, r"gave no problem of the \w+ split .* widen env\.target"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Countdown(**settings)


def from_config(*overrides: str) -> Any:
    with initialize_config_dir(CONF, version_base="1.3"):
        return instantiate(compose(overrides=["+env=countdown", *overrides]).env)


def test_config() -> None:
    env = from_config()
    assert env == Countdown()  # the config and the class agree on every default
    assert isinstance(env.format, R1)
    assert env.max_reward == 1.1
    other = from_config("env.count=[2]", "env.operations=['+','-']", "env.format._target_=envs.formats.Boxed")
    assert other == Countdown(count=(2,), operations=("+", "-"), format=Boxed())
    assert other.manifest()["operations"] == ["+", "-"]
