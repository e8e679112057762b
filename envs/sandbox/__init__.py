"""Running programs that a model wrote, and judging them by tests that they can't see.

The *grader* (this process) holds tests and expected values and decides. A *jail* is one bubblewrap process with a fork
server in it, started once; each program runs in a fresh child of it, which may use no network, start no process, read
nothing but Python's library and write nothing but a small temporary directory. Tests that call the program's functions
run in a second jail, where those functions are stand-ins that exchange plain data with the program; so neither tests
nor what they expect are ever in a process that a program runs in, nor is there a channel to write a verdict to.

What it does not defend against: bugs of the kernel; programs that use the caches of the processor to spy on others.

    with Sandbox() as sandbox:
        outcomes = sandbox.run([Stdio("print(int(input()) * 2)", (("21", "42"),))])

Where to read on: ``checks`` (questions and answers), ``grade`` (verdicts), ``jail`` and ``syscalls`` (walls),
``inside`` (what runs behind them), ``probe`` (whether they hold), ``pool`` (the sandbox), ``problems`` (rows).
"""

from envs.sandbox.checks import (
    Calls,
    Check,
    Limits,
    Mode,
    NoNamespacesWarning,
    Outcome,
    SandboxUnavailable,
    Status,
    Stdio,
)
from envs.sandbox.pool import Sandbox
from envs.sandbox.probe import Probe, Report, probe

__all__ = [
    "Calls",
    "Check",
    "Limits",
    "Mode",
    "NoNamespacesWarning",
    "Outcome",
    "Probe",
    "Report",
    "Sandbox",
    "SandboxUnavailable",
    "Status",
    "Stdio",
    "probe",
]
