"""A worker process: ``python -m envs.verify.worker CPU_SECONDS MEMORY_MB``, talked to by ``pool``.

The process imports sympy once and then only forks: its child checks answers, and when the child dies the next one is
there in milliseconds. The child arms a CPU timer before each check whose signal nobody handles, so that the kernel
ends it, whatever it is doing; a limit on the address space does the same for memory. Both hold even if nobody is
watching.

Messages are lines of JSON. In: a chunk of ``[gold, answer]`` pairs. Out: ``["ready"]``, ``["begun"]``, then for each
pair ``["verdict", correct, status, answer]`` or ``["error", message]``, and ``["died", signal or exit code]`` when a
child is gone.

Left out: retries and the wall clock, which are the pool's.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
from typing import Any

from envs.verify.judge import judge

CHECKS_OF_ONE_CHILD = 50_000
"""After so many a fresh child takes over, so that what sympy remembers does not grow for ever."""

# Checked before the first fork: sympy and the grammar's parser fill tables as they meet things.
_WARM_UP = (
    ("x^2+2x+1", "(x+1)^2"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    (r"\frac{\pi}{4}", r"\sin^2 x + \log_2 8"),
    (r"f(x)=x_1+|x|", r"x^{1/2}+\frac{a}{b}y_2"),
    (r"(-\infty,3)\cup(5,\infty)", r"x \ne 3"),
    (r"y=2x+1", r"2x-y+1=0"),
    ("1/3", "0.3333333"),
    (r"e^{i\pi}", "3+4i"),
)

_DONE, _RELIEVED, _OUT_OF_MEMORY = 0, 75, 76


def main(cpu_seconds: float, memory_mb: int) -> None:
    """Fork children until one finds that nothing more is to come."""
    for gold, answer in _WARM_UP:
        judge(gold, answer)
    gc.collect()
    gc.freeze()
    while True:
        child = os.fork()
        if child == 0:
            serve(cpu_seconds, memory_mb)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == _DONE:
            return
        if code != _RELIEVED:
            _say("died", code)


def serve(cpu_seconds: float, memory_mb: int) -> None:
    """Answer chunks until end of file; never returns."""
    for number in (signal.SIGPROF, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = _address_space() + memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    _say("ready")
    checks = 0
    while checks < CHECKS_OF_ONE_CHILD:
        line = _line()
        if not line:
            os._exit(_DONE)
        _say("begun")
        for gold, answer in json.loads(line):
            signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
            try:
                verdict = judge(gold, answer)
                message: tuple[Any, ...] = ("verdict", verdict.correct, verdict.status, verdict.answer)
            except MemoryError:
                os._exit(_OUT_OF_MEMORY)
            except ValueError as error:
                message = ("error", str(error)[:1000])
            signal.setitimer(signal.ITIMER_PROF, 0)
            _say(*message)
            checks += 1
    os._exit(_RELIEVED)


def _line() -> bytes:
    """A line of standard input, byte-exact: a child must not read ahead what the next one is to answer."""
    pieces = []
    while True:
        piece = os.read(0, 1 << 16)
        pieces.append(piece)
        if not piece or piece.endswith(b"\n"):  # the pool sends one chunk and waits
            return b"".join(pieces)


def _say(*message: Any) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def _address_space() -> int:
    """Bytes of address space in use."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # no /proc
        return 2**31


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
