"""The attack suite, in both modes: no attack is ever ok, an error, late, or felt by the next program or by the host."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest
from sandbox_attacks import CANARY_VARIABLE, SECRET, Attack, attacks, need

from envs.sandbox import Calls, Limits, Sandbox, Status, Stdio
from envs.sandbox.jail import Jail

LIMITS = Limits(cpu_seconds=0.4, wall_seconds=1.0, memory_mb=256, output_kb=64, file_mb=4, threads=8)
SLACK = 1.0  # on top of the half second that a verdict may take after the limit: this machine may be busy
PUBLIC = ("/tmp", "/var/tmp", "/dev/shm")
MODES = ("full", "no-namespaces")

NICENESS = os.getpriority(os.PRIO_PROCESS, 0)  # which programs inherit

# What it prints is what a fresh process finds.
GOOD = Stdio(
    """
import os, resource, signal, threading
print(os.listdir("."), os.umask(0o22), signal.getsignal(signal.SIGALRM) == signal.SIG_DFL, signal.getitimer(0))
print(threading.active_count(), signal.pthread_sigmask(signal.SIG_BLOCK, []), os.getpriority(os.PRIO_PROCESS, 0))
print(resource.getrlimit(resource.RLIMIT_NOFILE), len(sorted([1, 2])), all([0]), input())
os.mkdir("a")
open("a/b", "w").write("c")
print(open("a/b").read(), os.stat("a/b").st_size)
thread = threading.Thread(target=print, args=("thread",))
thread.start()
thread.join()
""",
    (("hello", f"[] 18 True (0.0, 0.0)\n1 set() {NICENESS}\n(64, 64) 2 False hello\nc 1\nthread"),),
)
RIGHT = Calls("def answer(x):\n    return [x, 'ä']", ("assert answer(1.5) == [1.5, 'ä']",), ("answer",))
NOT_RIGHT = Calls("def answer(x):\n    return [x, 'a']", ("assert answer(1.5) == [1.5, 'ä']",), ("answer",))


@dataclass(frozen=True)
class Scene:
    """A sandbox and what the attacks might get at."""

    sandbox: Sandbox
    canary: Path
    attacks: dict[str, Attack]
    folders: frozenset[str]


def names() -> list[str]:
    return [each.name for each in attacks("", 0, "", "", 0)]


@pytest.fixture(scope="module", params=MODES)
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    need(request.param)
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX) as abstract,
        pytest.MonkeyPatch.context() as patch,
        Sandbox(workers=1, mode=request.param, limits=LIMITS) as sandbox,
    ):
        patch.setenv(CANARY_VARIABLE, SECRET)
        canary = Path(folder, "canary")
        canary.write_text(SECRET, encoding="ascii")
        os.chmod(folder, 0o755)
        unix.bind(f"{folder}/socket")
        os.chmod(f"{folder}/socket", 0o777)
        name = f"\0sandbox-attacks-{os.getpid()}"
        abstract.bind(name)
        for listener in (unix, abstract):
            listener.listen()
        for listener in (tcp, unix, abstract):
            threading.Thread(target=greet, args=(listener,), daemon=True).start()
        found = attacks(str(canary), tcp.getsockname()[1], f"{folder}/socket", name, os.getpid())
        yield Scene(sandbox, canary, {each.name: each for each in found}, work_folders())
        for listener in (tcp, unix, abstract):
            listener.shutdown(socket.SHUT_RDWR)


def greet(listener: socket.socket) -> None:
    """Tell the secret to whoever connects."""
    while True:
        try:
            with listener.accept()[0] as connection:
                connection.sendall(SECRET.encode())
        except OSError:
            return


def jails(sandbox: Sandbox) -> list[Jail]:
    return [jail for worker in sandbox._crew._workers for jail in worker._jails.values()]


def status_of(pid: int | str) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {name: rest.strip() for name, _, rest in (line.partition(":") for line in lines)}


def work_folders() -> frozenset[str]:
    """Working directories of jails without namespaces; a grader that was killed leaves an empty one."""
    return frozenset(name for name in os.listdir(tempfile.gettempdir()) if name.startswith("sandbox-"))


def strays(scene: Scene) -> list[str]:
    """Processes of the jails besides their fork servers, and files of theirs outside their working directories."""
    sandbox = scene.sandbox
    found = []
    processes = {pid: status_of(pid) for pid in os.listdir("/proc") if pid.isdigit()}
    for jail in jails(sandbox):
        server = status_of(jail.pid)
        uid = int(server["Uid"].split()[0])
        for pid, status in processes.items():
            same_user = uid != os.getuid() and status.get("Uid", "").split()[:1] == [str(uid)]
            if pid != str(jail.pid) and (same_user or status.get("PPid") == str(jail.pid)):
                found.append(f"process {pid}: {status}")
        if uid != os.getuid():
            for folder in PUBLIC:
                with os.scandir(folder) as entries:
                    files = {entry.path for entry in entries if entry.stat(follow_symlinks=False).st_uid == uid}
                found += sorted(files - {jail._folder})
        if jail._folder:
            found += os.listdir(jail._folder)
    mine = {os.path.basename(jail._folder) for jail in jails(sandbox)}
    return found + sorted(work_folders() - scene.folders - mine)


@pytest.mark.parametrize("name", names())
def test_an_attack(scene: Scene, name: str) -> None:
    attack, before = scene.attacks[name], scene.canary.stat()
    [outcome] = scene.sandbox.run([attack.check])
    assert outcome.status not in ("ok", "sandbox_error"), outcome
    assert outcome.status in attack.allowed, outcome
    assert outcome.passed < outcome.total
    assert outcome.wall_seconds < LIMITS.wall + 0.5 + SLACK, outcome
    assert outcome.cpu_seconds < LIMITS.cpu_seconds + 0.3, outcome
    assert len(outcome.detail) <= 300
    assert outcome.detail.isprintable()

    deadline = time.monotonic() + 10  # what a jail that is thrown away held is removed in the background
    while (left := strays(scene)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []
    after = scene.canary.stat()
    assert scene.canary.read_text(encoding="ascii") == SECRET
    assert (after.st_mode, after.st_mtime, after.st_nlink) == (before.st_mode, before.st_mtime, before.st_nlink)

    outcomes = scene.sandbox.run([GOOD, RIGHT, NOT_RIGHT])
    assert [each.status for each in outcomes] == ["ok", "ok", "wrong_answer"], outcomes


def test_they_are_all_there() -> None:
    found = list(attacks("", 0, "", "", 0))
    assert len({each.name for each in found}) == len(found) > 300
    for each in found:
        assert each.allowed
        assert each.allowed <= set(get_args(Status)) - {"ok", "sandbox_error"}


def test_fork_servers_have_no_privileges(scene: Scene) -> None:
    scene.sandbox.run([RIGHT])
    for jail in jails(scene.sandbox):
        status = status_of(jail.pid)
        assert "0" not in status["Uid"].split() + status["Gid"].split()
        assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapAmb")} == {0}
        assert (status["NoNewPrivs"], status["Seccomp"], status["Groups"]) == ("1", "2", "")
