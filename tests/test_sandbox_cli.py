"""``python -m envs.sandbox`` and the rows of data sets: what is read, what is refused, what is printed."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from envs.sandbox import Calls, Sandbox, Stdio
from envs.sandbox.__main__ import main
from envs.sandbox.problems import CodeProblem, extract_code, json_rows, problem_from_row

REPO = Path(__file__).resolve().parent.parent

# In HumanEval's format, and like three of its problems that need care: tests that use a helper of the prompt.
ADD = {
    "task_id": "HumanEval/0",
    "prompt": 'from typing import List\n\n\ndef add(numbers: List[int]) -> int:\n    """ Add them. """\n',
    "entry_point": "add",
    "canonical_solution": "    return sum(numbers)\n",
    "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate([1, 2]) == 3\n"
    "    assert candidate([]) == 0\n",
}
DECODE = {
    "task_id": "HumanEval/1",
    "prompt": 'def encode(s: str):\n    return s[::-1]\n\n\ndef decode(s: str):\n    """ Undo encode. """\n',
    "entry_point": "decode",
    "canonical_solution": "    return s[::-1]\n",
    "test": "def check(candidate):\n    for text in ('', 'abc'):\n        assert candidate(encode(text)) == text\n",
}
MBPP = {
    "task_id": 7,
    "text": "Write a function to double a number.",
    "code": "import math\r\nfactor = 2\r\ndef double(x):\r\n  return helper(x)\r\ndef helper(x): return factor * x",
    "test_setup_code": "",
    "test_list": ["assert double(2) == 4", "assert double(1.5) == math.floor(3.5)"],
}
SANITIZED = {
    "task_id": 8,
    "prompt": "Make the area.",
    "code": "class Box:\n  def __init__(self, x): self.x = x\ndef area(box): return box.x ** 2",
    "test_setup_code": "box = Box(3)",
    "test_imports": ["import math"],
    "test_list": ["assert math.isclose(area(box), 9)"],
}
STDIO = {
    "task_id": "s",
    "question": "Double it.",
    "tests": [{"input": "2", "output": "4"}, {"input": "3\n", "output": "6"}],
}


def jsonl(path: Path, rows: list[Any]) -> Path:
    text = "\n\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


# Rows


def test_a_human_eval_row() -> None:
    problem = problem_from_row("f:1", ADD)
    assert problem.reference == ADD["prompt"] + ADD["canonical_solution"]
    assert problem.check("program") == Calls("program", (ADD["test"] + "\ncheck(add)",), ("add",), ADD["prompt"])
    assert problem.complete("    return 0\n") == ADD["prompt"] + "    return 0\n"


def test_mbpp_rows() -> None:
    problem = problem_from_row("f:1", MBPP)
    assert (problem.task_id, problem.names, problem.setup, problem.complete("x")) == (7, ("double",), "", "x")
    assert problem.check("p") == Calls("p", tuple(MBPP["test_list"]), ("double",), "")
    sanitized = problem_from_row("f:1", SANITIZED)
    assert sanitized.names == ("Box", "area")
    assert sanitized.check("p") == Calls(
        "p", ("import math\n" + SANITIZED["test_list"][0],), ("Box", "area"), "box = Box(3)"
    )


def test_a_row_of_stdin_and_stdout() -> None:
    problem = problem_from_row("f:9", {**STDIO, "task_id": "s"})
    assert problem.check("p") == Stdio("p", (("2", "4"), ("3\n", "6")))
    assert problem_from_row("f:9", {"prompt": "x", "tests": STDIO["tests"]}).task_id == "f:9"


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ([], "not a JSON object"),
        ({}, "neither 'entry_point', 'test_list' nor 'tests'"),
        ({**ADD, "task_id": None}, "'task_id' is neither"),
        ({**ADD, "prompt": ""}, "'prompt' is missing, empty"),
        ({**ADD, "test": 3}, "'test' is missing, empty or not a string"),
        ({**ADD, "test": "def check("}, r"'test' can't be compiled \("),
        ({**ADD, "prompt": "def f("}, "'prompt' can't be compiled"),
        ({**MBPP, "test_list": []}, "'test_list' is not a list, or empty"),
        ({**MBPP, "test_list": [1]}, "'test_list' has an entry that is not a string"),
        ({**MBPP, "test_list": ["assert"]}, "'test_list' can't be compiled"),
        ({**MBPP, "test_list": ["assert other(1)"]}, "the tests use nothing that 'code' defines"),
        ({**MBPP, "code": "def f("}, "'code' can't be compiled"),
        ({**MBPP, "code": None}, "'code' is missing"),
        ({**MBPP, "test_setup_code": 3}, "'test_setup_code' is not a string"),
        ({**STDIO, "tests": "x"}, "'tests' is not a list"),
        ({**STDIO, "tests": [{"input": "1"}]}, "without the strings 'input' and 'output'"),
    ],
)
def test_a_bad_row_is_refused_with_its_place(row: Any, what: str) -> None:
    with pytest.raises(ValueError, match=f"^data.jsonl:3: .*{what}"):
        problem_from_row("data.jsonl:3", row)


FENCED = """Here is a first try:
```python
def f(x): return 0
```
Wait. Better:
```py
def f(x):
    return x
```
It is used like this:
```
print(f(1))
```
"""


@pytest.mark.parametrize(
    ("text", "names", "code"),
    [
        ("def f(x): return 1", ("f",), "def f(x): return 1"),
        (FENCED, ("f",), "def f(x):\n    return x\n"),
        (FENCED, (), "print(f(1))\n"),
        (FENCED, ("g",), "print(f(1))\n"),
        ("a\n~~~\nx = 1\n~~~\n", ("x",), "x = 1\n"),
        ("a\n````python\ns = '''\n```\n'''\n````\nb", ("s",), "s = '''\n```\n'''\n"),
        ("cut off:\n```python\ndef f(x):\n    return 1", ("f",), "def f(x):\n    return 1"),
        ("```python\ndef f(x): return 1\n```\nand\n```python\ndef g(", ("f",), "def f(x): return 1\n"),
        ("  ```python\n  x = 1\n  ```", (), "x = 1\n"),
        ("```\nx = `1`\n``` python\ny\n```", (), "x = `1`\n``` python\ny\n"),
        ("```inline``` and\n```python\nx = 1\n```", (), "x = 1\n"),
        ("```\nasync def f(): ...\n```\n```\nf == 1\n```", ("f",), "async def f(): ...\n"),
        ("```python\r\ndef f(x): return 1\r\n```\r\n", ("f",), "def f(x): return 1\r\n"),
        ("", ("f",), ""),
    ],
)
def test_code_is_taken_out_of_an_answer(text: str, names: tuple[str, ...], code: str) -> None:
    assert extract_code(text, names) == code


@pytest.mark.parametrize(
    "text",
    [
        "`" * 200_000,
        "```\n" * 50_000,
        "".join("`" * n + "\n" for n in range(3, 700)),
        "```\n" + "(" * 200_000,
        "~" * 99,
    ],
)
def test_no_answer_takes_long_or_crashes(text: str) -> None:
    started = time.monotonic()
    extract_code(text, ("f",))
    assert time.monotonic() - started < 2


def test_rows_come_with_their_place(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl.gz", [{"a": "x\u2028y"}, [1]])
    assert list(json_rows(path)) == [(f"{path}:1", {"a": "x\u2028y"}), (f"{path}:3", [1])]
    with pytest.raises(ValueError, match=r"b.jsonl:3: this is not JSON"):
        list(json_rows(jsonl(tmp_path / "b.jsonl", [{}, "{"])))
    (tmp_path / "c.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"c.jsonl.gz: can't be read"):
        list(json_rows(tmp_path / "c.jsonl.gz"))
    with pytest.raises(FileNotFoundError, match=r"there is no file .*d.jsonl"):
        list(json_rows(tmp_path / "d.jsonl"))


def test_every_kind_of_problem_tells_right_from_wrong() -> None:
    with Sandbox() as sandbox:
        for row in (ADD, DECODE, MBPP, SANITIZED):
            problem = problem_from_row("row", row)
            assert problem.reference is not None
            stub = "\n".join(f"def {name}(*args): return None" for name in problem.names)
            right, wrong = sandbox.run([problem.check(problem.reference), problem.check(stub)])
            assert (right.status, wrong.status) == ("ok", "wrong_answer"), (row["task_id"], right, wrong)


def test_a_program_can_not_replace_what_the_tests_use() -> None:
    """The helper that HumanEval's tests call comes from the prompt, though the program redefines it."""
    problem: CodeProblem = problem_from_row("row", DECODE)
    cheat = "def encode(s): return s\ndef decode(s): return s"
    with Sandbox() as sandbox:
        assert sandbox.run([problem.check(cheat)])[0].status == "wrong_answer"


# The command


SAMPLES = [
    {"task_id": "HumanEval/0", "completion": "    return sum(numbers)\n"},
    {"task_id": "HumanEval/0", "completion": "    return 3\n"},
    {"task_id": "HumanEval/1", "solution": "Sure:\n```python\ndef decode(s):\n    return s[::-1]\n```\nDone."},
    {"task_id": "7", "completion": "def double(x): return 2 * x"},
    {"task_id": 7, "solution": "def double(x):\n while True: pass"},
    {"task_id": "s", "solution": "print(2 * int(input()))"},
]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "envs.sandbox", *map(str, arguments)],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_scores_as_json(tmp_path: Path) -> None:
    problems = jsonl(tmp_path / "problems.jsonl.gz", [ADD, DECODE, MBPP, STDIO])
    samples = jsonl(tmp_path / "samples.jsonl", SAMPLES)
    done = run("score", "--problems", problems, "--samples", samples, "--json", "--timeout", 0.5, "--workers", 2)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert set(result) == {"pass@1", "per_second", "samples"}
    # Problem by problem: 1 of 2, 1 of 1, 1 of 2, 1 of 1.
    assert result["pass@1"] == pytest.approx((1 / 2 + 1 + 1 / 2 + 1) / 4)
    assert result["per_second"] > 0
    statuses = ["ok", "wrong_answer", "ok", "ok", "timeout", "ok"]
    ids = ["HumanEval/0", "HumanEval/0", "HumanEval/1", 7, 7, "s"]
    assert result["samples"] == [
        {"task_id": task_id, "status": status, "passed": status == "ok"}
        for task_id, status in zip(ids, statuses, strict=True)
    ]


def test_scores_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems = jsonl(tmp_path / "problems.jsonl", [ADD, DECODE])
    samples = jsonl(tmp_path / "samples.jsonl.gz", SAMPLES[:3])
    assert main(["score", "--problems", str(problems), "--samples", str(samples)]) == 0
    *rows, last = capsys.readouterr().out.splitlines()
    assert [row.split("\t")[:3] for row in rows] == [
        ["HumanEval/0", "ok", "1/1"],
        ["HumanEval/0", "wrong_answer", "0/1"],
        ["HumanEval/1", "ok", "1/1"],
    ]
    assert rows[1].endswith("AssertionError in: assert candidate([]) == 0")
    assert re.fullmatch(r"pass@1 0\.7500 \(2 problems, 3 samples, \d+/s\)", last)


@pytest.mark.parametrize(
    ("problems", "samples", "message"),
    [
        ([ADD], [{"task_id": "HumanEval/9", "completion": ""}], r"samples.jsonl:1: .*has no problem 'HumanEval/9'"),
        ([ADD], [SAMPLES[0], {"task_id": "HumanEval/0"}], r"samples.jsonl:3: neither 'completion' nor 'solution'"),
        ([ADD], [{"completion": ""}], r"samples.jsonl:1: a sample is an object with 'task_id'"),
        ([ADD], ["nonsense"], r"samples.jsonl:1: this is not JSON"),
        ([ADD], [], "has no samples"),
        ([ADD, {**ADD, "test": ""}], SAMPLES[:1], r"problems.jsonl:3: 'test' is missing"),
        ([ADD, ADD], SAMPLES[:1], r"problems.jsonl:3: a second problem 'HumanEval/0'"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    problems: list[Any],
    samples: list[Any],
    message: str,
) -> None:
    monkeypatch.setattr("envs.sandbox.__main__.Sandbox", None)
    first, second = jsonl(tmp_path / "problems.jsonl", problems), jsonl(tmp_path / "samples.jsonl", samples)
    assert main(["score", "--problems", str(first), "--samples", str(second), "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(f"^error: .*{message}", captured.err)


def test_a_missing_file_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "--problems", str(tmp_path / "no.jsonl"), "--samples", "x"]) == 2
    assert "there is no file" in capsys.readouterr().err


def test_the_doctor_shows_every_attack() -> None:
    done = run("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^libseccomp   2\.", done.stdout, re.MULTILINE)
    assert re.search(r"^mode auto takes (full|no-namespaces)$", done.stdout, re.MULTILINE)
    assert len(re.findall(r"^  ok    ", done.stdout, re.MULTILINE)) >= 20
    assert "an honest program runs: ok" in done.stdout


def test_the_benchmark_prints_json() -> None:
    done = run("bench", "--json", "--workers", 1, "--seconds", 0.2)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result) == {"mode", "workers", "programs_per_second", "checks_per_second", "jail_start_ms"}
    assert result["workers"] == 1
