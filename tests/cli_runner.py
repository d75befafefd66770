"""Runs nvg's command line: in this process (fast), or as a process of its own where that is what is tested."""

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from typing import NamedTuple

from nvg.cli import run


class Finished(NamedTuple):
    """What a run left behind."""

    code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The one line on stderr, which must be an error, without its beginning."""
        assert self.stderr.startswith("nvg: error: "), self.stderr
        assert self.stderr.count("\n") == 1, self.stderr
        return self.stderr.removeprefix("nvg: error: ").rstrip("\n")


def run_cli(*arguments: object, stdin: bytes | None = None, encoding: str = "utf-8") -> Finished:
    """Run in this process. stdin: what is redirected into it; None means /dev/null. encoding: of stdout."""
    stdout, stderr = io.TextIOWrapper(io.BytesIO(), encoding, newline=""), io.StringIO()
    with contextlib.ExitStack() as stack:
        if stdin is None:
            file = stack.enter_context(open(os.devnull, "rb"))
        else:
            file = stack.enter_context(tempfile.TemporaryFile())
            file.write(stdin)
            file.seek(0)
        stack.enter_context(contextlib.redirect_stdout(stdout))
        stack.enter_context(contextlib.redirect_stderr(stderr))
        before, sys.stdin = sys.stdin, stack.enter_context(io.TextIOWrapper(file))
        try:
            code = run([os.fspath(one) if isinstance(one, os.PathLike) else str(one) for one in arguments])
        finally:
            sys.stdin = before
        stdout.flush()
        return Finished(code, stdout.buffer.getvalue().decode(encoding), stderr.getvalue())


def start_cli(*arguments: object, env: dict[str, str] | None = None, **options: object) -> subprocess.Popen[bytes]:
    """Start a process; stdin is /dev/null, stdout and stderr are pipes unless `options` say otherwise."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-m", "nvg", *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, **(env or {})}, **{**pipes, **options})


def finish(process: subprocess.Popen[bytes], timeout: float = 120) -> Finished:
    """Wait for the process to end."""
    with process:
        stdout, stderr = process.communicate(timeout=timeout)
    return Finished(process.returncode, (stdout or b"").decode(), (stderr or b"").decode())
