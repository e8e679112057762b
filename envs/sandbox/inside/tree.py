"""The working directory, which a program may have left in any state: emptied, and kept within bounds meanwhile.

Names, depth and permissions are the program's, so nothing here recurses, joins paths or follows links.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from itertools import islice

MAX_FILES = 1024
"""How many files and folders a program may have in its working directory."""

_BATCH = 1000


def wipe(folder: int, seconds: float) -> bool:
    """Empty the directory that the descriptor ``folder`` stands for; False if that failed or took over ``seconds``.

    No process may be using it any more. Folders are moved up to the top before they are emptied, so that neither
    depth nor the length of paths matters.
    """
    deadline = time.monotonic() + seconds
    token, moved = secrets.token_hex(8), 0
    try:
        while names := _names(folder):
            for name, is_folder in names:
                if time.monotonic() > deadline:
                    return False
                if not is_folder:
                    os.unlink(name, dir_fd=folder)
                    continue
                os.chmod(name, 0o700, dir_fd=folder)
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
                try:
                    while children := _names(inner):
                        if time.monotonic() > deadline:
                            return False
                        for child, child_is_folder in children:
                            if child_is_folder:
                                os.chmod(child, 0o700, dir_fd=inner)  # to move a folder one must be able to write to it
                                os.rename(child, f"{token}-{moved}", src_dir_fd=inner, dst_dir_fd=folder)
                                moved += 1
                            else:
                                os.unlink(child, dir_fd=inner)
                finally:
                    os.close(inner)
                os.rmdir(name, dir_fd=folder)
    except OSError:
        return False
    return True


def over(folder: int, size: int, *, own_filesystem: bool) -> bool:
    """Whether more than ``MAX_FILES`` files, or more than ``size`` bytes, lie in the directory; a program may be at it.

    In a file system of its own the kernel knows, and bounds the size itself. Elsewhere the tree is walked, which ends
    at the bound.
    """
    if own_filesystem:
        state = os.fstatvfs(folder)
        return state.f_files - state.f_ffree > MAX_FILES
    found, total, pending = 0, 0, [b"."]
    while pending:
        path = pending.pop()
        try:
            inner = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
        except OSError as error:
            # Hidden from us by its permissions, or deeper than a path can be: no honest program does either.
            if error.errno in (errno.EACCES, errno.ENAMETOOLONG):
                return True
            continue
        try:
            with os.scandir(inner) as entries:
                for entry in entries:
                    found += 1
                    state_of = entry.stat(follow_symlinks=False)
                    total += state_of.st_blocks * 512
                    if found > MAX_FILES or total > size:
                        return True
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(path + b"/" + os.fsencode(entry.name))
        except OSError:
            continue
        finally:
            os.close(inner)
    return False


def _names(folder: int) -> list[tuple[str, bool]]:
    """Some of the names in a directory, each with whether it is a directory itself."""
    with os.scandir(folder) as entries:
        return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in islice(entries, _BATCH)]
