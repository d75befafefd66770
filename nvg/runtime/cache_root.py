"""Where caches are."""

from __future__ import annotations

import os
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
