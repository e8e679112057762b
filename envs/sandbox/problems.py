"""Rows of code data sets as problems, and programs out of what a model answered.

Read: HumanEval (``prompt``, ``entry_point``, ``test``), MBPP (``text`` or ``prompt``, ``code``, ``test_list``) and
problems of stdin and stdout (``question`` or ``prompt``, ``tests`` of ``input`` and ``output``). Left out: the hub,
which ``envs.rows`` reads.
"""

from __future__ import annotations

import ast
import gzip
import re
import textwrap
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.jsonl import json_lines, malformed
from envs.sandbox.checks import Calls, Check, Stdio

EXAMPLES = (
    '{"task_id": "HumanEval/0", "prompt": "def f(x): ...", "entry_point": "f", "test": "def check(candidate): ..."}, '
    '{"task_id": 1, "text": "Write ...", "code": "def f(x): ...", "test_list": ["assert f(1) == 2"]} or '
    '{"task_id": 2, "question": "Read ...", "tests": [{"input": "1 2", "output": "3"}]}'
)

_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})(.*)", re.DOTALL)


@dataclass(frozen=True)
class CodeProblem:
    """A problem. Either ``tests`` (with ``setup`` and ``names``, see ``Calls``) or ``cases`` (``Stdio``) are there.

    ``prompt`` is what the model is asked, ``prefix`` the program text that a completion continues, ``reference`` a
    right program, if one is known.
    """

    task_id: int | str
    prompt: str
    prefix: str = ""
    reference: str | None = None
    names: tuple[str, ...] = ()
    setup: str = ""
    tests: tuple[str, ...] = ()
    cases: tuple[tuple[str, str], ...] = ()

    def complete(self, completion: str) -> str:
        """The program that a continuation of the prompt makes."""
        return self.prefix + completion

    def extract(self, answer: str) -> str:
        """The program in a whole answer, fenced or not."""
        return extract_code(answer, self.names)

    def check(self, program: str) -> Check:
        """What decides whether a program solves this."""
        if self.cases:
            return Stdio(program, self.cases)
        return Calls(program, self.tests, self.names, self.setup)


def problem_from_row(where: str, row: Any) -> CodeProblem:
    """The problem of one row. ValueError, which begins with ``where``, for a row that is none."""
    if not isinstance(row, Mapping):
        raise _malformed(where, "this is not a JSON object")
    task_id = row.get("task_id", where)
    if isinstance(task_id, bool) or not isinstance(task_id, int | str):
        raise _malformed(where, "'task_id' is neither a number nor a string")
    if "entry_point" in row:
        return _human_eval(where, task_id, row)
    if "test_list" in row:
        return _mbpp(where, task_id, row)
    if "tests" in row:
        return _stdio(where, task_id, row)
    raise _malformed(where, "it has neither 'entry_point', 'test_list' nor 'tests'")


def extract_code(text: str, names: Collection[str] = ()) -> str:
    """The program in a chat answer: the last fenced block that defines all of ``names``, else the last one, else all.

    A last block that is not closed, as in an answer that was cut off, counts too. The text is a model's: it is searched
    line by line and never parsed, since Python's parser can be brought down.
    """
    blocks: list[list[str]] = []
    fence = ""
    for line in text.splitlines(keepends=True):
        found = _FENCE.fullmatch(line)
        if not fence and found and "`" not in found[2]:
            fence = found[1]
            blocks.append([])
        elif fence and found and found[1].startswith(fence) and not found[2].strip():
            fence = ""
        elif fence:
            blocks[-1].append(line)
    sources = [textwrap.dedent("".join(block)) for block in blocks]
    defining = [source for source in sources if names and all(_defines(source, name) for name in names)]
    return [text, *sources, *defining][-1]


def _defines(source: str, name: str) -> bool:
    pattern = rf"^(?:(?:async[ \t]+)?def[ \t]+{name}\b|class[ \t]+{name}\b|{name}[ \t]*(?::|=(?!=)))"
    return re.search(pattern, source, re.MULTILINE) is not None


def defined_names(source: str) -> set[str]:
    """What a trusted program defines at its top level: functions, classes, variables. SyntaxError if it is none."""
    names: set[str] = set()
    for statement in _parse(source).body:
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(statement.name)
            case ast.Assign() | ast.AnnAssign():
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                names |= {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}
    return names


def json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Pairs of ``file:line`` and row of a .jsonl or .jsonl.gz file; blank lines are skipped.

    Raises FileNotFoundError, and ValueError naming file and line for what is no JSON.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except (OSError, EOFError) as error:
        raise ValueError(f"{path}: can't be read ({error})") from None
    yield from json_lines(path, content, EXAMPLES)


def _human_eval(where: str, task_id: int | str, row: Mapping[str, Any]) -> CodeProblem:
    prompt, entry_point, test = (_text(where, row, key) for key in ("prompt", "entry_point", "test"))
    solution = row.get("canonical_solution")
    _compiled(where, "prompt", prompt)
    tests = (f"{test}\ncheck({entry_point})",)
    _compiled(where, "test", tests[0])
    return CodeProblem(
        task_id,
        prompt,
        prefix=prompt,
        reference=prompt + solution if isinstance(solution, str) else None,
        names=(entry_point,),
        setup=prompt,  # the helpers that some tests use are defined in it
        tests=tests,
    )


def _mbpp(where: str, task_id: int | str, row: Mapping[str, Any]) -> CodeProblem:
    prompt, code = _text(where, row, "text" if "text" in row else "prompt"), _text(where, row, "code")
    imports = "\n".join(_texts(where, row, "test_imports")) if row.get("test_imports") else ""
    setup = row.get("test_setup_code") or ""
    if not isinstance(setup, str):
        raise _malformed(where, "'test_setup_code' is not a string")
    tests = tuple(f"{imports}\n{test}" if imports else test for test in _texts(where, row, "test_list"))
    used: set[str] = set()
    for key, source in (("test_setup_code", setup), *(("test_list", test) for test in tests)):
        used |= {node.id for node in ast.walk(_compiled(where, key, source)) if isinstance(node, ast.Name)}
    _compiled(where, "code", code)
    names = tuple(sorted(defined_names(code) & used))
    if not names:
        raise _malformed(where, "the tests use nothing that 'code' defines")
    return CodeProblem(task_id, prompt, reference=code, names=names, setup=setup, tests=tests)


def _stdio(where: str, task_id: int | str, row: Mapping[str, Any]) -> CodeProblem:
    cases = row["tests"]
    if not isinstance(cases, Sequence) or isinstance(cases, str) or not cases:
        raise _malformed(where, "'tests' is not a list, or empty")
    pairs = []
    for case in cases:
        if not isinstance(case, Mapping) or not all(isinstance(case.get(key), str) for key in ("input", "output")):
            raise _malformed(where, "'tests' has an entry without the strings 'input' and 'output'")
        pairs.append((case["input"], case["output"]))
    code = row.get("code")
    return CodeProblem(
        task_id,
        _text(where, row, "question" if "question" in row else "prompt"),
        reference=code if isinstance(code, str) else None,
        cases=tuple(pairs),
    )


def _text(where: str, row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise _malformed(where, f"{key!r} is missing, empty or not a string")
    return value


def _texts(where: str, row: Mapping[str, Any], key: str) -> list[str]:
    values = row[key]
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise _malformed(where, f"{key!r} is not a list, or empty")
    if not all(isinstance(value, str) for value in values):
        raise _malformed(where, f"{key!r} has an entry that is not a string")
    return list(values)


def _compiled(where: str, key: str, source: str) -> ast.Module:
    """Trusted code that can't be compiled would make every program fail, so it is found before any runs."""
    try:
        tree = _parse(source)
        compile(tree, "<row>", "exec", dont_inherit=True)
        return tree
    except (SyntaxError, ValueError, RecursionError) as error:
        raise _malformed(where, f"{key!r} can't be compiled ({error})") from None


def _parse(source: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as an unknown escape in a string, which is nobody's business here
        return ast.parse(source)


def _malformed(where: str, what: str) -> ValueError:
    return malformed(where, what, EXAMPLES)
