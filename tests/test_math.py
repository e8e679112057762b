"""Rows of mathematics: what is read, what is left out, what is refused, and how completions are graded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from envs.base import Answer
from envs.formats import R1, Boxed
from envs.math import Math
from envs.verify import Item, Verdict
from rlreason.types import Env

ROWS = [
    {"problem": "What is $1 + 1$?", "answer": "2", "solution": "One and one is two.", "level": 1},
    {"problem": "Solve $x^2 = 2$ for positive $x$.", "answer": "\\sqrt{2}"},
    {"problem": "Half of one?", "answer": 0.5},
    {"problem": "A third of 3,000?", "answer": "The answer is \\boxed{1,000}."},
    {"problem": "Where is $x^2 < 4$?", "answer": "(-2, 2)"},
]


def write(folder: Path, train: list[Any], test: list[Any]) -> Path:
    for name, rows in (("train", train), ("test", test)):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_rows_are_read_and_held_out(tmp_path: Path) -> None:
    env = Math(source="local", data_dir=str(write(tmp_path, ROWS, ROWS[:3])), num_validation=2)
    assert isinstance(env, Env)
    splits = {name: [env.split(name)[i] for i in range(env.split(name).size or 0)] for name in ("train", "validation")}
    found = {p.id: p.answer for problems in splits.values() for p in problems}
    golds = ["2", "\\sqrt{2}", "0.5", "1,000", "(-2, 2)"]
    assert found == {f"math/train/{place}": gold for place, gold in enumerate(golds)}
    assert len(splits["validation"]) == 2
    assert env.manifest()["sizes"] == {"train": 3, "validation": 2, "test": 3}
    again = Math(source="local", data_dir=str(tmp_path), num_validation=2)
    assert [p.id for p in splits["validation"]] == [again.split("validation")[i].id for i in range(2)]
    env.validate()
    problem = env.split("test")[1]
    texts = {
        "Its root is $\\boxed{\\frac{2}{\\sqrt 2}}$.": ("ok", True),
        "\\boxed{1.4142136}": ("ok", True),
        "\\boxed{1.41}": ("ok", False),
        "The answer is \\sqrt{2}.": ("unparseable", False),
        "\\boxed{\\prod_{n=1}^{1000000} n}": ("timeout", False),
        "\\boxed{\\sqrt{2}": ("unparseable", False),
    }
    grades = env.grade_texts([Answer(problem, text, "stop") for text in texts])
    assert [(grade.status, grade.correct) for grade in grades] == list(texts.values())
    assert [grade.reward for grade in grades] == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert [grade.parts["lenient"] for grade in grades] == [1.0, 1.0, 0.0, 1.0, 0.0, 0.0]


def test_the_format_extracts_and_the_verifier_compares(tmp_path: Path) -> None:
    env = Math(source="local", data_dir=str(write(tmp_path, ROWS, ROWS)), num_validation=2, format=R1())
    env.validate()
    problem = env.split("test")[4]
    right, wrong = env.grade_texts(
        [
            Answer(problem, "<think>Easy.</think><answer>-2 < x < 2</answer>", "stop"),
            Answer(problem, "<think>Easy.</think><answer>[-2, 2]</answer>", "stop"),
        ]
    )
    assert (right.correct, wrong.correct) == (True, False)


def test_a_verifier_that_fails_gives_an_error_and_no_reward(tmp_path: Path) -> None:
    class Broken:
        def check(self, items: list[Item]) -> list[Verdict]:
            return [Verdict(False, "error")] * len(items)

    folder = str(write(tmp_path, ROWS, ROWS))
    env = Math(source="local", data_dir=folder, num_validation=2, verifier=Broken())  # type: ignore[arg-type]
    (grade,) = env.grade_texts([Answer(env.split("test")[0], "\\boxed{2}", "stop")])
    assert (grade.status, grade.reward, grade.correct) == ("error", 0.0, None)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        ("\\boxed{1} or \\boxed{2}", None),
        ("<think>\\boxed{1}</think>\\boxed{2}", "2"),
        ("The answer is 2.", None),
        ("", None),
    ],
)
def test_boxed(text: str, answer: str | None) -> None:
    assert Boxed().extract(text) == answer
    assert Boxed().score(text) == float(answer is not None)
    assert Boxed().extract(Boxed().gold("Because.", "3")) == "3"


def test_evaluation_sets_have_a_test_split_only(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps({"Body": "Ann has 3.", "Question": "How many?", "Answer": 3.0}))
    env = Math(
        source="local",
        data_dir=str(tmp_path),
        splits={"train": None, "test": "test"},
        problem_key=["Body", "Question"],
        answer_key="Answer",
        name="svamp",
    )
    assert env.split("test")[0].prompt[0]["content"].startswith("Ann has 3. How many?\n")
    assert env.manifest()["sizes"] == {"test": 1}
    with pytest.raises(ValueError, match=r"svamp is for evaluation.*split=test"):
        env.split("train")


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("{", "train.jsonl:2: this is not JSON"),
        ([1], "train.jsonl:2: this is not a JSON object"),
        ({"problem": "?"}, "train.jsonl:2: 'answer' is missing"),
        ({"problem": " ", "answer": "1"}, "train.jsonl:2: 'problem' is missing"),
        ({"problem": "?", "answer": True}, "train.jsonl:2: 'answer' is missing"),
        ({"problem": "?", "answer": "\\frac{1}{"}, r"train.jsonl:2: the right answer .* braces .*skip_unreadable=true"),
    ],
)
def test_malformed_rows_are_named_by_file_and_line(tmp_path: Path, row: Any, what: str) -> None:
    write(tmp_path, [ROWS[0], row, ROWS[2]], ROWS)
    with pytest.raises(ValueError, match=what):
        Math(source="local", data_dir=str(tmp_path), num_validation=1)


def test_rows_whose_answer_can_not_be_read_are_left_out_and_counted_on_request(tmp_path: Path) -> None:
    write(tmp_path, [ROWS[0], {"problem": "?", "answer": "\\frac{1}{"}, ROWS[2]], ROWS)
    env = Math(source="local", data_dir=str(tmp_path), num_validation=1, skip_unreadable=True)
    assert env.manifest()["left_out"] == {"train": 1, "test": 0}
    assert env.manifest()["sizes"] == {"train": 1, "validation": 1, "test": 5}


def test_what_can_not_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train\.jsonl.*env\.data_dir"):
        Math(source="local", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match="hub or local"):
        Math(source="auto")
    with pytest.raises(ValueError, match=r"goes with env\.data_dir"):
        Math(source="local")
    with pytest.raises(ValueError, match="they must name test"):
        Math(splits={"train": "train", "test": None})
    with pytest.raises(ValueError, match=r"lower env\.num_validation"):
        Math(source="local", data_dir=str(write(tmp_path, ROWS, ROWS)), num_validation=5)
