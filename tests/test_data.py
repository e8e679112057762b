"""Data sets: demonstrations and comparisons, from generators, files, the hub and run folders."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from envs.arithmetic import Arithmetic
from envs.base import Answer
from envs.data.gsm8k_solutions import Gsm8kSolutions
from envs.data.worked import WorkedArithmetic, _Step, _steps
from envs.formats import R1
from envs.gsm8k import Gsm8k

CONF = str(Path(__file__).resolve().parent.parent / "conf")


def data_config(*overrides: str) -> Any:
    """``conf/data`` composed as an entry point would."""
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(overrides=[f"+{overrides[0]}", *overrides[1:]]).data


# Worked arithmetic

CLAIM = re.compile(r"(-?\d+) ([-+*/]) (-?\d+) = (-?\d+)")
ALL = Arithmetic(operations=("+", "-", "*", "/"), digits=2, terms=4, format=R1())


def is_true(claim: tuple[str, str, str, str]) -> bool:
    a, operation, b, result = claim
    x, y, z = int(a), int(b), int(result)
    return {"+": x + y, "-": x - y, "*": x * y}[operation] == z if operation != "/" else x == y * z


def worked(expression: str) -> list[str]:
    """The lines of thought for an expression, without slips and checks."""
    return [step.line(step.result) for step in _steps(expression)]


@pytest.mark.parametrize(
    ("expression", "lines"),
    [
        ("3 + 5 - 2", ["3 + 5 = 8", "8 - 2 = 6"]),
        ("47 + 38 + 0", ["47 + 38: 40 + 30 = 70, 7 + 8 = 15, 70 + 15 = 85", "85 + 0 = 85"]),
        ("85 - 47", ["85 - 47: 85 - 40 = 45, 45 - 7 = 38"]),
        ("2 + 3 * 4 - 8 / 2", ["3 * 4 = 12", "8 / 2 = 4", "2 + 12 = 14", "14 - 4 = 10"]),
        ("8 - 5 - 2", ["8 - 5 = 3", "3 - 2 = 1"]),  # from left to right: not 8 - 3
        ("12 / 6 * 2", ["12 / 6 = 2", "2 * 2 = 4"]),
        ("3 - 9 + 7", ["3 - 9: 9 - 3 = 6, 0 - 6 = -6", "-6 + 7: 7 - 6 = 1"]),
        ("3 - 9 - 7", ["3 - 9: 9 - 3 = 6, 0 - 6 = -6", "-6 - 7: 6 + 7 = 13, 0 - 13 = -13"]),
        ("47 * 6", ["47 * 6: 40 * 6 = 240, 7 * 6 = 42, 240 + 42 = 282"]),
        ("6 * 40", ["6 * 40 = 240"]),
        ("84 / 7", ["84 / 7: 70 / 7 = 10, 14 / 7 = 2, 10 + 2 = 12"]),
    ],
)
def test_steps(expression: str, lines: list[str]) -> None:
    assert worked(expression) == lines


def test_every_pair_of_operands_is_worked_out_rightly() -> None:
    for a, b in itertools.product([*range(0, 130, 3), 999, 1001], repeat=2):
        for operation, value in (("+", a + b), ("-", a - b), ("*", a * b)):
            lines = worked(f"{a} {operation} {b}")
            assert len(lines) == 1
            claims = CLAIM.findall(lines[0])
            assert all(map(is_true, claims)), lines
            assert int(claims[-1][3]) == value, lines
        if b:
            claims = CLAIM.findall(worked(f"{a * b} / {b}")[0])
            assert all(map(is_true, claims))
            assert int(claims[-1][3]) == a


def test_only_planted_slips_are_false_and_each_is_found() -> None:
    data = WorkedArithmetic(ALL, num_train=300, num_validation=20, check_rate=0.3, error_rate=0.2)
    steps = slips = checks = 0
    for index, shown in enumerate(data.split("train")):
        problem = ALL.split("train")[index]
        assert shown.messages[:-1] == problem.prompt
        text = shown.messages[-1]["content"]
        verdict = ALL.grade_text(problem, text, "stop")
        assert (verdict.correct, verdict.reward) == (True, 1.2)
        lines = text.removeprefix("<think>\n").partition("\n</think>")[0].split("\n")
        for line, after in itertools.pairwise([*lines, ""]):
            claims = CLAIM.findall(line)
            assert claims
            wrong = [claim for claim in claims if not is_true(claim)]
            if after.endswith("Wait, that is wrong."):
                assert wrong == claims[-1:]  # the slip is the line's result
                slips += 1
            else:
                assert wrong == []
            checks += line.endswith("Right.")
            steps += not line.startswith("Let me check")
        assert CLAIM.findall(lines[-1].removeprefix("Let me check: "))
    steps -= slips  # a slip is one step in two lines
    assert steps == 300 * 3
    assert abs(slips / steps - 0.2) < 0.05  # four standard errors
    assert abs(checks / (steps - slips) - 0.3) < 0.07


def test_a_slip_and_a_check_by_hand() -> None:
    total = _Step(12, "+", 7, [(12, "+", 7, 19)])
    assert total.check(19) == "Let me check: 19 - 7 = 12. Right."
    assert total.check(20) == "Let me check: 20 - 7 = 13, not 12. Wait, that is wrong."
    difference = _Step(3, "-", 9, [(9, "-", 3, 6), (0, "-", 6, -6)])
    assert difference.line(-7) == "3 - 9: 9 - 3 = 6, 0 - 6 = -7"
    assert difference.check(-7) == "Let me check: -7 + 9 = 2, not 3. Wait, that is wrong."
    product = _Step(6, "*", 7, [(6, "*", 7, 42)])
    assert product.check(42) == "Let me check: 7 * 6 = 42. Right."
    assert product.check(52) == "Let me check: 7 * 6 = 42, not 52. Wait, that is wrong."
    quotient = _Step(8, "/", 2, [(8, "/", 2, 4)])
    assert quotient.check(4) == "Let me check: 4 * 2 = 8. Right."
    assert quotient.check(5) == "Let me check: 5 * 2 = 10, not 8. Wait, that is wrong."


def test_worked_splits_are_the_environments() -> None:
    env = Arithmetic(operations=("+", "-"), digits=1, terms=3, format=R1())
    size = env.split("train").size
    assert size is not None
    data = WorkedArithmetic(env, num_train=size, num_validation=50)
    assert [shown.source for shown in data.split("train")] == [env.split("train")[i].id for i in range(size)]
    held_out = {shown.source for shown in data.split("validation")}
    assert held_out == {env.split("validation")[i].id for i in range(50)}
    assert data.manifest()["sizes"] == {"train": size, "validation": 50}
    again = WorkedArithmetic(env, num_train=20, num_validation=5)
    assert again.split("train") == data.split("train")[:20]
    other = WorkedArithmetic(env, num_train=20, num_validation=5, seed=1)
    assert other.split("train") != again.split("train")
    with pytest.raises(ValueError, match=f"num_train is {size + 1}.*only {size}"):
        WorkedArithmetic(env, num_train=size + 1, num_validation=50)


def test_worked_without_rates_has_neither_checks_nor_slips() -> None:
    data = WorkedArithmetic(ALL, num_train=50, num_validation=1, check_rate=0, error_rate=0)
    assert not any("check" in shown.messages[-1]["content"] for shown in data.split("train"))
    sure = WorkedArithmetic(ALL, num_train=50, num_validation=1, check_rate=1, error_rate=0)
    assert all(shown.messages[-1]["content"].count("Right.") == 3 for shown in sure.split("train"))


def test_worked_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="word problems are not worked"):
        WorkedArithmetic(Arithmetic(word_problem_steps=2), 10, 10)
    with pytest.raises(ValueError, match=r"check_rate is 1\.5"):
        WorkedArithmetic(ALL, 10, 10, check_rate=1.5)
    with pytest.raises(ValueError, match="num_validation is 0"):
        WorkedArithmetic(ALL, 10, 0)
    with pytest.raises(ValueError, match="no split 'test'"):
        WorkedArithmetic(ALL, 1, 1).split("test")


# GSM8K's solutions


def test_gsm8k_solutions_by_hand(tmp_path: Path) -> None:
    rows = [
        f'{{"question": "{n} + 1?", "answer": "{n} + 1 = <<{n}+1={n + 1}>>{n + 1}\\n#### {n + 1}"}}' for n in range(6)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "test.jsonl").write_text(rows[0], encoding="utf-8")
    env = Gsm8k(source="local", data_dir=str(tmp_path), num_validation=2, format=R1("Use tags."))
    data = Gsm8kSolutions(env, num_validation=1)
    shown = next(shown for shown in data.split("train") if "\n" in shown.messages[0]["content"])
    number = int(shown.messages[0]["content"].split()[0])
    assert shown.messages == [
        {"role": "user", "content": f"{number} + 1?\nUse tags."},
        {
            "role": "assistant",
            "content": f"<think>\n{number} + 1 = {number + 1}\n</think>\n<answer>{number + 1}</answer>",
        },
    ]
    assert shown.source == f"gsm8k/train/{number}"
    assert [shown.source for shown in data.split("validation")] == [env.split("validation")[0].id]
    assert {shown.source for shown in data.split("train")} == {env.split("train")[i].id for i in range(4)}
    assert (data.name, data.manifest()["sizes"]) == ("gsm8k-solutions", {"train": 4, "validation": 1})


def test_gsm8k_solutions_earn_everything(shared_data: Path) -> None:
    env = Gsm8k(source="local", data_dir=str(shared_data / "gsm8k"))
    data = Gsm8kSolutions(env, num_train=50, num_validation=200)
    assert len(Gsm8kSolutions(env).split("train")) == 7473 - 200
    answers = [
        Answer(env.split("train")[i], shown.messages[-1]["content"], "stop")
        for i, shown in enumerate(data.split("train"))
    ]
    assert {grade.reward for grade in env.grade_texts(answers)} == {env.max_reward}


def test_generated_problems_are_never_taken_for_gsm8k() -> None:
    env = Gsm8k(source="synthetic", num_validation=10)
    with pytest.raises(ValueError, match=r"num_train is null.*no end"):
        Gsm8kSolutions(env, num_validation=10)
    data = Gsm8kSolutions(env, num_validation=10, num_train=30)
    assert data.name == "gsm8k-synthetic-solutions"
    assert len(data.split("train")) == 30


# Configs


@pytest.mark.parametrize(
    ("overrides", "name", "sizes"),
    [
        (["data=worked"], "worked", {"train": 1000, "validation": 100}),
        (
            ["data=gsm8k_solutions", "data.env.source=synthetic", "data.num_train=20"],
            "gsm8k-synthetic-solutions",
            {"train": 20, "validation": 100},
        ),
    ],
)
def test_configs_make_data_sets(overrides: list[str], name: str, sizes: dict[str, int]) -> None:
    data = instantiate(data_config(*overrides))
    assert (data.name, data.manifest()["sizes"]) == (name, sizes)
    assert {split: len(data.split(split)) for split in sizes} == sizes
    json.dumps(data.manifest(), allow_nan=False)
