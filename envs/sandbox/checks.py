"""What is asked of the sandbox and what it answers: limits, checks, outcomes. No logic besides validation.

Left out: checkers with several right outputs (interactive judges, floating-point tolerance); an assert can say them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias

Status = Literal[
    "ok",
    "wrong_answer",
    "runtime_error",
    "timeout",
    "memory",
    "output_limit",
    "crashed",
    "violation",
    "unsupported_value",
    "sandbox_error",
]
"""How a check ended. Only ``sandbox_error`` is the harness's failure; nothing a program does brings it about.

``runtime_error``: an exception, or an exit before the tests were through. ``output_limit``: too much on stdout, too
large a value, too many or too large files. ``crashed``: died of a signal, or broke its jail twice. ``violation``:
killed for a forbidden system call, or sent what is no value over the channel to the tests. ``unsupported_value``:
returned something that is not plain data, or nested too deeply.
"""

Mode = Literal["full", "no-namespaces", "unsafe"]
"""What contains the programs: ``full`` is bubblewrap, Landlock, seccomp and rlimits; ``no-namespaces`` the same without
bubblewrap; ``unsafe`` is whatever of them the machine has."""


class SandboxUnavailable(RuntimeError):
    """This machine can't contain programs; the message names the missing part and what to do."""


class NoNamespacesWarning(UserWarning):
    """Programs run without namespaces: Landlock, seccomp and rlimits alone contain them."""


@dataclass(frozen=True)
class Limits:
    """What one program may use, all its tests together. ValueError for values that make no sense.

    ``cpu_seconds`` is CPU time of all its threads; ``wall_seconds`` elapsed time (None: three times ``cpu_seconds``).
    ``memory_mb`` is address space, the interpreter's own 30 MiB included. ``output_kb`` holds for stdout, and likewise
    for one value passed to a test. ``file_mb`` is the size of the working directory and of each file in it,
    ``open_files`` the number of file descriptors, ``threads`` the threads that it may start. Sizes are in binary units.
    """

    cpu_seconds: float = 6.0
    wall_seconds: float | None = None
    memory_mb: int = 512
    output_kb: int = 256
    file_mb: int = 16
    open_files: int = 64
    threads: int = 32

    def __post_init__(self) -> None:
        smallest = {"cpu_seconds": 0.01, "memory_mb": 64, "open_files": 16, "threads": 0}
        for field in fields(self):
            value, least = getattr(self, field.name), smallest.get(field.name, 1)
            if field.name == "wall_seconds":
                least = 0.01
                if value is None:
                    continue
            elif field.name != "cpu_seconds" and not isinstance(value, int):
                raise ValueError(f"limits.{field.name} is {value!r}; it must be a whole number")
            if not (math.isfinite(value) and value >= least):
                raise ValueError(f"limits.{field.name} is {value}; it must be at least {least}")

    @property
    def wall(self) -> float:
        """Elapsed seconds that a program may take."""
        return 3 * self.cpu_seconds if self.wall_seconds is None else self.wall_seconds


@dataclass(frozen=True)
class Calls:
    """Tests that call what ``program`` defines and assert on what comes back.

    ``tests`` are trusted sources; each passes if it runs to its end without an exception. They run in another jail than
    the program, with ``names`` of the program's globals bound to stand-ins for its functions and classes, or to copies
    of its data; no other name resolves to the program. ``setup`` is trusted too and runs once, in the tests' namespace,
    before them. The names are bound before it, so that it may use the program's classes, and again after it, so that a
    stub of the function in it (a HumanEval prompt) is replaced, while helpers that it defines stay.
    """

    program: str
    tests: tuple[str, ...]
    names: tuple[str, ...]
    setup: str = ""


@dataclass(frozen=True)
class Stdio:
    """Runs of ``program`` as ``__main__``, one for each case of stdin and expected stdout.

    Outputs are compared line by line; white space at the ends of lines, and empty lines at the end, do not count.
    """

    program: str
    cases: tuple[tuple[str, str], ...]


Check: TypeAlias = Calls | Stdio


@dataclass(frozen=True)
class Outcome:
    """A verdict. ``status`` is ``ok`` only if every test or case passed; otherwise it says how the first one failed.

    ``detail`` is one line for people, at most 300 characters: which test failed and how. It may quote the tests and the
    program, so it is for traces, not for the policy. ``cpu_seconds`` is the program's own CPU time; ``wall_seconds``
    how long the verdict took, the sandbox's part included. ``output`` is what the program wrote to stdout in the last
    case of ``Stdio`` that was run, up to the limit.
    """

    status: Status
    passed: int
    total: int
    detail: str
    cpu_seconds: float
    wall_seconds: float
    output: str = ""
