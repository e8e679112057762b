"""The adapter for reasoning-gym, with the library itself: its own answers, splits, and what a policy might write."""

from __future__ import annotations

import os
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("reasoning_gym")

from envs.adapters.gym_process import GymProcess
from envs.adapters.reasoning_gym import UNSOUND, ReasoningGym
from rlreason.types import Env, Grade, Problem


def written(answer: str) -> str:
    return f"<think>hm</think><answer>{answer}</answer>"


def graded(env: ReasoningGym, answer: str, problem: Problem | None = None) -> Grade:
    return env.grade_text(problem or env.split("train")[0], written(answer), "stop")


@pytest.fixture(scope="module")
def legs() -> ReasoningGym:
    return ReasoningGym("leg_counting")


@pytest.fixture(scope="module")
def countdown() -> ReasoningGym:
    # Longer than any of its honest scores takes; a bomb is given up after so much CPU time.
    return ReasoningGym("countdown", cpu_seconds=1.0)


def test_the_librarys_problems_and_its_scorer(legs: ReasoningGym) -> None:
    assert isinstance(legs, Env)
    problem = legs.split("train")[0]
    assert "how many legs" in problem.prompt[0]["content"]
    assert problem.prompt[0]["content"].endswith("<answer> answer here </answer>")
    right, wrong = graded(legs, problem.answer), graded(legs, str(int(problem.answer) + 1))
    assert (right.correct, right.reward, right.parts) == (True, 1.2, {"accuracy": 1.0, "format": 1.0})
    assert (wrong.correct, wrong.reward, wrong.answer) == (False, 0.2, str(int(problem.answer) + 1))
    nothing = legs.grade_text(problem, f"It is {problem.answer}.", "stop")
    assert (nothing.correct, nothing.status, nothing.reward) == (False, "unparseable", 0.0)


@pytest.mark.parametrize("dataset", ["leg_counting", "spell_backward", "chain_sum"])
def test_validates(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.base.VALIDATED", 8)
    ReasoningGym(dataset).validate()


def test_problems_depend_on_seed_split_and_index_alone_and_no_question_is_in_two_splits() -> None:
    # Products of one digit by one digit: so few questions that seeds repeat them.
    params = {"min_digits": 1, "max_digits": 1}
    envs = [ReasoningGym("products", params, seed=seed) for seed in (0, 0, 1)]
    questions: list[dict[str, list[str]]] = [
        {
            split: [env.split(split)[index].prompt[0]["content"] for index in range(60)]
            for split in ("train", "validation", "test")
        }
        for env in envs
    ]
    assert questions[0] == questions[1] != questions[2]
    seen = {split: {q for of_one in questions for q in of_one[split]} for split in ("train", "validation", "test")}
    assert all(len(found) > 5 for found in seen.values())
    assert not seen["train"] & seen["validation"]
    assert not (seen["train"] | seen["validation"]) & seen["test"]


def test_partial_credit_is_not_correct(countdown: ReasoningGym) -> None:
    # The library gives 0.05 for an expression with the wrong numbers, and 0.01 for what is none.
    assert graded(countdown, "1 + 1").parts["accuracy"] == 0.05
    grade = graded(countdown, "no idea")
    assert (grade.parts["accuracy"], grade.correct, grade.status) == (0.01, False, "ok")


@pytest.mark.parametrize(
    "answer",
    [
        "__import__('pathlib').Path({path!r}).touch()",
        "().__class__.__base__.__subclasses__()",
        "[open({path!r}, 'w')]",
        "entry['answer'].split()",
    ],
)
@pytest.mark.parametrize("dataset", ["countdown", "simple_integration", "n_queens", "spiral_matrix"])
def test_scorers_that_evaluate_do_not_run_what_was_written(dataset: str, answer: str, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    env = gyms(dataset)
    problem = env.split("train")[0]
    assert graded(env, problem.answer, problem).correct is True  # it is still the scorer that it was
    grade = graded(env, answer.format(path=str(touched)), problem)
    assert grade.correct is False
    assert grade.parts["accuracy"] <= 0.05
    assert not touched.exists()


_gyms: dict[str, ReasoningGym] = {}


def gyms(dataset: str) -> ReasoningGym:
    return _gyms.setdefault(dataset, ReasoningGym(dataset))


def test_an_answer_without_end_is_a_timeout_and_the_next_is_scored(countdown: ReasoningGym) -> None:
    problem = countdown.split("train")[0]
    grade = graded(countdown, "9**9**9**9", problem)
    assert (grade.status, grade.correct, grade.parts["accuracy"]) == ("timeout", False, 0.0)
    assert graded(countdown, problem.answer, problem).correct is True


@pytest.mark.parametrize("answer", ["nan", "-NaN", "inf", "nan + nanj", "(infinity)"])
def test_a_distance_that_is_no_number_earns_nothing(answer: str) -> None:
    # The library's own scorer has min(1.0, exp(-nan)), which is 1.0 in Python.
    env = gyms("complex_arithmetic")
    grade = graded(env, answer)
    assert (grade.correct, grade.parts["accuracy"]) == (False, 0.0)


@pytest.mark.parametrize("answer", ["", "[" * 3000, "9" * 5000, "٣", "\ud800", "\0", "None", "9" * 20_000])
def test_nothing_that_is_written_is_an_error(answer: str, legs: ReasoningGym) -> None:
    grade = graded(legs, answer)
    assert grade.status in ("ok", "unparseable")
    assert grade.correct is False


def test_a_scorer_that_raises_gives_nothing() -> None:
    # coin_flip's raises OverflowError for this one, through Fraction.
    with pytest.warns(UserWarning, match="takes any beginning"):
        env = ReasoningGym("coin_flip")
    grade = graded(env, "1e400")
    assert (grade.status, grade.correct, grade.parts["accuracy"]) == ("unparseable", False, 0.0)


def test_an_answer_that_was_cut_off_does_not_count() -> None:
    from envs.formats import Plain

    env = ReasoningGym("leg_counting", format=Plain())
    problem = env.split("train")[0]
    assert env.grade_text(problem, f"It is {problem.answer}", "stop").correct is True
    assert env.grade_text(problem, f"It is {problem.answer}", "length").status == "unparseable"


def test_a_lost_process_is_replaced() -> None:
    gym = GymProcess("leg_counting", {}, seed=0, size=100, cpu_seconds=2.0, memory_mb=1024)
    question, answer = gym.entry(3)
    assert answer is not None
    os.killpg(gym._running[0]._process.pid, signal.SIGKILL)
    assert gym.score(3, answer) == ("scored", 1.0)
    assert gym.entry(3) == (question, answer)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"dataset": "legs"}, "no data set 'legs'; it has ab, acre"),
        ({"dataset": "leg_counting", "params": {"animals": 3}}, "unexpected keyword argument 'animals'"),
        ({"dataset": "leg_counting", "params": {"min_animals": 9, "max_animals": 2}}, "max_animals"),
        ({"dataset": "leg_counting", "params": {"seed": 3}}, r"set env\.seed"),
        ({"dataset": "leg_counting", "pass_threshold": 0.0}, "pass_threshold is 0"),
        ({"dataset": "leg_counting", "cpu_seconds": 0}, "cpu_seconds 0"),
        ({"dataset": "leg_counting", "weights": {"lenient": 1.0}}, "no reward part 'lenient'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        ReasoningGym(**settings)


NOT_VALIDATED = {
    "boxnet": "no answer of its own",
    "composite": "says nothing without params.datasets",
    "game_of_life_halting": "its scorer takes any answer for right",
    "graph_color": "no answer of its own",
    "propositional_logic": "no answer of its own",
    "rubiks_cube": "no answer of its own",
    "rush_hour": "no answer of its own",
}
"""Data sets that do not validate, and why; the other 99 of 106 do."""


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_all_data_sets_but_these_validate(monkeypatch: pytest.MonkeyPatch) -> None:
    from reasoning_gym.factory import DATASETS

    monkeypatch.setattr("envs.base.VALIDATED", 16)  # enough to meet both answers of a yes-or-no question
    failed = {}
    for dataset in sorted(DATASETS):
        expected = pytest.warns(UserWarning, match=UNSOUND[dataset]) if dataset in UNSOUND else nullcontext()
        try:
            with expected:
                env = ReasoningGym(dataset)
            env.validate()
        except (ValueError, RuntimeError) as error:
            failed[dataset] = str(error)
    assert failed.keys() == NOT_VALIDATED.keys(), failed
