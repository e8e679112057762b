"""Rows of mathematics: what is read, what is left out, what is refused. Grading is test_numbers' and test_envs'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from envs.math import Math
from rlreason.types import Env

ROWS = [
    {"problem": "What is $1 + 1$?", "answer": "2", "solution": "One and one is two.", "level": 1},
    {"problem": "Solve $x^2 = 2$ for positive $x$.", "answer": "\\sqrt{2}"},
    {"problem": "Half of one?", "answer": "0.5"},
    {"problem": "A third of 3,000?", "answer": "1,000"},
    {"problem": "Ten less twelve?", "answer": "-2"},
]


def write(folder: Path, train: list[Any], test: list[Any]) -> Path:
    for name, rows in (("train", train), ("test", test)):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_rows_with_numeric_answers_are_read_and_the_others_counted(tmp_path: Path) -> None:
    env = Math(source="local", data_dir=str(write(tmp_path, ROWS, ROWS[:3])), num_validation=2)
    assert isinstance(env, Env)
    splits = {name: [env.split(name)[i] for i in range(env.split(name).size or 0)] for name in ("train", "validation")}
    found = {p.id: p.answer for problems in splits.values() for p in problems}
    assert found == {"math/train/0": "2", "math/train/2": "1/2", "math/train/3": "1000", "math/train/4": "-2"}
    assert len(splits["validation"]) == 2
    assert env.manifest()["left_out"] == {"train": 1, "test": 1}
    assert env.manifest()["sizes"] == {"train": 2, "validation": 2, "test": 2}
    again = Math(source="local", data_dir=str(tmp_path), num_validation=2)
    assert [p.id for p in splits["validation"]] == [again.split("validation")[i].id for i in range(2)]
    env.validate()
    problem = env.split("test")[0]
    right = env.grade_text(problem, "<think>Easy.</think><answer>2.0</answer>", "stop")
    wrong = env.grade_text(problem, "<think>Easy.</think><answer>3</answer>", "stop")
    assert (right.correct, wrong.correct) == (True, False)
    assert right.reward == env.max_reward


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("{", "train.jsonl:2: this is not JSON"),
        ([1], "train.jsonl:2: this is not a JSON object"),
        ({"problem": "?"}, "train.jsonl:2: 'answer' is missing"),
        ({"problem": " ", "answer": "1"}, "train.jsonl:2: 'problem' is missing"),
    ],
)
def test_malformed_rows_are_named_by_file_and_line(tmp_path: Path, row: Any, what: str) -> None:
    write(tmp_path, [ROWS[0], row, ROWS[2]], ROWS)
    with pytest.raises(ValueError, match=what):
        Math(source="local", data_dir=str(tmp_path), num_validation=1)


def test_what_can_not_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train\.jsonl.*env\.data_dir"):
        Math(source="local", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match="hub or local"):
        Math(source="auto")
    with pytest.raises(ValueError, match=r"goes with env\.data_dir"):
        Math(source="local")
    with pytest.raises(ValueError, match=r"lower env\.num_validation"):
        Math(source="local", data_dir=str(write(tmp_path, ROWS, ROWS)), num_validation=4)
