"""From a check to its verdict: which jails run what, and what the ways it can end mean.

The program's jail gets the program's source and data to work on, never a test or an expected value. Everything goes in
and out by anonymous files, read when all who could write to them are gone, so that no pipe can fill up or stall.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from envs.sandbox.checks import Calls, Check, Limits, Outcome, Status, Stdio
from envs.sandbox.jail import End, Jail, JailBroken, JailFailed, Job, Launch

_BUSY_SHARE = 0.1
_REASONS: dict[str, tuple[Status, str]] = {
    "cpu": ("timeout", "the CPU time limit of {limits.cpu_seconds:g} s is exceeded"),
    "wall": ("timeout", "the elapsed time limit of {limits.wall:g} s is exceeded"),
    "files": ("output_limit", "too many or too large files in the working directory"),
    "threads": ("runtime_error", "more than {limits.threads} threads"),
}


class Worker:
    """Two jails, one for programs and one for tests, started when needed and replaced when broken. Not thread-safe."""

    def __init__(self, launch: Launch, limits: Limits) -> None:
        self._launch, self._limits = launch, limits
        self._jails: dict[str, Jail] = {}
        self._closing: list[threading.Thread] = []

    def run(self, check: Check) -> Outcome:
        """The verdict on one program.

        Tried a second time, in fresh jails, if a jail broke or could not be started, and if the elapsed time ran out
        although the program was at work and had CPU time left: then the machine was busy.
        """
        started = time.monotonic()
        outcome = self._attempt(check)
        if outcome is None or outcome.status == "sandbox_error" or self._starved(outcome):
            outcome = self._attempt(check) or Outcome("crashed", 0, _size(check), "it broke its jail, twice", 0.0, 0.0)
        self._retire(only_unusable=True)
        return replace(outcome, detail=_one_line(outcome.detail), wall_seconds=time.monotonic() - started)

    def start(self) -> Jail:
        """Start the jail for programs, if it is not running. Raises JailFailed."""
        return self._jail("program")

    def close(self) -> None:
        """End the jails, and wait until nothing is left of them."""
        for jail in self._jails.values():
            jail.close()
        for thread in self._closing:
            thread.join()
        self._jails.clear()
        self._closing.clear()

    def _retire(self, *, only_unusable: bool = False) -> None:
        """Let go of jails. They are closed in the background, since removing what is left in them may take a while."""
        for role, jail in list(self._jails.items()):
            if not (only_unusable and jail.usable):
                del self._jails[role]
                self._closing = [thread for thread in self._closing if thread.is_alive()]
                self._closing.append(threading.Thread(target=jail.close))
                self._closing[-1].start()

    def _attempt(self, check: Check) -> Outcome | None:
        """A verdict, or None if a jail broke."""
        try:
            return self._calls(check) if isinstance(check, Calls) else self._stdio(check)
        except JailFailed as error:
            return Outcome("sandbox_error", 0, _size(check), f"no jail can be started: {error}", 0.0, 0.0)
        except JailBroken:
            self._retire()
            return None

    def _starved(self, outcome: Outcome) -> bool:
        # Not one that sleeps, which uses no CPU time, so that it does not take twice the limit.
        limit = self._limits.cpu_seconds
        return outcome.status == "timeout" and _BUSY_SHARE * limit < outcome.cpu_seconds < 0.9 * limit

    def _jail(self, role: str) -> Jail:
        self._retire(only_unusable=True)
        if role not in self._jails:
            self._jails[role] = Jail(self._launch, self._limits)
        return self._jails[role]

    def _stdio(self, check: Stdio) -> Outcome:
        cpu, wall, passed = 0.0, 0.0, 0
        status: Status = "ok"
        detail, output = "", b""
        output_bytes = self._limits.output_kb << 10
        for number, (given, expected) in enumerate(check.cases, start=1):
            files = _files({"source": check.program}, given.encode(errors="replace"), None, None)
            with files as (source, stdin, stdout, stderr):
                left = (self._limits.cpu_seconds - cpu, self._limits.wall - wall)
                end = self._run("script", [source, stdin, stdout, stderr], *left)
                output = os.pread(stdout, output_bytes + 1, 0)
                complaint = _tail(stderr)
            cpu, wall = cpu + end.cpu, wall + end.wall
            verdict = self._end(end, complaint)
            if len(output) > output_bytes:
                verdict = ("output_limit", f"more than {self._limits.output_kb} KiB on stdout")
            elif verdict[0] == "ok":
                difference = compare(output.decode("utf-8", "surrogateescape"), expected)
                verdict = ("wrong_answer", difference) if difference else verdict
            passed += verdict[0] == "ok"
            if status == "ok" and verdict[0] != "ok":
                status, detail = verdict[0], f"case {number}: {verdict[1]}"
            if verdict[0] == "timeout":  # there is no time left for the other cases
                break
        said = output[:output_bytes].decode("utf-8", "replace")
        return Outcome(status, passed, len(check.cases), detail, cpu, wall, said)

    def _calls(self, check: Calls) -> Outcome:
        limits, total = self._limits, len(check.tests)
        limit = limits.output_kb << 10
        program_jail, tests_jail = self._jail("program"), self._jail("tests")
        program = {"source": check.program, "names": check.names, "limit": limit}
        # An answer holds one value, and may hold what a call changed in its arguments besides.
        tests = {"setup": check.setup, "tests": check.tests, "names": check.names, "limit": 2 * limit}
        near, far = socket.socketpair()
        with near, far, _files(program) as (source,), _files(tests, None) as (asserts, report):
            program_jail.begin("calls", [source, far.fileno()], cpu=limits.cpu_seconds, wall=limits.wall)
            tests_jail.begin(
                "asserts", [asserts, near.fileno(), report], cpu=limits.cpu_seconds, wall=limits.wall + 0.2
            )
            near.close()
            far.close()
            tests_end = tests_jail.end()
            program_jail.stop()
            program_end = program_jail.end()
            # A last line without an end was cut off by a limit.
            written = os.pread(report, os.fstat(report).st_size, 0).split(b"\n")[:-1]
        lines = [json.loads(line) for line in written]
        verdict = self._verdict(lines, total, program_end, tests_end)
        return replace(verdict, cpu_seconds=program_end.cpu)

    def _verdict(self, lines: list[Any], total: int, program: End, tests: End) -> Outcome:
        """From what the tests reported, and how the two children ended. The tests' child ran no code of the program."""
        if not lines:  # nothing of the program had reached them by then
            raise JailFailed(f"the tests did not start: {self._end(tests, '')[1]}")
        if "broken" in lines[0]:
            return Outcome("sandbox_error", 0, total, f"the tests can't be compiled: {lines[0]['broken']}", 0.0, 0.0)
        results = lines[2:]
        passed = sum(status == "ok" for status, _ in results)
        setup_status, setup_text = lines[1] if len(lines) > 1 else ("ended", "")
        if setup_status == "ok" and passed == total:
            return Outcome("ok", passed, total, "", 0.0, 0.0)
        number, text = len(results) + 1, ""
        status: Any = "ended"
        if setup_status != "ok":
            number, status, text = 0, setup_status, setup_text
        for place, (result, said) in enumerate(results, start=1):
            if result != "ok":
                number, status, text = place, result, said
                break
        if status == "ended":
            # The program is gone, or what it returned was too much for the tests. Having lost them, it ends by itself.
            lost = program.reason == "stop" or (program.reason == "" and program.code == 0)
            status, text = self._end(tests if lost else program, "")
            if status == "ok":
                status, text = "runtime_error", "the program ended before its tests were through"
        where = f"test {number}" if number else "before the tests"
        return Outcome(status, passed, total, f"{where}: {text}", 0.0, 0.0)

    def _end(self, end: End, complaint: str) -> tuple[Status, str]:
        """What the end of a child means. ``complaint`` is the last line of its stderr."""
        if end.reason in _REASONS:
            status, text = _REASONS[end.reason]
            return status, text.format(limits=self._limits)
        if end.code == 0:
            return "ok", ""
        if end.code > 0:
            status = "memory" if complaint.startswith("MemoryError") else "runtime_error"
            return status, complaint or f"exit code {end.code}"
        if -end.code == signal.SIGSYS:
            return "violation", "killed for a forbidden system call"
        if -end.code == signal.SIGXCPU or end.cpu >= self._limits.cpu_seconds:
            return "timeout", _REASONS["cpu"][1].format(limits=self._limits)
        names = {int(each): each.name for each in signal.Signals}  # real-time signals have none
        return "crashed", f"killed by {names.get(-end.code, f'signal {-end.code}')}"

    def _run(self, job: Job, descriptors: Sequence[int], cpu: float, wall: float) -> End:
        jail = self._jail("program")
        jail.begin(job, descriptors, cpu=max(cpu, 0.01), wall=max(wall, 0.01))
        return jail.end()


def compare(output: str, expected: str) -> str:
    """How an output differs from the expected one, or "" if it does not."""
    mine, theirs = _lines(output), _lines(expected)
    if mine == theirs:
        return ""
    for number, (line, other) in enumerate(zip(mine, theirs, strict=False), start=1):
        if line != other:
            return f"line {number} of the output is {line[:80]!r}, not {other[:80]!r}"
    return f"the output has {len(mine)} lines, not {len(theirs)}"


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _size(check: Check) -> int:
    return len(check.tests) if isinstance(check, Calls) else len(check.cases)


@contextmanager
def _files(payload: dict[str, Any], *others: bytes | None) -> Iterator[list[int]]:
    """Descriptors of anonymous files: the payload as JSON, then one with each of the contents; None is for writing."""
    descriptors: list[int] = []
    try:
        for content in (json.dumps(payload).encode(), *others):
            descriptors.append(os.memfd_create("sandbox"))
            if content is not None:
                with open(descriptors[-1], "wb", closefd=False) as file:
                    file.write(content)
                os.lseek(descriptors[-1], 0, os.SEEK_SET)
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _tail(descriptor: int) -> str:
    """The last line that is not empty."""
    size = os.fstat(descriptor).st_size
    text = os.pread(descriptor, 2000, max(size - 2000, 0)).decode(errors="replace").rstrip()
    return text.rsplit("\n", 1)[-1]


def _one_line(text: str) -> str:
    """Printable and at most 300 characters; a program may have written it."""
    line = "".join(char if char.isprintable() else " " for char in text)
    return line if len(line) <= 300 else line[:297] + "..."
