"""Jagged: comparisons and their traps, arithmetic with working and at once, splits, and settings that make no sense."""

from __future__ import annotations

import itertools
import re
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from envs.arithmetic import Arithmetic
from envs.base import SPLITS
from envs.formats import PARTS, R1, Boxed, Format, Hash, Plain
from envs.jagged import AtOnce, Jagged
from rlreason.types import Problem

CONF = str(Path(__file__).resolve().parent.parent / "conf")
CLAIM = re.compile(r"(-?\d+) ([-+*]) (-?\d+) = (-?\d+)")
COMPARE = Jagged(tasks=("compare",))


def problems(env: Jagged, split: str, count: int = 400) -> list[Problem]:
    found = env.split(split)
    return [found[index] for index in range(count if found.size is None else found.size)]


def named(problem: Problem) -> tuple[str, str]:
    """The two numbers of a comparison as the prompt names them."""
    match = re.match(r"Which number is larger, (\d+\.\d+) or (\d+\.\d+)\?", problem.prompt[0]["content"])
    assert match
    return match[1], match[2]


def sums(split: str = "train") -> list[Problem]:
    return problems(Jagged(tasks=("arithmetic",), operations=("+", "-", "*")), split, 300)


# Comparisons


def test_larger_is_larger_and_traps_are_traps() -> None:
    env = Jagged(tasks=("compare",), max_decimals=4, max_whole=3)
    traps = first = 0
    lengths = set()
    for problem in problems(env, "train", 2000):
        one, other = named(problem)
        assert Decimal(problem.answer) == max(Decimal(one), Decimal(other))
        assert problem.answer in (one, other)
        (whole, decimals), (same, more) = one.split("."), other.split(".")
        assert whole == same
        assert 1 <= int(whole) <= 3
        assert len(decimals) != len(more)
        assert "0" not in (decimals[-1], more[-1])
        as_versions = {int(decimals): one, int(more): other}  # 3.04 and 3.4 are the same version
        assert problem.meta["trap"] == (as_versions[max(as_versions)] != problem.answer and len(as_versions) == 2)
        assert problem.meta["decimals"] == sorted((len(decimals), len(more)))
        lengths.add(tuple(problem.meta["decimals"]))
        traps += problem.meta["trap"]
        first += one == problem.answer
    assert lengths == {(1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4)}
    assert abs(traps / 2000 - 0.5) < 0.05  # four standard errors
    assert abs(first / 2000 - 0.5) < 0.05


def test_9_11_against_9_9() -> None:
    env = Jagged(tasks=("compare",), max_whole=9, trap_share=1.0)
    found = {p.id: p for p in problems(env, "test", 5000)}
    one, other = found["jagged/compare/9.11/9.9"], found["jagged/compare/9.9/9.11"]
    assert one.prompt[0]["content"] == f"Which number is larger, 9.11 or 9.9?\n{R1().instruction}"
    assert other.prompt[0]["content"].startswith("Which number is larger, 9.9 or 9.11?\n")
    solution = (
        "Both have 9 before the point. With 2 decimals they are 9.11 and 9.90.\n11 is less than 90, so 9.9 is larger."
    )
    assert one.meta == other.meta == {"task": "compare", "trap": True, "decimals": [1, 2], "solution": solution}
    assert env.gold(one) == env.gold(other) == f"<think>\n{solution}\n</think>\n<answer>9.9</answer>"
    for text, correct in {"9.9": True, "9.90": True, "9.11": False, "9.9 or 9.11": False, "9": False}.items():
        assert env.grade_text(one, f"<think>a</think><answer>{text}</answer>", "stop").correct is correct


@pytest.mark.parametrize(("share", "shorter_wins"), [(0.0, (0.05, 0.15)), (0.5, (0.5, 0.6)), (1.0, (1.0, 1.0))])
def test_how_much_the_length_gives_away(share: float, shorter_wins: tuple[float, float]) -> None:
    found = problems(Jagged(tasks=("compare",), trap_share=share), "train", 1000)
    assert abs(sum(p.meta["trap"] for p in found) / 1000 - share) < 0.07
    wins = sum(p.answer == min(named(p), key=len) for p in found) / 1000
    assert shorter_wins[0] <= wins <= shorter_wins[1]


# Arithmetic


def test_arithmetic_is_worked_out_right() -> None:
    seen = set()
    for problem in sums():
        match = re.match(r"What is ((\d+) ([-+*]) (\d+))\?", problem.prompt[0]["content"])
        assert match
        a, b = int(match[2]), int(match[4])
        assert int(problem.answer) == {"+": a + b, "-": a - b, "*": a * b}[match[3]]
        assert problem.meta["operations"] == [match[3]]
        assert problem.meta["digits"] == 2
        claims = CLAIM.findall(problem.meta["solution"])
        for one, operation, other, result in claims:
            x, y = int(one), int(other)
            assert int(result) == {"+": x + y, "-": x - y, "*": x * y}[operation]
        assert claims[-1][3] == problem.answer
        seen.add(match[3])
    assert seen == {"+", "-", "*"}


def test_arithmetic_is_that_of_the_other_environment() -> None:
    theirs, ours = Arithmetic(digits=2, seed=3), Jagged(tasks=("arithmetic",), operations=("+",), seed=3)
    for name in SPLITS:
        assert ours.split(name).size == theirs.split(name).size
        assert [f"jagged/{theirs.split(name)[i].id}" for i in range(50)] == [p.id for p in problems(ours, name)[:50]]


def test_gold_by_hand() -> None:
    found = {p.id: p for name in SPLITS for p in problems(Jagged(tasks=("arithmetic",), operations=("+",)), name)}
    problem = found["jagged/arithmetic/47+38"]
    assert Jagged().gold(problem) == (
        "<think>\n47 + 38: 40 + 30 = 70, 7 + 8 = 15, 70 + 15 = 85\n</think>\n<answer>85</answer>"
    )
    assert Jagged(working=False).gold(problem) == "85"


# At once


@pytest.mark.parametrize(
    ("text", "correct"),
    [
        ("85", True),
        (" 85", True),
        ("\n85.\n", True),
        ("85.0", True),
        ("86", False),
        ("The answer is 85.", False),
        ("40 + 30 = 70, 7 + 8 = 15, 85", False),
        ("47 + 38 = 85", False),
        ("85, since 40 + 30 = 70", False),
        ("85 or 86", False),
        ("85\n86", False),
        ("<think>a</think><answer>85</answer>", False),
        ("\n\n85", False),  # lines of nothing are tokens too
        ("0085", False),
        ("+85", False),
        ("170/2", False),
        ("8.5e1", False),
        ("nan", False),
        ("٨٥", False),
        ("８５", False),
        ("8" * 5000, False),
        ("", False),
    ],
)
def test_at_once_is_the_number_and_nothing_else(text: str, correct: bool) -> None:
    env = Jagged(working=False)
    problem = Problem("p", [{"role": "user", "content": "What is 47 + 38?"}], "85", {"task": "arithmetic"})
    grade = env.grade_text(problem, text, "stop")
    assert (grade.correct, grade.parts["accuracy"]) == (correct, float(correct))
    assert grade.reward == (1.2 if correct else 0.2 if text == "86" else 0.0)
    assert env.grade_text(problem, text, "length").correct is (
        correct and not text.strip()[-1].isdigit() and text[-1] == "\n"
    )


def test_not_even_the_prompt_may_stand_before_an_answer_at_once() -> None:
    env = Jagged(working=False, weights=dict.fromkeys(PARTS, 1.0))
    for problem in problems(env, "test", 50):
        content = problem.prompt[0]["content"]
        for echo, between in itertools.product((content, content.split("\n")[0]), ("", " ", "\n")):
            grade = env.grade_text(problem, f"{echo}{between}{problem.answer}", "stop")
            assert (grade.correct, grade.status, grade.answer) == (False, "unparseable", None)
            assert grade.parts == {"accuracy": 0.0, "lenient": 1.0, "format": 0.0}
            assert grade.reward == 1.0
            assert env.grade_text(problem, echo, "stop").reward == 0.0


def test_working_changes_the_prompt_and_nothing_else() -> None:
    for one, other in zip(problems(Jagged(), "test"), problems(Jagged(working=False), "test"), strict=True):
        assert (one.id, one.answer, one.meta) == (other.id, other.answer, other.meta)
        question, instruction = other.prompt[0]["content"].split("\n")
        assert one.prompt[0]["content"] == f"{question}\n{R1().instruction}"
        assert instruction == "Answer at once: write the number and nothing else."


@pytest.mark.parametrize("piece", ["0", "9", ",999", " ", "\n", "1,", "-", "."])
def test_time_is_linear_on_hostile_text(piece: str) -> None:
    start = time.process_time()
    assert AtOnce().score("1" + piece * (200_000 // len(piece)) + "x") == 0.0
    assert time.process_time() - start < 1


# What cannot be bought


def test_hedges_and_cut_off_answers() -> None:
    env = Jagged()
    for problem in problems(env, "test", 40):
        gold, wrong = problem.answer, f"{problem.answer}1"
        for text in (
            f"<think>a</think><answer>{gold}</answer><answer>{wrong}</answer>",
            f"<think>a</think><answer>{gold} or {wrong}</answer>",
            f"<think>a</think><answer><answer>{gold}</answer></answer>",
            f"<think>a</think>{gold}",
            f"<think>a</think><answer>{gold}e5000</answer>",
            problem.prompt[0]["content"],
        ):
            assert env.grade_text(problem, text, "stop").correct is False, text
        assert env.grade_text(problem, f"<think>a</think><answer>{gold}", "length").correct is False


def test_at_least_a_thousand_grades_a_second() -> None:
    for env in (Jagged(), Jagged(working=False)):
        found = [(p, env.gold(p)) for p in problems(env, "test", 100)] * 10
        start = time.process_time()
        assert all(env.grade_text(problem, text, "stop").correct for problem, text in found)
        assert time.process_time() - start < 1.0


# Splits


def test_a_pair_is_in_one_split_in_either_order() -> None:
    where: dict[frozenset[str], set[str]] = {}
    orders: set[tuple[str, str]] = set()
    for env in (
        Jagged(tasks=("compare",), max_whole=1),
        Jagged(tasks=("compare",), max_whole=2, seed=1, trap_share=1.0),
    ):
        for name in SPLITS:
            for problem in problems(env, name, 1000):
                where.setdefault(frozenset(named(problem)), set()).add(name)
                orders.add(named(problem))
    assert all(len(names) == 1 for names in where.values())
    assert sum(pair[::-1] in orders for pair in orders) > 300


def test_seeds_and_turns() -> None:
    one, same, other = (problems(Jagged(seed=seed), "train", 100) for seed in (1, 1, 2))
    assert one == same
    assert [p.id for p in one] != [p.id for p in other]
    assert [p.meta["task"] for p in one[:4]] == ["compare", "arithmetic"] * 2
    pinned = ["compare/2.5/2.49", "arithmetic/76*92", "compare/11.02/11.3", "arithmetic/42+43"]
    assert [p.id for p in problems(Jagged(), "test", 4)] == [f"jagged/{id}" for id in pinned]
    assert Jagged().split("train").size is None
    small = Jagged(digits=1, operations=("+",))  # 14 test problems, which come again between the comparisons
    found = [p.id for p in problems(small, "test", 56) if p.meta["task"] == "arithmetic"]
    assert found[:14] == found[14:]
    assert len(set(found)) == 14


# Formats and settings


@pytest.mark.parametrize("format", [R1(), Plain(), Hash(), Boxed()], ids=lambda format: type(format).__name__)
def test_validates(format: Format) -> None:
    Jagged(format=format).validate()
    Jagged(format=format, weights={"accuracy": 0.5, "lenient": 0.5}).validate()


@pytest.mark.parametrize(
    "settings",
    [
        {"working": False},
        {"working": False, "weights": {"accuracy": 0.5, "lenient": 0.5}},
        {"tasks": ("compare",), "max_whole": 1, "max_decimals": 6, "trap_share": 0.0},
        {"tasks": ("arithmetic",), "operations": ("-",), "digits": 6},
    ],
    ids=str,
)
def test_other_settings_validate(settings: dict[str, Any]) -> None:
    Jagged(**settings).validate()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tasks": ()}, r"tasks is \[\]; it must be one or more of \['compare', 'arithmetic'\]"),
        ({"tasks": ("compare", "compare")}, "each at most once"),
        ({"operations": ("+", "/")}, r"operations is \['\+', '/'\]; it must be one or more of \['\+', '-', '\*'\]"),
        ({"max_whole": 0}, "max_whole is 0"),
        ({"max_decimals": 1}, "max_decimals is 1; it must lie between 2 and 6"),
        ({"trap_share": 1.5}, "trap_share is 1.5; it must lie between 0 and 1"),
        ({"digits": 7}, "digits is 7; it must lie between 1 and 6"),
        ({"working": False, "format": Plain()}, r"format is Plain\(.*no effect with working=false"),
        ({"name": ""}, "name is empty"),
        ({"weights": {"length": 1.0}}, "no reward part 'length'"),
    ],
)
def test_refuses(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Jagged(**settings)


def from_config(*overrides: str) -> Any:
    with initialize_config_dir(CONF, version_base="1.3"):
        return instantiate(compose(overrides=["+env=jagged", *overrides]).env)


def test_config() -> None:
    assert from_config() == Jagged()
    assert from_config("env.working=false", "env.tasks=[compare]") == Jagged(working=False, tasks=("compare",))
    assert from_config("env.format._target_=envs.formats.Hash").format == Hash()
    with pytest.raises(Exception, match="unexpected keyword argument 'traps'"):
        from_config("+env.traps=1")


def test_manifest() -> None:
    manifest = Jagged(working=False).manifest()
    assert manifest["format"]["type"] == "AtOnce"
    assert manifest["sizes"] == dict.fromkeys(SPLITS)
