"""Programs for the tests of the sandbox, from the files in ``sandbox_programs``, and what the hostile ones may get.

``SECRET`` is what the attacks' tests and cases expect; it is also in the grader's environment, memory and files, and on
its sockets, for the attacks to find. A program that gets hold of it passes its tests, and so fails the test here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from envs.sandbox import Calls, Check, Stdio, probe
from envs.sandbox.jail import Launch

SECRET = "expected-4f1d9c27b6"
CANARY_VARIABLE = "SANDBOX_CANARY"
TESTS = (f"assert answer(1) == {SECRET!r}", f"x = answer(2)\nassert x == {SECRET!r}, x")

FOLDER = Path(__file__).resolve().parent / "sandbox_programs"

# What attacks start with.
TOOLS = """
import ctypes, os, signal, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def syscall(*args):
    result = libc.syscall(*args)
    if result == -1: raise OSError(ctypes.get_errno(), 'syscall')
    return result
"""

# Those that speak the protocol find the channel as the one socket that is open.
FORGING_TOOLS = """
import stat
from struct import pack
values = sys.modules['inside.values']
def is_socket(fd):
    try: return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError: return False
ch = next(fd for fd in range(3, 64) if is_socket(fd))
def frame(data): os.write(ch, pack('<I', len(data)) + data)
def say(value): frame(values.encode(value, 10**9, lambda o: 0))
"""


@dataclass(frozen=True)
class Program:
    """An entry of a file: its name, the words after that, its source, and its parts as (kind, text)."""

    name: str
    words: frozenset[str]
    source: str
    parts: tuple[tuple[str, str], ...]

    def texts(self, kind: str) -> tuple[str, ...]:
        """The parts of a kind."""
        return tuple(text for found, text in self.parts if found == kind)


@dataclass(frozen=True)
class Attack:
    """A hostile program in its check, and the statuses that it may get."""

    name: str
    check: Check
    allowed: frozenset[str]


def need(mode: Literal["full", "no-namespaces"]) -> Launch:
    """How jails of this mode are started. Skips the test where the machine can't start any; attacks that get out of one
    that does start are a failure."""
    report = probe(mode)
    if report.failure:
        pytest.skip(f"no jail of mode {mode} can be started on this machine: {report.failure}")
    assert report.holds, report.why_not
    return report.launch


def programs(file: str) -> list[Program]:
    """The entries ``=== name | words`` of a file, each with its source and its parts after ``--- kind``."""
    text = (FOLDER / f"{file}.txt").read_text(encoding="utf-8")
    found = []
    for entry in re.split(r"^=== ", text, flags=re.MULTILINE)[1:]:
        head, _, body = entry.partition("\n")
        name, _, words = head.partition(" | ")
        source, *rest = re.split(r"^--- ", body, flags=re.MULTILINE)
        parts = [part.partition("\n") for part in rest]
        found.append(
            Program(
                name,
                frozenset(words.split()),
                source.rstrip("\n"),
                tuple((kind, text.rstrip("\n")) for kind, _, text in parts),
            )
        )
    return found


def attacks(canary: str, tcp_port: int, unix_path: str, abstract: str, grader: int) -> Iterator[Attack]:
    """Every attack. ``canary`` is a file with the secret, the sockets are listened on by the process ``grader``."""
    places = {
        "@CANARY": repr(canary),
        "@PORT": str(tcp_port),
        "@UNIX": repr(unix_path),
        "@ABSTRACT": repr(abstract),
        "@GRADER": str(grader),
        "@VARIABLE": repr(CANARY_VARIABLE),
    }
    for each in programs("attack_scripts"):
        source = re.sub("|".join(places), lambda found: places[found[0]], TOOLS + each.source)
        yield Attack(f"script: {each.name}", Stdio(source, (("1\n", SECRET),)), each.words)
    for name, source in (("a null character", "\0"), ("a lone surrogate", "x = '\ud800'")):
        yield Attack(f"script: {name}", Stdio(source, (("1\n", SECRET),)), frozenset({"runtime_error"}))
    for each in programs("attack_modules"):
        yield Attack(f"module: {each.name}", Calls(TOOLS + each.source, TESTS, ("answer",)), each.words)
    for each in programs("attack_frames"):
        source = TOOLS + FORGING_TOOLS + each.source
        yield Attack(f"frames: {each.name}", Calls(source, TESTS, ("answer",)), each.words)
    for each in programs("attack_tests"):
        tests = each.texts("test")
        yield Attack(f"tests: {each.name}", Calls(TOOLS + each.source, tests, ("answer", "Thing")), each.words)
