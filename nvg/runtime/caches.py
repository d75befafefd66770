"""Where nvg keeps what it can make again, machine code and packed weights, and how: in private files that are written
under another name and then renamed, so that what has the name is whole."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# O_NONBLOCK: a named pipe in a file's place would otherwise be waited for
_FLAGS = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_BINARY", "O_NONBLOCK"))


def cache_root() -> Path:
    """`NVG_CACHE_DIR`, else the platform's cache directory + "nvg"."""
    if directory := os.environ.get("NVG_CACHE_DIR"):
        return Path(directory)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "nvg"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "nvg"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nvg"


def make_private(directory: Path) -> Path:
    """`directory`, made if need be, and checked (`check_private`). Raises OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private(directory)
    return directory


def check_private(directory: Path) -> None:
    """Close a directory to other users if they can write to it. That nobody can is no fault: what is there can be used.

    Raises OSError if it is not there, or not this user's.
    """
    status = directory.stat()
    if hasattr(os, "getuid"):
        if status.st_uid != os.getuid():
            raise PermissionError(f"{directory} belongs to user {status.st_uid}")
        if (mode := stat.S_IMODE(status.st_mode)) & 0o022:
            directory.chmod(mode & ~0o077)


@contextlib.contextmanager
def replacing(path: Path, buffering: int = -1) -> Iterator[BinaryIO]:
    """A new private file, which takes the name `path` when the block ends, and is removed if it fails."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _FLAGS, 0o600)
        with open(descriptor, "wb", buffering=buffering) as file:
            if sys.platform != "win32":
                import fcntl

                with contextlib.suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_EX)  # see `is_abandoned`
            yield file  # type: ignore[misc]
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def is_abandoned(unfinished: Path) -> bool:
    """Whether nobody writes a file of `replacing` any more: a writer's lock ends with it. On Windows that can't be
    seen, and what is open can't be removed either."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        with open_own(unfinished) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def open_regular(path: Path) -> BinaryIO:
    """Open to read, unbuffered. Raises OSError unless it is a regular file."""
    descriptor = os.open(path, os.O_RDONLY | _FLAGS)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is not a regular file; remove it")
    return open(descriptor, "rb", buffering=0)


def open_own(path: Path) -> BinaryIO:
    """Open to read, unbuffered. Raises OSError unless it is a regular file, of this user, that no other can write."""
    file = open_regular(path)
    if not is_own(os.fstat(file.fileno())):
        file.close()
        raise PermissionError(f"{path} is not this user's alone; remove it")
    return file


def is_own(status: os.stat_result) -> bool:
    """Whether that is of a regular file, of this user, that no other can write."""
    if not stat.S_ISREG(status.st_mode):
        return False
    return not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o022)
