"""The environment of programs: rows, prompts, grades, partial credit, what the sandbox reports."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from envs.base import Answer
from envs.code import Code
from envs.sandbox import Outcome, Sandbox
from rlreason.manifest import manifest
from rlreason.types import Env

MBPP: list[dict[str, Any]] = [
    {
        "task_id": number,
        "text": f"Write a function to add {number}.",
        "code": f"def add(x):\n    return x + {number}",
        "test_list": [f"assert add({x}) == {x + number}" for x in (1, 2, 3)],
        "test_setup_code": "",
    }
    for number in range(1, 9)
]
HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'def double(x):\n    """Twice x."""\n',
    "canonical_solution": "    return 2 * x\n",
    "entry_point": "double",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}
STDIO = {
    "task_id": "echo",
    "question": "Print what you read, twice.",
    "tests": [{"input": "a\n", "output": "aa\n"}, {"input": "b\n", "output": "bb\n"}],
}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(workers=2) as sandbox:
        yield sandbox


def write(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def env(sandbox: Sandbox, tmp_path: Path) -> Code:
    write(tmp_path / "all.jsonl", MBPP)
    return Code(
        sandbox,
        source="local",
        data_dir=str(tmp_path),
        files={"train": "all.jsonl", "validation": "all.jsonl", "test": "all.jsonl"},
        task_ids={"train": [1, 4], "validation": [5, 6], "test": [7, 8]},
        weights={"accuracy": 1.0, "tests": 0.5, "format": 0.25},
    )


def fenced(program: str) -> str:
    return f"Here it is:\n```python\n{program}\n```\nIt adds."


def test_one_file_is_split_by_task_id(env: Code) -> None:
    assert isinstance(env, Env)
    assert env.manifest()["sizes"] == {"train": 4, "validation": 2, "test": 2}
    problem = env.split("validation")[0]
    assert problem.id == "code/validation/5"
    content = problem.prompt[0]["content"]
    assert content == (
        "Write a function to add 5.\nIt must pass this:\nassert add(1) == 6\n"
        "Answer with a Python program in one block of ```python code."
    )
    env.validate()


@pytest.mark.parametrize(
    ("text", "status", "correct", "parts"),
    [
        (fenced("def add(x):\n    return x + 5"), "ok", True, (1.0, 1.0, 1.0)),
        ("def add(x):\n    return x + 5", "ok", True, (1.0, 1.0, 0.0)),
        (fenced("def add(x):\n    return 6"), "ok", False, (0.0, 1 / 3, 1.0)),  # what the prompt shows, by heart
        (fenced("def add(x):\n    return None"), "ok", False, (0.0, 0.0, 1.0)),
        (fenced("def add(x):\n    while True: pass"), "timeout", False, (0.0, 0.0, 1.0)),
        (fenced("def add(x):\n    return [0] * 10**10"), "timeout", False, (0.0, 0.0, 1.0)),
        (fenced("import os\nos._exit(0)"), "ok", False, (0.0, 0.0, 1.0)),
        (fenced("class A(int):\n    __eq__ = lambda s, o: True\nadd = lambda x: A(0)"), "ok", False, (0.0, 0.0, 1.0)),
        ("", "unparseable", False, (0.0, 0.0, 0.0)),
    ],
)
def test_grades(
    tmp_path: Path, text: str, status: str, correct: bool, parts: tuple[float, float, float], env: Code
) -> None:
    (grade,) = env.grade_texts([Answer(env.split("validation")[0], text, "stop")])
    assert (grade.status, grade.correct) == (status, correct)
    assert tuple(grade.parts[part] for part in ("accuracy", "tests", "format")) == pytest.approx(parts)
    assert grade.reward == pytest.approx(parts[0] + 0.5 * parts[1] + 0.25 * parts[2])


def test_the_harness_failure_is_an_error_without_reward(env: Code, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = Outcome("sandbox_error", 0, 3, "no jail", 0.0, 0.0)
    monkeypatch.setattr(env.sandbox, "run", lambda checks: [failed for _ in checks])
    (grade,) = env.grade_texts([Answer(env.split("test")[0], fenced("def add(x): return x + 7"), "stop")])
    assert (grade.status, grade.reward, grade.correct) == ("error", 0.0, None)


def test_humaneval_and_stdio_problems(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress(f"{json.dumps(HUMANEVAL)}\n{json.dumps(STDIO)}\n".encode()))
    files = {"train": None, "validation": None, "test": "test.jsonl.gz"}
    env = Code(sandbox, source="local", data_dir=str(tmp_path), files=files, name="humaneval")
    double, echo = (env.split("test")[place] for place in range(2))
    assert double.prompt[0]["content"].startswith("Complete this function:\n```python\ndef double(x):\n")
    assert "Input:\na\n\nOutput:\naa\n" in echo.prompt[0]["content"]
    assert "bb" not in echo.prompt[0]["content"]
    grades = env.grade_texts(
        [
            Answer(double, fenced("def double(x):\n    return x + x"), "stop"),
            Answer(double, fenced("def double(x):\n    return x * x * x"), "stop"),
            Answer(echo, fenced("line = input()\nprint(line + line)"), "stop"),
            Answer(echo, fenced("input()\nprint('aa')"), "stop"),
        ]
    )
    assert [grade.correct for grade in grades] == [True, False, True, False]
    assert [grade.parts["tests"] for grade in grades] == [1.0, 0.0, 1.0, 0.5]
    with pytest.raises(ValueError, match="humaneval is for evaluation"):
        env.split("train")


def test_the_run_s_manifest_says_what_contained_the_programs(env: Code) -> None:
    made = json.loads(json.dumps(manifest(seed=0, model={}, env=env.manifest(), root=None)))
    assert made["sandbox"] == env.sandbox.describe()
    assert made["sandbox"]["mode"] in ("full", "no-namespaces")
    assert made["sandbox"]["unsafe"] is False


def test_what_can_not_be_read_is_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    local = {"source": "local", "data_dir": str(tmp_path)}
    with pytest.raises(FileNotFoundError, match=r"train\.jsonl.*env\.data_dir"):
        Code(sandbox, **local)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="hub or local"):
        Code(sandbox, source="auto")
    with pytest.raises(ValueError, match=r"goes with env\.data_dir"):
        Code(sandbox, source="local")
    with pytest.raises(ValueError, match="no reward part 'lenient'"):
        Code(sandbox, weights={"lenient": 1.0})
    for name in ("train", "validation", "test"):
        write(tmp_path / f"{name}.jsonl", [MBPP[0], {"task_id": 2, "text": "?"}])
    with pytest.raises(ValueError, match=r"train\.jsonl:2: it has neither 'entry_point'"):
        Code(sandbox, **local)  # type: ignore[arg-type]
    write(tmp_path / "train.jsonl", [MBPP[0], MBPP[0]])
    with pytest.raises(ValueError, match=r"train\.jsonl:2: a second problem 1"):
        Code(sandbox, **local)  # type: ignore[arg-type]


def test_mbpp_validates(sandbox: Sandbox, shared_data: Path) -> None:
    """Real data: reference solutions are right, those of other problems and empty texts are not."""
    file = dict.fromkeys(("train", "validation", "test"), "mbpp.jsonl")
    ids = {"train": [601, 974], "validation": [511, 600], "test": [11, 510]}
    env = Code(sandbox, source="local", data_dir=str(shared_data / "mbpp"), files=file, task_ids=ids)
    assert env.manifest()["sizes"] == {"train": 374, "validation": 90, "test": 500}
    env.validate()
