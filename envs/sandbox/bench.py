"""How fast the sandbox is: trivial programs, HumanEval-style checks, the start of a jail.

Rates are over all workers, jails warm; starts are of one jail after another. On a busy machine they say little.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from envs.sandbox.checks import Calls, Check, Limits, Stdio
from envs.sandbox.jail import Jail
from envs.sandbox.pool import Sandbox

_PROMPT = '''from typing import List


def has_close_elements(numbers: List[float], threshold: float) -> bool:
    """ Check if in given list of numbers, are any two numbers closer to each other than given threshold.
    """
'''
_BODY = """    numbers = sorted(numbers)
    return any(b - a < threshold for a, b in zip(numbers, numbers[1:]))
"""
_TEST = """
def check(candidate):
    assert candidate([1.0, 2.0, 3.9, 4.0, 5.0, 2.2], 0.3) == True
    assert candidate([1.0, 2.0, 3.9, 4.0, 5.0, 2.2], 0.05) == False
    assert candidate([1.0, 2.0, 5.9, 4.0, 5.0], 0.95) == True
    assert candidate([1.0, 2.0, 5.9, 4.0, 5.0], 0.8) == False
    assert candidate([1.0, 2.0, 3.0, 4.0, 5.0, 2.0], 0.1) == True
    assert candidate([1.1, 2.2, 3.1, 4.1, 5.1], 1.0) == True
    assert candidate([1.1, 2.2, 3.1, 4.1, 5.1], 0.5) == False
check(has_close_elements)
"""
TRIVIAL = Stdio("print(42)", (("", "42"),))
"""The least that a program can do."""
CHECK = Calls(_PROMPT + _BODY, (_TEST,), ("has_close_elements",), _PROMPT)
"""A check as HumanEval's are: seven calls."""


@dataclass(frozen=True)
class Speed:
    """Programs and checks per second over all workers; the median start of a jail in milliseconds."""

    mode: str
    workers: int
    programs_per_second: float
    checks_per_second: float
    jail_start_ms: float


def bench(sandbox: Sandbox, *, seconds: float = 3.0) -> Speed:
    """Measure for about ``seconds`` each. Raises RuntimeError if a check does not pass."""
    described = sandbox.describe()
    starts = []
    for _ in range(5):
        started = time.perf_counter()
        jail = Jail(sandbox.launch, Limits())
        starts.append(time.perf_counter() - started)
        jail.close()
    return Speed(
        described["mode"],
        described["workers"],
        _rate(sandbox, TRIVIAL, seconds),
        _rate(sandbox, CHECK, seconds),
        1000 * statistics.median(starts),
    )


def _rate(sandbox: Sandbox, check: Check, seconds: float) -> float:
    batch = [check] * 32
    sandbox.run(batch)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for outcome in sandbox.run(batch):
            if outcome.status != "ok":
                raise RuntimeError(f"bench: a check that should pass did not: {outcome}")
        count += len(batch)
    return count / (time.perf_counter() - started)
