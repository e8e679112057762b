"""Running trusted tests on stand-ins for what a program defines. The program itself runs in another jail.

Everything that comes over the channel is the program's: it may be forged, but it can only be data (see ``values``) or
handles, numbers of the program's objects, which can be called, passed back, and asked for attributes, and nothing else:
comparing one would ask the program whether it is right.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import json
import os
import re
import sys
import types
from collections.abc import Callable, Sequence
from os import _exit
from typing import Any, NoReturn

from .values import Malformed, UnsupportedValue, decode, encode, receive, send

# A program's exception is raised in the tests as one of these, if it is one of them. Not among them, since it would
# mean something to the tests or to Python itself: AssertionError, MemoryError, RecursionError, StopIteration (which
# ends `all(map(f, xs))` early, as if all were well), SystemExit, KeyboardInterrupt, GeneratorExit.
_HARMLESS = (
    "ArithmeticError AttributeError BufferError EOFError FloatingPointError IndexError KeyError LookupError NameError "
    "NotImplementedError OSError OverflowError RuntimeError TypeError ValueError ZeroDivisionError"
)

# What an object of the program would decide itself, or Python would decide from its stand-in: neither is a result.
_OPERATIONS = (
    "eq ne lt le gt ge hash bool len iter next reversed contains getitem setitem delitem int float complex index str "
    "repr format bytes add radd sub rsub mul rmul matmul rmatmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow "
    "lshift rlshift rshift rrshift and rand or ror xor rxor neg pos abs invert round trunc floor ceil divmod rdivmod "
    "enter exit await aiter anext iadd isub imul itruediv ifloordiv imod ipow iand ior ixor call"
)

_BEFORE_A_DOT = re.compile(r"(?<![\w.])([a-z_]\w*)\s*\.")
_MODULES = sys.stdlib_module_names - {"antigravity", "this"}


class ProgramError(Exception):
    """An exception of the program that has no harmless counterpart among Python's own."""


class ProgramEnded(BaseException):
    """The program is gone: it ended, died or was killed. Whoever runs it knows how."""


class Refused(BaseException):
    """A value of the program can't be used. BaseException, so that no ``except Exception`` of a test hides it."""


class Handle:
    """An object of the program that is not data."""

    __slots__ = ("__number", "__program")

    def __init__(self, program: Program, number: int) -> None:
        object.__setattr__(self, "_Handle__program", program)
        object.__setattr__(self, "_Handle__number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__program.ask("call", self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__program.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__program.ask("set", self, name, value)


class Missing:
    """Stands for a name that the program does not define, whatever else has that name."""

    __slots__ = ("__name", "__program")

    def __init__(self, program: Program, name: str) -> None:
        object.__setattr__(self, "_Missing__program", program)
        object.__setattr__(self, "_Missing__name", name)

    def __getattr__(self, name: str) -> NoReturn:
        _undefined(self)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        _undefined(self)


def _not_asked(self: Handle, *args: object) -> NoReturn:
    program: Program = object.__getattribute__(self, "_Handle__program")
    program.refuse(
        "unsupported_value", "the program returned an object that is no plain data, and the test looks at it"
    )


def _undefined(self: Missing, *args: object, **kwargs: object) -> NoReturn:
    program: Program = object.__getattribute__(self, "_Missing__program")
    name = object.__getattribute__(self, "_Missing__name")
    raise program.failure(
        "NameError", ["NameError"], (f"name {name!r} is not defined",), f"NameError: name {name!r} is not defined"
    )


for _name in _OPERATIONS.split():
    setattr(Missing, f"__{_name}__", _undefined)
    if _name != "call":
        setattr(Handle, f"__{_name}__", _not_asked)


class Program:
    """The tests' end of the channel. ``limit`` is the most that one answer may hold, in bytes.

    A request is ("call", handle, args, kwargs), ("get", handle, name) or ("set", handle, name, value). An answer is
    ("value", value, changed), where ``changed`` are (place, value) of arguments that the call changed, or ("raised",
    class, the classes of Python's own among its bases, args, text), or ("refused", status, why).
    """

    def __init__(self, channel: int, limit: int) -> None:
        self._channel, self._limit = channel, limit
        self._handles: dict[int, Handle] = {}
        self._failures: dict[int, tuple[BaseException, str, str]] = {}
        self.ended = False
        self.refusal: tuple[str, str] | None = None

    def names(self) -> dict[str, Any]:
        """What the program defines of the names asked for; raises what it raised while it was loaded."""
        answer = self._receive()
        if answer[0] == "value" and type(answer[1]) is dict:
            return answer[1]
        raise self._bad(answer)

    def ask(self, what: str, handle: Handle, *rest: Any) -> Any:
        """Send a request, wait for the answer; raises the program's exception, ProgramEnded or Refused."""
        try:
            request = encode((what, handle, *rest), 1 << 31, self._number)
        except UnsupportedValue as error:
            self.refuse(error.status, str(error))
        try:
            send(self._channel, request)
        except OSError:
            self._end()
        answer = self._receive()
        if answer[0] != "value" or len(answer) != 3:
            raise self._bad(answer)
        if answer[2]:
            self._change(answer[2], *rest)
        return answer[1]

    def refuse(self, status: str, why: str) -> NoReturn:
        """End the tests: whatever they catch, the first refusal stands."""
        self.refusal = self.refusal or (status, why)
        raise Refused

    def failure(self, name: str, builtin: list[str], args: tuple[Any, ...], text: str) -> Exception:
        """The exception to raise in the tests for one of the program's."""
        known = next((cls for cls in builtin if cls in _HARMLESS.split()), None)
        error: Exception = getattr(builtins, known)(*args) if known else ProgramError(text)
        self._failures[id(error)] = (error, name, text)
        return error

    def verdict(self, error: BaseException) -> tuple[str, str] | None:
        """Status and text, if this is an exception of the program."""
        _, name, text = self._failures.get(id(error), (None, "", ""))
        return ("memory" if name == "MemoryError" else "runtime_error", text) if name else None

    def _receive(self) -> tuple[Any, ...]:
        try:
            answer = decode(receive(self._channel, self._limit), self._handle)
        except (EOFError, OSError):
            self._end()
        except Malformed as error:
            self.refuse("violation", f"the program's answer is no value ({error})")
        if type(answer) is not tuple or not answer:
            self.refuse("violation", "the program's answer is no answer")
        return answer

    def _end(self) -> NoReturn:
        self.ended = True
        raise ProgramEnded

    def _bad(self, answer: tuple[Any, ...]) -> BaseException:
        """What to raise for an answer that is no value."""
        match answer:
            case ("raised", str() as name, list() as builtin, tuple() as args, str() as text):
                try:
                    return self.failure(name, [cls for cls in builtin if type(cls) is str], args, text)
                except Exception:  # arguments that this exception can't take
                    return self.failure(name, [], (), text)
            case ("refused", ("output_limit" | "unsupported_value") as status, str() as why):
                self.refuse(status, why)
        self.refuse("violation", "the program's answer is no answer")

    def _change(self, changed: Any, args: Any = (), kwargs: Any = None) -> None:
        """Give the test's own lists, dicts and sets the contents that the program gave its copies."""
        try:
            for place, value in changed:
                mine = args[place] if type(place) is int else kwargs[place]
                if type(mine) is not type(value):
                    raise TypeError(f"{type(mine).__name__} became {type(value).__name__}")
                mine.clear()
                (mine.extend if type(mine) is list else mine.update)(value)
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            self.refuse("violation", f"the program's answer is no answer ({error})")

    def _handle(self, number: int) -> Handle:
        return self._handles.setdefault(number, Handle(self, number))

    def _number(self, value: Any) -> int:
        if type(value) is Handle:
            return int(object.__getattribute__(value, "_Handle__number"))
        raise UnsupportedValue("unsupported_value", f"a test passes a {type(value).__name__}, which is no plain data")


def run_asserts(
    setup: str, tests: Sequence[str], names: Sequence[str], channel: int, report: int, limit: int
) -> NoReturn:
    """Run the tests, writing lines of JSON to the descriptor ``report``.

    First ``{"compiled": true}``, or ``{"broken": why}`` if the tests' own source can't be compiled; then the setup's
    ``[status, text]`` and each test's, until one can't go on (status ``ended``: the program is gone).
    """
    try:
        codes = [compile(source, "<test>", "exec", dont_inherit=True) for source in (setup, *tests)]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        _write(report, {"broken": f"{type(error).__name__}: {error}"})
        _exit(0)
    _write(report, {"compiled": True})
    program = Program(channel, limit)
    namespace = _namespace((setup, *tests))
    status, text = _attempt(program, setup, lambda: _set_up(program, names, codes[0], namespace))
    _write_verdict(report, status, text)
    if status == "ok":
        for source, code in zip(tests, codes[1:], strict=True):
            status, text = _attempt(program, source, functools.partial(exec, code, namespace))
            _write_verdict(report, status, text)
            if status in ("ended", "violation"):
                break
    _exit(0)


def _write(report: int, line: object) -> None:
    os.write(report, json.dumps(line).encode() + b"\n")


def _write_verdict(report: int, status: str, text: str) -> None:
    _write(report, [status, text[:400]])  # it may be the program's, and so of any length


def _namespace(sources: Sequence[str]) -> dict[str, Any]:
    """Globals for the tests, with the modules of the standard library that they may use without an import (MBPP does).

    Found by a pattern, since a syntax tree costs more than the rest of a small test: too many may be found, no matter.
    """
    module = types.ModuleType("tests")
    sys.modules["tests"] = module
    for name in {name for source in sources for name in _BEFORE_A_DOT.findall(source)} & _MODULES:
        setattr(module, name, importlib.import_module(name))
    return module.__dict__


def _set_up(program: Program, names: Sequence[str], code: types.CodeType, namespace: dict[str, Any]) -> None:
    defined = program.names()
    bound = {name: defined.get(name, Missing(program, name)) for name in names}
    namespace.update(bound)
    exec(code, namespace)
    namespace.update(bound)


def _attempt(program: Program, source: str, run: Callable[[], None]) -> tuple[str, str]:
    """Status and text of one test."""
    program.refusal = None
    status, text, line = "ok", "", ""
    try:
        run()
    except BaseException as error:
        status, text = program.verdict(error) or _own(error)
        line = _line(error, source)
    if program.ended:
        return "ended", ""
    status, text = program.refusal or (status, text)
    return status, text + line


def _own(error: BaseException) -> tuple[str, str]:
    """Status and text for an exception of the tests themselves."""
    status = "memory" if isinstance(error, MemoryError) else "wrong_answer"
    try:
        return status, ": ".join(filter(None, (type(error).__name__, str(error))))[:200]
    except BaseException:  # its text asks for an object of the program
        return status, type(error).__name__


def _line(error: BaseException, source: str) -> str:
    """Where in the test it was raised."""
    place = error.__traceback__
    number = 0
    while place is not None:
        if place.tb_frame.f_code.co_filename == "<test>":
            number = place.tb_lineno
        place = place.tb_next
    lines = source.splitlines()
    return f" in: {lines[number - 1].strip()}" if 0 < number <= len(lines) else ""
