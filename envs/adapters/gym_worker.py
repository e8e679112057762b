"""The process in which reasoning-gym makes its problems and scores answers: ``python -m envs.adapters.gym_worker``.

Why apart from the trainer. Some generators depend on the order of Python's sets, so that only a fixed PYTHONHASHSEED
makes a problem a function of its index. And some scorers evaluate what they are given: four call ``eval`` on it, which
sees the right answer in their own variables; five have sympy parse it, which evaluates it too; and ``9**9**9**9``
never ends. Here ``eval`` takes literals only and sympy the expressions of ``_EXPRESSION`` only; the rest is bounded:
the process imports the library once and then only forks, and the kernel ends a child whose scoring takes too much CPU
time or memory.

Messages are lines of JSON, one answer for each. In: ``{"dataset", "params", "seed", "size", "cpu_seconds",
"memory_mb"}`` once; then ``["entry", index]`` or ``["score", index, answer]``. Out: ``["ready"]`` or ``["refused",
why]``, then ``["entry", question, answer]``, ``["score", number]`` or ``["raised", why]``, and ``["died", code]`` when
a child is gone.

Left out: walls around the file system. With literals and plain expressions there is no way known to run code.
"""

from __future__ import annotations

import ast
import gc
import json
import os
import re
import resource
import signal
from functools import lru_cache
from typing import Any

_DONE, _OUT_OF_MEMORY = 0, 76

_FUNCTIONS = "Abs acos asin atan cos cosh cot csc exp ln log pi sec sin sinh sqrt tan tanh"
# Numbers, signs, single letters and those functions; no attributes, no strings. A letter after a digit is no name.
_EXPRESSION = re.compile(rf"(?:(?<![\w.])(?:{'|'.join(_FUNCTIONS.split())}|[A-Za-z])(?!\w)|[-\d.+*/^(),\s])*", re.ASCII)
_MAX_EXPRESSION = 1000  # characters


def main(channel: int) -> None:
    """Build the data set that the first line names, then fork children until one finds that nothing more is to come.
    Answers go to the descriptor ``channel``."""
    settings = json.loads(_line())
    try:
        dataset = _dataset(settings)
    except Exception as error:  # whatever the library's own checks raise
        _say(channel, "refused", f"{type(error).__name__}: {error}")
        return
    _say(channel, "ready")
    gc.collect()
    gc.freeze()
    while True:
        child = os.fork()
        if child == 0:
            _serve(dataset, channel, settings["cpu_seconds"], settings["memory_mb"])
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == _DONE:
            return
        _say(channel, "died", code)


def _dataset(settings: dict[str, Any]) -> Any:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    name = settings["dataset"]
    if name not in DATASETS:
        raise ValueError(f"reasoning-gym has no data set {name!r}; it has {', '.join(sorted(DATASETS))}")
    _tame()
    return reasoning_gym.create_dataset(name, seed=settings["seed"], size=settings["size"], **settings["params"])


def _tame() -> None:
    """Have the library's scorers read what a policy wrote without running it."""
    import sympy
    from reasoning_gym.algorithmic import binary_matrix, spiral_matrix, string_insertion
    from reasoning_gym.games import countdown, n_queens, puzzle24

    for module in (binary_matrix, spiral_matrix, string_insertion, n_queens):
        vars(module)["eval"] = ast.literal_eval
    parse = sympy.parse_expr

    def parse_plain(text: str, *arguments: Any, **options: Any) -> Any:
        if len(text) > _MAX_EXPRESSION or not _EXPRESSION.fullmatch(text):
            raise ValueError("this is no plain expression")
        return parse(text, *arguments, **options)

    for module in (sympy, countdown, puzzle24):
        vars(module)["parse_expr"] = parse_plain


def _serve(dataset: Any, channel: int, cpu_seconds: float, memory_mb: int) -> None:
    """Answer until end of file; never returns."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    limit = _address_space() + memory_mb * 2**20
    for name, value in ((resource.RLIMIT_AS, limit), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        resource.setrlimit(name, (value, value))
    entry = lru_cache(maxsize=1024)(dataset.__getitem__)
    while line := _line():
        what, index, *answers = json.loads(line)
        try:
            found = entry(index)
            if what == "entry":
                answer = found["answer"]
                message: tuple[Any, ...] = ("entry", str(found["question"]), None if answer is None else str(answer))
            else:
                signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
                message = ("score", float(dataset.score_answer(answers[0], found)))
        except MemoryError:
            os._exit(_OUT_OF_MEMORY)
        except Exception as error:
            message = ("raised", f"{type(error).__name__}: {str(error)[:300]}")
        signal.setitimer(signal.ITIMER_PROF, 0)
        _say(channel, *message)
    os._exit(_DONE)


def _line() -> bytes:
    """A line of standard input, byte-exact: a child must not read ahead what the next one is to answer."""
    pieces = []
    while True:
        piece = os.read(0, 1 << 16)
        pieces.append(piece)
        if not piece or piece.endswith(b"\n"):  # one line is sent, and its answer waited for
            return b"".join(pieces)


def _say(channel: int, *message: Any) -> None:
    rest = memoryview(json.dumps(message).encode() + b"\n")
    while rest:
        rest = rest[os.write(channel, rest) :]


def _address_space() -> int:
    """Bytes of address space in use."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # no /proc
        return 2**31


if __name__ == "__main__":
    own = os.dup(1)
    os.dup2(2, 1)  # what the library prints
    main(own)
