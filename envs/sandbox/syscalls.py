"""Which system calls are allowed: seccomp filters, built by libseccomp from the calls' names.

What ordinary Python programs need is allowed; what only an attack needs kills the process, so that the outcome says
``violation``; everything else fails as if the kernel did not have it, which libraries know how to cope with.

There are two filters, since a large one takes the kernel a millisecond to load. The fork server loads the large one
once for itself and so for all its children; each child adds a small one, which takes away what only the server needs.

Left out: file names and other memory that arguments point to, which a filter can't see. Landlock looks after those.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import tempfile
from dataclasses import dataclass

OWN_PID = 0x5EC0DE5
"""Stands in the children's filter for the process id of the child, which puts its own there."""

_ALLOWED = """
    read readv pread64 preadv preadv2 write writev pwrite64 pwritev pwritev2 lseek close close_range dup dup2 dup3
    open openat creat stat fstat lstat newfstatat statx statfs fstatfs access faccessat faccessat2 readlink readlinkat
    getdents getdents64 getcwd chdir fchdir mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 symlink
    symlinkat link linkat truncate ftruncate fallocate fsync fdatasync sync_file_range fadvise64 flock umask sendfile
    copy_file_range pipe pipe2 poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait
    epoll_pwait2 eventfd eventfd2 recvfrom sendto shutdown getsockopt getsockname getpeername
    mmap munmap mprotect mremap madvise msync mincore brk
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack pause alarm
    getitimer setitimer nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time times getrusage
    futex futex_waitv set_robust_list get_robust_list set_tid_address rseq membarrier restart_syscall
    sched_yield sched_getaffinity sched_getscheduler sched_getparam sched_get_priority_max sched_get_priority_min getcpu
    getpid getppid gettid getuid geteuid getgid getegid getresuid getresgid getgroups getpgrp getpgid getsid getpriority
    getrlimit setrlimit uname sysinfo getrandom arch_prctl exit exit_group
"""

_ATTRIBUTES = """
    getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr setxattr lsetxattr fsetxattr removexattr lremovexattr
    fremovexattr
"""

_REFUSED = """
    setpgid setsid setpriority sched_setaffinity sched_setscheduler sched_setparam sched_setattr ioprio_set
    setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups mknod mknodat
    mlock mlock2 mlockall munlock munlockall setsockopt listen accept accept4
"""

_HOSTILE = """
    execve execveat fork vfork ptrace process_vm_readv process_vm_writev process_madvise process_mrelease kcmp
    tkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_getfd pidfd_send_signal socket connect bind
    memfd_create memfd_secret userfaultfd io_uring_setup io_uring_enter io_uring_register io_setup io_submit
    shmget shmat shmctl semget semop semctl msgget msgsnd msgrcv mq_open
    mount umount2 mount_setattr move_mount open_tree fsopen fsmount fspick fsconfig pivot_root chroot unshare setns
    bpf perf_event_open keyctl add_key request_key name_to_handle_at open_by_handle_at fanotify_init quotactl acct
    swapon swapoff reboot kexec_load kexec_file_load init_module finit_module delete_module syslog personality
    settimeofday clock_settime clock_adjtime adjtimex sethostname setdomainname iopl ioperm modify_ldt capset
    vmsplice tee splice
"""

# What only the fork server needs, and what becomes of it in a child. Changing modes, owners and times succeeds there
# without doing anything: shutil.copy fails if it can't set modes, and Landlock would not keep a program from changing
# those of its user's other files, where it runs as a user of the host.
_PRETENDED = "chmod fchmod fchmodat chown fchown lchown fchownat utime utimes futimesat utimensat"
_SERVER_REFUSED = "wait4 waitid sendmsg sendmmsg recvmsg recvmmsg"
_SERVER_HOSTILE = "pidfd_open landlock_restrict_self seccomp"

_CLONE_VM, _CLONE_SIGHAND, _CLONE_THREAD = 0x100, 0x800, 0x10000
_CLONE_NEW = 0x7E020080  # namespaces
_PR_SET_NAME = 15
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS TIOCGWINSZ FIONREAD FIONBIO FIONCLEX FIOCLEX
# Descriptors, flags and locks; not those that send signals to other processes or make pipes larger.
_FCNTL = (*range(8), 36, 37, 38, 1030, 1032, 1034)
_AF_UNIX, _SOCK_STREAM, _SOCK_TYPE = 1, 1, 0xF


@dataclass(frozen=True)
class Filters:
    """BPF programs. The server's holds for its children too; ``child`` has ``OWN_PID`` where that belongs."""

    server: bytes
    child: bytes


@functools.cache
def build_filters() -> Filters:
    """The filters for this machine's architecture.

    Raises ImportError or RuntimeError if pyseccomp or libseccomp is missing, OSError if libseccomp refuses a rule.
    """
    import pyseccomp as lib

    arg, allow, kill = lib.Arg, lib.ALLOW, lib.KILL_PROCESS

    def rules(policy: lib.SyscallFilter, action: int, names: str, *conditions: lib.Arg) -> None:
        for name in names.split():
            number = lib.resolve_syscall(lib.Arch.NATIVE, name)
            if number != -1:  # unknown to this libseccomp: the default holds
                policy.add_rule(action, number, *conditions)

    server = lib.SyscallFilter(lib.ERRNO(errno.ENOSYS))
    server.set_attr(lib.Attr.ACT_BADARCH, kill)  # calls by the 32-bit and x32 tables
    server.set_attr(lib.Attr.CTL_OPTIMIZE, 2)  # a binary tree, not a list
    for names in (_ALLOWED, _PRETENDED, _SERVER_REFUSED, _SERVER_HOSTILE, "kill tgkill prctl"):
        rules(server, allow, names)
    rules(server, lib.ERRNO(errno.ENOTSUP), _ATTRIBUTES)
    rules(server, lib.ERRNO(errno.EPERM), _REFUSED)
    rules(server, kill, _HOSTILE)
    rules(server, allow, "clone", arg(0, lib.MASKED_EQ, _CLONE_NEW, 0))
    # Its own limits. A program can't raise those, but the fork server has the same user.
    rules(server, allow, "prlimit64", arg(0, lib.EQ, 0))
    rules(server, kill, "prlimit64", arg(0, lib.NE, 0))
    # With one of these, asyncio's event loop wakes itself up.
    rules(server, allow, "socketpair", arg(0, lib.EQ, _AF_UNIX), arg(1, lib.MASKED_EQ, _SOCK_TYPE, _SOCK_STREAM))
    for request in _IOCTL:
        rules(server, allow, "ioctl", arg(1, lib.EQ, request))
    for command in _FCNTL:
        rules(server, allow, "fcntl", arg(1, lib.EQ, command))

    child = lib.SyscallFilter(allow)
    child.set_attr(lib.Attr.ACT_BADARCH, kill)
    rules(child, lib.ERRNO(0), _PRETENDED)
    rules(child, lib.ERRNO(errno.EPERM), _SERVER_REFUSED)
    rules(child, kill, _SERVER_HOSTILE)
    rules(child, kill, "kill tgkill", arg(0, lib.NE, OWN_PID))
    rules(child, lib.ERRNO(errno.EPERM), "prctl", arg(0, lib.NE, _PR_SET_NAME))
    # Threads, not processes.
    for flag in (_CLONE_VM, _CLONE_SIGHAND, _CLONE_THREAD):
        rules(child, kill, "clone", arg(0, lib.MASKED_EQ, flag, 0))
    return Filters(_exported(server), _exported(child))


def _exported(policy: object) -> bytes:
    with tempfile.TemporaryFile() as file:
        policy.export_bpf(file)  # type: ignore[attr-defined]
        file.seek(0)
        return file.read()


def libseccomp_version() -> str:
    """Such as ``2.5.4``; "" if there is no libseccomp."""

    class Version(ctypes.Structure):
        _fields_ = (("major", ctypes.c_uint), ("minor", ctypes.c_uint), ("micro", ctypes.c_uint))

    try:
        version = ctypes.CDLL("libseccomp.so.2").seccomp_version
    except (OSError, AttributeError):
        return ""
    version.restype = ctypes.POINTER(Version)
    found = version().contents
    return f"{found.major}.{found.minor}.{found.micro}"
