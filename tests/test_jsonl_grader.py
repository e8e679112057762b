"""Rows of JSON with a grader as OpenAI's documentation has it."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from envs.adapters.jsonl_grader import JsonlGrader
from envs.base import Answer
from envs.data.sources import JsonLines
from rlreason.types import Env, Grade

ROWS = [
    {
        "messages": [
            {"role": "system", "content": "Answer with JSON."},
            {"role": "user", "content": f"What is {a} + {a}?"},
        ],
        "reference_answer": 2 * a,
        "best": json.dumps({"answer": 2 * a}),
    }
    for a in range(1, 21)
]

# In the form of https://platform.openai.com/docs/guides/graders: what is asked for may not be there.
GRADER = """
from dataclasses import dataclass

@dataclass
class Found:
    answer: int

def grade(sample: dict, item: dict) -> float:
    if "output_json" not in sample:
        return 0.1 if str(item["reference_answer"]) in sample["output_text"] else 0.0
    found = Found(sample["output_json"]["answer"])
    return 1.0 if found.answer == item["reference_answer"] else 0.0
"""


def made(folder: Path, grader: str = GRADER, rows: list[Any] = ROWS, **settings: Any) -> JsonlGrader:
    (folder / "grader.py").write_text(dedent(grader))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JsonlGrader(JsonLines(str(folder / "rows.jsonl")), str(folder / "grader.py"), **settings)


def grades(env: JsonlGrader, *texts: str) -> list[Grade]:
    return env.grade_texts([Answer(env.split("train")[0], text, "stop") for text in texts])


def test_the_grader_sees_sample_and_item(tmp_path: Path) -> None:
    env = made(tmp_path, gold_key="best")
    assert isinstance(env, Env)
    env.validate()
    problem = env.split("train")[0]
    assert [message["role"] for message in problem.prompt] == ["system", "user"]
    right = problem.answer["reference_answer"]
    found = grades(env, json.dumps({"answer": right}), json.dumps({"answer": 0}), f"It is {right}.", "")
    assert [grade.reward for grade in found] == [1.0, 0.0, 0.1, 0.0]
    assert [grade.correct for grade in found] == [True, False, False, False]
    assert found[2].parts == {"score": 0.1, "raised": 0.0}
    assert len(env.manifest()["grader_sha256"]) == 64


def test_what_the_sample_holds(tmp_path: Path) -> None:
    grader = """
        import json
        def grade(sample, item):
            item["reference_answer"] = -1  # a grader's own business
            choice = sample["choices"][0]
            assert choice["message"] == {"role": "assistant", "content": sample["output_text"]}
            assert sample["output_tools"] == []
            return {"stop": 1.0, "length": 0.5}[choice["finish_reason"]] + ("output_json" in sample)
        """
    env = made(tmp_path, grader, pass_threshold=None)
    problem = env.split("train")[0]
    found = env.grade_texts(
        [Answer(problem, "[1, 2]", "stop"), Answer(problem, "[1, 2", "length"), Answer(problem, "[" * 10**5, "stop")]
    )
    assert [(grade.reward, grade.correct) for grade in found] == [(2.0, None), (0.5, None), (1.0, None)]
    assert problem.answer["reference_answer"] > 0


def test_a_grader_that_fails_on_a_text_gives_nothing_and_the_line_is_named(tmp_path: Path) -> None:
    env = made(tmp_path)
    with pytest.warns(UserWarning, match=r"grader\.py:11: the grader raised KeyError"):
        (grade,) = grades(env, "{}")
    assert (grade.reward, grade.correct, grade.status) == (0.0, False, "unparseable")
    assert grade.parts == {"score": 0.0, "raised": 1.0}
    for returned in ("float('nan')", "None", "'high'"):
        env = made(tmp_path, f"def grade(sample, item):\n    return {returned}")
        with pytest.warns(UserWarning, match="the grader raised"):
            (grade,) = grades(env, "{}")
        assert (grade.reward, grade.status) == (0.0, "unparseable")
        with (
            pytest.warns(UserWarning, match="the grader raised"),
            pytest.raises(ValueError, match="every text makes the scorer"),
        ):
            env.validate()


def test_validation_finds_a_gold_that_is_none(tmp_path: Path) -> None:
    rows = [{**row, "best": json.dumps({"answer": 0})} for row in ROWS]
    with pytest.raises(ValueError, match=r"the gold completion .* should be right"):
        made(tmp_path, rows=rows, gold_key="best").validate()
    with pytest.raises(ValueError, match=r"rows\.jsonl:\d+: the column 'ideal' \(gold_key\) is None"):
        made(tmp_path, gold_key="ideal").validate()


@pytest.mark.parametrize(
    ("grader", "what"),
    [
        ("def grade(sample, item):\n    return 1.0 +\n", r"grader\.py:2: the grader can't be loaded: SyntaxError"),
        ("import json\nimport no_such_module\n", r"grader\.py:2: .* No module named 'no_such_module'"),
        ("def score(sample, item):\n    return 1.0\n", r"grader\.py: the grader has no function grade"),
        ("\ndef grade(sample):\n    return 1.0\n", r"grader\.py:2: grade must take two arguments"),
    ],
)
def test_graders_that_can_not_be_loaded_are_named_by_file_and_line(tmp_path: Path, grader: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        made(tmp_path, grader)


def test_rows_and_files_that_can_not_be_used_are_named(tmp_path: Path) -> None:
    for row, what in (
        ({"text": "?"}, r"rows\.jsonl:21: there is no 'messages' or 'prompt'.*reference_answer"),
        ({"messages": []}, r"rows\.jsonl:21: 'messages' is not a list of messages"),
        ({"messages": [{"role": "user"}]}, r"rows\.jsonl:21: messages\[0\] has no content"),
    ):
        with pytest.raises(ValueError, match=what):
            made(tmp_path, rows=[*ROWS, row])
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere\.py; env\.grader"):
        JsonlGrader(JsonLines(str(tmp_path / "rows.jsonl")), str(tmp_path / "nowhere.py"))
    with pytest.raises(ValueError, match="pass_threshold is nan"):
        made(tmp_path, pass_threshold=float("nan"))
