"""How to start Python itself as a child process, for what this process can't do alone."""

from __future__ import annotations

import sys
from pathlib import Path


def python_command() -> list[str] | None:
    """The command of a Python that runs nothing of this program or its user: no environment variables, no site.

    None in a program with Python inside, which a child would be too.
    """
    if getattr(sys, "frozen", False) or "python" not in Path(sys.executable or "").name.lower():
        return None
    return [sys.executable, "-I", "-S"]


def creation_flags() -> int:
    """For `subprocess`: no window on Windows."""
    import subprocess

    return getattr(subprocess, "CREATE_NO_WINDOW", 0)
