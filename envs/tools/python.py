"""Python: a program is run in the sandbox, and what it prints is the result.

Every call is a program of its own, which finds nothing of the ones before it. Where this machine can't contain programs
the sandbox refuses to start, and with it the run (``python -m envs.sandbox doctor`` says why).

Left out: the value of a last expression that isn't printed, and packages besides the standard library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from envs.sandbox import Outcome, Sandbox, Stdio
from envs.sandbox.problems import extract_code
from envs.tools.tool import Result, Schema, text_function

_GOLD = (("print(sum(range(10)))", "45"), ("print(1)\n1 / 0", "1\nZeroDivisionError: division by zero"))


@dataclass(frozen=True)
class Python:
    """The tool. ``name`` and ``description`` are what the prompt says of it. A program that fails has a result, too:
    what it printed, and how it ended. Code may stand in a fenced block."""

    sandbox: Sandbox = field(repr=False, compare=False)
    name: str = "python"
    description: str = "runs a program and shows what it prints"

    @property
    def schema(self) -> Schema:
        return text_function(self.name, self.description, "code")

    def __call__(self, arguments: Sequence[Mapping[str, Any]]) -> list[Result]:
        # No output is expected; whether there is some is no matter of right or wrong here.
        checks = [Stdio(extract_code(given["code"]), (("", ""),)) for given in arguments]
        return [_result(outcome) for outcome in self.sandbox.run(checks)]

    def validate(self) -> None:
        for (program, printed), result in zip(_GOLD, self([{"code": code} for code, _ in _GOLD]), strict=True):
            if result != Result(printed):
                raise ValueError(f"{self.name}: {program!r} should give {printed!r}, but gives {result}")

    def manifest(self) -> Mapping[str, Any]:
        own = {"type": "python", "name": self.name, "description": self.description}
        return {**own, "sandbox": self.sandbox.describe()}


def _result(outcome: Outcome) -> Result:
    if outcome.status == "sandbox_error":
        return Result(outcome.detail, "error")
    ended = "" if outcome.status in ("ok", "wrong_answer") else outcome.detail.removeprefix("case 1: ")
    shown = [text for text in (outcome.output.rstrip(), ended) if text]
    return Result("\n".join(shown) or "nothing was printed")
