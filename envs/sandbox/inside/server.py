"""The fork server: the one process of a jail that stays. It forks a child for each program and watches over it.

It is process 1 of its own process namespace where there is one. It learns neither programs nor tests: requests carry
descriptors, which only the child reads. It ends when its control socket is closed, a running child with it.
"""

from __future__ import annotations

import gc
import json
import os
import random
import select
import signal
import site
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from os import _exit
from typing import Any, NoReturn

from . import asserts, confine, program, tree

_POLL_SECONDS = 0.05
_WIPE_SECONDS = 0.3

# Imported here once, so that no child has to: what solutions and tests import most.
_COMMON = (
    "bisect collections copy cmath dataclasses datetime decimal enum fractions functools heapq io itertools json math "
    "operator queue random re statistics string tempfile textwrap typing"
)


def main(control_fd: int, library_fd: int | None) -> NoReturn:
    """Serve until the control socket is closed. The first message configures the server, each later one is a request.

    ``library_fd`` is a descriptor that the interpreter's library is read through, or None.
    """
    control = socket.socket(fileno=control_fd)
    config = json.loads(control.recv(1 << 20))
    try:
        server = _Server(control, config, library_fd)
        control.send(json.dumps({"landlock": server.landlock}).encode())
        os.dup2(1, 2)  # the jail's standard error was for its start; programs get /dev/null
    except BaseException as error:
        control.send(json.dumps({"failed": f"{type(error).__name__}: {error}"}).encode())
        _exit(1)
    while True:
        server.serve()


class _Server:
    def __init__(self, control: socket.socket, config: dict[str, Any], library_fd: int | None) -> None:
        self._control = control
        self._own_namespace: bool = config["mode"] == "full"
        self._limits: dict[str, Any] = config["limits"]
        self._file_bytes = self._limits["file_mb"] << 20
        self._count_threads = not self._limits["processes"]
        self._keep = [] if library_fd is None else [library_fd]
        self._workdir: str = config["workdir"]
        own_filter, self._filter = (bytes.fromhex(program) for program in config["filters"])
        self._own_pid: int = config["own_pid"]
        self._pid = os.getpid()

        os.chdir(self._workdir)
        self._folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        # Before root is given up: what is to be readable may lie where an ordinary user can't look for it.
        ruleset = confine.landlock(config["readable"], ".")
        self.landlock = 0 if ruleset is None else ruleset.abi_version
        if config["uid"] is not None:
            confine.become(config["uid"])
        for name in _COMMON.split():
            __import__(name)
        site.setquit()  # exit() and quit(), which programs use
        sys.path[:] = [path for path in sys.path if path not in config["hidden"]]
        sys.argv = ["program.py"]
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        threading.stack_size(8 << 20)

        confine.harden()
        confine.bound(self._limits)
        # To count a child's threads, the server needs /proc.
        self._ruleset = ruleset if self._count_threads else None
        if ruleset is not None and not self._count_threads:
            ruleset.restrict(no_new_privs=False)
        if own_filter:
            confine.install(own_filter)
        gc.collect()
        gc.freeze()  # so that a child's collector does not touch, and so copy, what it shares with the server

    def serve(self) -> None:
        """Carry out one request: {"job", "cpu", "wall"} with the descriptors of the job."""
        message, descriptors, _, _ = socket.recv_fds(self._control, 65536, 8)
        if not message:
            self._leave()
        request = json.loads(message)
        if request["job"] == "stop":  # meant for a child that had ended by itself
            return
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            self._child(request, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        reason = self._watch(pid, request["cpu"], started + request["wall"])
        if reason:
            os.kill(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        if self._own_namespace:
            _end_strays()
        clean = tree.wipe(self._folder, _WIPE_SECONDS)
        code = os.waitstatus_to_exitcode(status)
        reply = {
            "code": code,
            "reason": reason,
            "cpu": usage.ru_utime + usage.ru_stime,
            "wall": time.monotonic() - started,
            "clean": clean,
        }
        self._control.send(json.dumps(reply).encode())

    def _watch(self, pid: int, cpu_seconds: float, deadline: float) -> str:
        """Wait for a child. Why it must be killed (see ``jail.End``), or "" if it ended by itself."""
        clock = (~pid << 3) | 2  # its CPU clock, as clock_getcpuclockid(3) makes it
        pidfd = os.pidfd_open(pid)
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        poller.register(self._control, select.POLLIN)
        try:
            while True:
                cpu_left, wall_left = cpu_seconds - time.clock_gettime(clock), deadline - time.monotonic()
                if cpu_left <= 0:
                    return "cpu"
                if wall_left <= 0:
                    return "wall"
                events = dict(poller.poll(1000 * min(cpu_left, wall_left, _POLL_SECONDS) + 1))
                if pidfd in events:
                    return ""
                if events:
                    if not self._control.recv(4096):
                        os.kill(pid, signal.SIGKILL)
                        self._leave()
                    return "stop"
                if tree.over(self._folder, self._file_bytes, own_filesystem=self._own_namespace):
                    return "files"
                if self._count_threads and _threads(pid) > self._limits["threads"] + 1:
                    return "threads"
        finally:
            os.close(pidfd)

    def _leave(self) -> NoReturn:
        """The grader is gone or has closed the jail. In a namespace everything vanishes with this process."""
        if not self._own_namespace:
            tree.wipe(self._folder, 10.0)
            with suppress(OSError):
                os.rmdir(self._workdir)
        _exit(0)

    def _child(self, request: dict[str, Any], descriptors: list[int]) -> NoReturn:
        try:
            payload = json.loads(os.pread(descriptors[0], os.fstat(descriptors[0]).st_size, 0))
            kept = list(self._keep)
            if request["job"] == "script":
                for target, descriptor in enumerate(descriptors[1:]):
                    os.dup2(descriptor, target)
            else:
                kept += descriptors[1:]
            random.seed(0)
            confine.confine_child(request["cpu"], self._ruleset, self._filter, self._own_pid)
            if os.getppid() != self._pid:  # the server died before this process was tied to it
                _exit(1)
            self._close_all_but(kept)
            if request["job"] == "script":
                program.run_script(payload["source"])
            elif request["job"] == "calls":
                program.serve_calls(payload["source"], payload["names"], descriptors[1], payload["limit"])
            else:
                asserts.run_asserts(
                    payload["setup"],
                    payload["tests"],
                    payload["names"],
                    channel=descriptors[1],
                    report=descriptors[2],
                    limit=payload["limit"],
                )
        except BaseException:
            traceback.print_exc()
        finally:
            _exit(1)

    def _close_all_but(self, kept: list[int]) -> None:
        """Close every descriptor but 0, 1, 2 and those."""
        last = 2
        for descriptor in sorted(kept):
            os.closerange(last + 1, descriptor)
            last = descriptor
        os.closerange(last + 1, self._limits["open_files"])


def _threads(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0


def _end_strays() -> None:
    """Kill and reap every other process of the namespace. There are none unless a program broke out of its filter."""
    with suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
