"""What the fork server gives up before the first program: resources, files (Landlock), system calls (seccomp).

Its children inherit that, which costs them nothing; a child adds what the server could not live with. All this comes on
top of the jail's namespaces, and either is meant to hold alone.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
from collections.abc import Iterable, Mapping

from landlockpy import AccessFS, LandlockError, Ruleset, Scope

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER, _SIGKILL, _BPF_JEQ = 2, 9, 0x15
_READ = AccessFS.READ_FILE | AccessFS.READ_DIR
_WORK = (
    _READ
    | AccessFS.WRITE_FILE
    | AccessFS.TRUNCATE
    | AccessFS.REMOVE_DIR
    | AccessFS.REMOVE_FILE
    | AccessFS.MAKE_DIR
    | AccessFS.MAKE_REG
    | AccessFS.MAKE_SYM
    | AccessFS.REFER
)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def become(uid: int) -> None:
    """Turn root into an ordinary user without groups and capabilities, for good."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def harden() -> None:
    """No privileges to gain any more, and nobody may look into this process's memory."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)


def bound(limits: Mapping[str, int]) -> None:
    """Have the kernel enforce the sandbox's limits on this process and on each of its children alone."""
    bounds = {
        resource.RLIMIT_AS: limits["memory_mb"] << 20,
        resource.RLIMIT_STACK: 64 << 20,
        resource.RLIMIT_FSIZE: limits["file_mb"] << 20,
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if limits["processes"]:
        bounds[resource.RLIMIT_NPROC] = limits["processes"]
    for name, value in bounds.items():
        hard = resource.getrlimit(name)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))


def landlock(readable: Iterable[str], workdir: str) -> Ruleset | None:
    """Reading of ``readable``, everything ordinary in ``workdir``, nothing elsewhere; None without Landlock."""
    try:
        ruleset = Ruleset(scoped=Scope.ABSTRACT_UNIX_SOCKET | Scope.SIGNAL)
    except LandlockError:
        return None
    for path in readable:
        if os.path.exists(path):
            ruleset.allow_path(path, _READ if os.path.isdir(path) else AccessFS.READ_FILE)
    for path in _DEVICES:
        if os.path.exists(path):
            ruleset.allow_path(path, AccessFS.READ_FILE | AccessFS.WRITE_FILE | AccessFS.TRUNCATE)
    ruleset.allow_path(workdir, _WORK)
    return ruleset


def install(program: bytes) -> None:
    """Put this process and its children under a seccomp filter. OSError if the kernel refuses."""
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(_Program(len(program) // 8, program)))


def confine_child(cpu_seconds: float, ruleset: Ruleset | None, program: bytes, placeholder: int) -> None:
    """In a child: die with the server, and what only a program must do without. ``placeholder`` stands in the filter
    ``program`` for the process id. OSError or LandlockError if the kernel refuses."""
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL)  # it follows the thread that forked, but the server has just one
    # A backstop in whole seconds. The server is more exact.
    resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_seconds) + 2, int(cpu_seconds) + 3))
    if ruleset is not None:
        ruleset.restrict(no_new_privs=False)
    if program:
        install(_with_pid(program, placeholder, os.getpid()))


def _with_pid(program: bytes, placeholder: int, pid: int) -> bytes:
    """The filter with the process id for the placeholder in its comparisons. An instruction is eight bytes."""
    old, new = struct.pack("=HBBI", _BPF_JEQ, 0, 0, placeholder), struct.pack("=I", pid)
    return b"".join(
        code[:4] + new if code[:2] == old[:2] and code[4:] == old[4:] else code
        for code in (program[place : place + 8] for place in range(0, len(program), 8))
    )


def _prctl(option: int, argument: int, pointer: object = None) -> None:
    if _libc.prctl(option, ctypes.c_ulong(argument), pointer, None, None) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")
