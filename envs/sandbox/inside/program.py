"""Running a program: as a script, or as a module whose functions are called over a channel.

This is a child that has confined itself, and from the first line of the program on nothing in this process can be
trusted, these functions included. They only have to serve honest programs; a hostile one gains nothing by breaking
them, since whatever it writes to the channel is read as data.
"""

from __future__ import annotations

import atexit
import sys
import threading
import traceback
import types
from collections.abc import Sequence
from os import _exit
from typing import Any, NoReturn

from .values import UnsupportedValue, decode, encode, receive, send

_NAME = "<program>"
_MUTABLE = (list, dict, set)


def run_script(source: str) -> NoReturn:
    """Run the program as ``__main__``, end as the interpreter would, with its exit code."""
    code = 1
    try:
        try:
            _execute(source, "__main__")
            code = 0
        except SystemExit as error:
            code = _exit_code(error.code)
        except BaseException:
            traceback.print_exc()
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as at the end of any script
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except BaseException:
        code = code or 1
    finally:
        _exit(code)


def serve_calls(source: str, names: Sequence[str], channel: int, limit: int) -> NoReturn:
    """Run the program, announce what ``names`` stand for, then answer requests until the tests are through.

    ``limit`` is the most that one answer may hold, in bytes. The requests and answers are those of ``asserts.Program``.
    """
    try:
        objects = _Objects()
        try:
            module = _execute(source, "solution")
            answer = ("value", {name: module.__dict__[name] for name in names if name in module.__dict__}, ())
        except BaseException as error:
            answer = _raised(error)
        while True:
            send(channel, _encoded(answer, limit, objects))
            answer = _answer(receive(channel, 1 << 31), objects, limit)
    finally:
        _exit(0)


def _execute(source: str, name: str) -> types.ModuleType:
    """Run a program as a new module, known under its name as dataclasses and others expect."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(source, _NAME, "exec", dont_inherit=True), module.__dict__)
    return module


def _exit_code(value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, int):
        return value & 0xFF
    print(value, file=sys.stderr)
    return 1


class _Objects:
    """The objects that the tests know by a number. They live as long as the program, so numbers stay unique."""

    def __init__(self) -> None:
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}

    def number(self, value: Any) -> int:
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._objects)
            self._objects.append(value)
        return self._numbers[id(value)]

    def resolve(self, number: int) -> Any:
        return self._objects[number]


def _answer(request: bytes, objects: _Objects, limit: int) -> tuple[Any, ...]:
    """Carry out a request; what came of it."""
    what, target, *rest = decode(request, objects.resolve)
    try:
        if what == "get":
            return ("value", getattr(target, rest[0]), ())
        if what == "set":
            setattr(target, rest[0], rest[1])
            return ("value", None, ())
        args, kwargs = rest
        places = [*enumerate(args), *kwargs.items()]
        before = [(place, value, _image(value, objects, 1 << 31)) for place, value in places if type(value) in _MUTABLE]
        result = target(*args, **kwargs)
        changed = [
            (place, value) for place, value, image in before if _image(value, objects, len(image) + limit) != image
        ]
        return ("value", result, changed)
    except BaseException as error:
        return _raised(error)


def _image(value: Any, objects: _Objects, limit: int) -> bytes:
    return encode(value, limit, objects.number)


def _raised(error: BaseException) -> tuple[Any, ...]:
    if isinstance(error, UnsupportedValue):
        return ("refused", error.status, str(error))
    builtin = [cls.__name__ for cls in type(error).__mro__ if cls.__module__ == "builtins"]
    return ("raised", type(error).__name__, builtin, error.args, _text(error))


def _text(error: BaseException) -> str:
    return ": ".join(filter(None, (type(error).__name__, str(error))))[:300]


def _encoded(answer: tuple[Any, ...], limit: int, objects: _Objects) -> bytes:
    try:
        return encode(answer, limit, objects.number)
    except UnsupportedValue as error:
        if answer[0] == "raised":  # an exception that carries too much still is that exception
            return encode((*answer[:3], (answer[4],), answer[4]), limit, objects.number)
        return encode(_raised(error), limit, objects.number)
    except Exception as error:  # an iterator of the program that failed while it was read
        return _encoded(_raised(error), limit, objects)
