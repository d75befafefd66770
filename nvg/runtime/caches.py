"""Where nvg keeps what it can make again: machine code and packed weights."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path


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
    """`directory`, made if need be, and closed to other users. Raises OSError if it isn't ours or can't be written."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "getuid"):
        status = directory.stat()
        if status.st_uid != os.getuid():
            raise PermissionError(f"{directory} belongs to user {status.st_uid}")
        if stat.S_IMODE(status.st_mode) & 0o077:
            directory.chmod(0o700)
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(f"{directory} is not writable")
    return directory
