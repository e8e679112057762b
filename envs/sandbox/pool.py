"""The sandbox: a mode that holds on this machine, and workers that share the checks.

Left out: a server for several processes. Each has a sandbox of its own; a jail costs 15 MiB and a tenth of a second.
"""

from __future__ import annotations

import functools
import os
import queue
import subprocess
import sys
import warnings
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from types import TracebackType
from typing import Any, Literal

from envs.sandbox.checks import Calls, Check, Limits, Mode, NoNamespacesWarning, Outcome, SandboxUnavailable, Stdio
from envs.sandbox.grade import Worker
from envs.sandbox.jail import Launch
from envs.sandbox.probe import Report, probe
from envs.sandbox.syscalls import libseccomp_version


class Sandbox:
    """Runs programs that nobody trusts, and says what they did. A context manager; thread-safe.

    ``workers`` (None: as many as this process may use cores) run at a time, each in warm jails of its own that start
    with its first check. ``mode`` ``auto`` takes ``full`` where attacks on it fail here, else ``no-namespaces``, with
    one NoNamespacesWarning. Where neither holds, or not the one asked for, it raises SandboxUnavailable, which names
    the missing part; with ``unsafe`` it runs programs nonetheless, with whatever there is. Raises ValueError for
    settings that make no sense.

    A child that this process forks has the sandbox too, with jails of its own.
    """

    def __init__(
        self,
        *,
        workers: int | None = None,
        limits: Limits | None = None,
        mode: Literal["auto", "full", "no-namespaces"] = "auto",
        unsafe: bool = False,
    ) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"sandbox: workers is {workers}; it must be at least 1, or None for one per core")
        if mode not in ("auto", "full", "no-namespaces"):
            raise ValueError(f"sandbox: mode is {mode!r}; it must be auto, full or no-namespaces")
        if sys.platform != "linux":
            raise SandboxUnavailable(
                f"this machine can't contain programs: that takes Linux, and this is {sys.platform}"
            )
        self._workers = workers or len(os.sched_getaffinity(0))
        self._limits = limits or Limits()
        self._report = choose(mode, unsafe)
        self._crew = _Crew(self._report.launch, self._limits, self._workers)
        self._finalizer = weakref.finalize(self, self._crew.close)
        _open.add(self)

    @property
    def mode(self) -> Mode:
        """What contains the programs."""
        return self._report.launch.mode

    @property
    def launch(self) -> Launch:
        """How its jails are started."""
        return self._report.launch

    def run(self, checks: Sequence[Check]) -> list[Outcome]:
        """The outcomes, in order. RuntimeError if the sandbox is closed, TypeError for what is no check."""
        for check in checks:
            if not isinstance(check, Calls | Stdio):
                raise TypeError(f"sandbox: {type(check).__name__} is no check; give Calls or Stdio")
        return self._crew.run(checks)

    def describe(self) -> dict[str, Any]:
        """For the run's manifest; plain values that JSON can hold."""
        launch = self._report.launch
        return {
            "mode": launch.mode,
            "unsafe": launch.mode == "unsafe",
            "bubblewrap": bubblewrap_version(launch.bwrap),
            "landlock_abi": self._report.landlock,
            "libseccomp": libseccomp_version() if launch.filtered else "",
            "workers": self._workers,
            "limits": asdict(self._limits),
        }

    def close(self) -> None:
        """End the jails, after the checks that are running. May be called twice."""
        self._finalizer()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _after_fork(self) -> None:
        """In a forked child: threads and jails are the parent's; begin anew."""
        alive = self._finalizer.detach() is not None
        self._crew = _Crew(self._report.launch, self._limits, self._workers)
        self._finalizer = weakref.finalize(self, self._crew.close)
        if not alive:
            self.close()


class _Crew:
    """Threads and workers. Apart from the sandbox, so that they can be closed when nobody refers to that any more."""

    def __init__(self, launch: Launch, limits: Limits, count: int) -> None:
        self._workers = [Worker(launch, limits) for _ in range(count)]
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="sandbox")

    def run(self, checks: Sequence[Check]) -> list[Outcome]:
        return list(self._threads.map(self._one, checks))

    def close(self) -> None:
        self._threads.shutdown()
        for worker in self._workers:
            worker.close()

    def _one(self, check: Check) -> Outcome:
        worker = self._idle.get()
        try:
            return worker.run(check)
        except Exception as error:  # a bug of ours must not end a training run; nor may the next check meet its traces
            worker.close()
            return Outcome("sandbox_error", 0, 0, f"{type(error).__name__}: {error}", 0.0, 0.0)
        finally:
            self._idle.put(worker)


def choose(mode: Literal["auto", "full", "no-namespaces"], unsafe: bool) -> Report:
    """How to start jails here. Raises SandboxUnavailable."""
    reports = [probe(name) for name in ("full", "no-namespaces") if mode == name]
    if mode == "auto":
        reports = [probe("full")]
        if not reports[0].holds:
            reports.append(probe("no-namespaces"))
    for report in reports:
        if report.holds:
            if mode == "auto" and report.launch.mode == "no-namespaces":
                _warn(reports[0].why_not)
            return report
    if unsafe:
        return Report(Launch("unsafe", filtered=bool(libseccomp_version())), (), 0)
    reasons = "; ".join(f"mode {report.launch.mode}: {report.why_not}" for report in reports)
    raise SandboxUnavailable(
        f"this machine can't contain programs. {reasons}. `python -m envs.sandbox doctor` shows every attack that was "
        "tried. Only if nothing on this machine is worth protecting, set unsafe=true"
    )


@functools.cache
def _warn(why: str) -> None:
    warnings.warn(
        f"programs run without namespaces here, contained by Landlock, seccomp and rlimits alone ({why})",
        NoNamespacesWarning,
        stacklevel=4,
    )


def bubblewrap_version(path: str) -> str:
    """Such as ``0.11.0``; "" without bubblewrap."""
    with suppress(OSError, IndexError):
        return subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.split()[-1]
    return ""


_open: weakref.WeakSet[Sandbox] = weakref.WeakSet()


def _after_fork() -> None:
    for sandbox in list(_open):
        sandbox._after_fork()


os.register_at_fork(after_in_child=_after_fork)
