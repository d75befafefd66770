"""Finds out, once per machine, which instructions LLVM can compile: in a child process, because it ends the process
that asks for one which it can't."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import llvmlite

from nvg.runtime.caches import cache_root, make_private, open_own, replacing
from nvg.runtime.instructions import Instruction
from nvg.runtime.python_child import creation_flags, python_command

TIMEOUT_S = 60.0
_CHILD = Path(__file__).with_name("probe_child.py")


def missing_instructions(target: tuple[str, str, str], wanted: Sequence[Instruction]) -> frozenset[str]:
    """Names of those among `wanted` that can't be compiled for a target: triple, CPU name, features as LLVM writes
    them.

    The answer is kept on disk. A line on stderr tells of what is found missing. Where no child process can be had, none
    are.
    """
    path = cache_root() / "instructions" / f"{_key(target, wanted)}.json"
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError), open_own(path) as file:
        return frozenset(json.loads(file.read())["missing"])
    # there is no answer that can be read: ask
    left = [(one.name, one.function(target[0])) for one in wanted]
    missing: list[str] = []
    is_final = True
    while left:
        answers, timed_out = _ask(target, left)
        if answers is None:
            is_final = False
            break
        problems = {name: "can't be compiled" for (name, _), yes in zip(left, answers, strict=False) if not yes}
        if len(answers) < len(left):  # it ended at one
            slow = f"took longer than {TIMEOUT_S:.0f} s"
            problems[left[len(answers)][0]] = slow if timed_out else "can't be compiled"
            is_final = is_final and not timed_out
        for name, problem in problems.items():
            _say(f"{name} {problem} for the CPU {target[1]}: plainer code is used, which is slower")
        missing += problems
        left = left[len(answers) + 1 :]
    if is_final:
        _keep(path, missing)
    return frozenset(missing)


def _key(target: tuple[str, str, str], wanted: Sequence[Instruction]) -> str:
    """Of all that decides the answer."""
    versions = (llvmlite.__version__, target, [one.name for one in wanted])
    digest = hashlib.sha256(repr(versions).encode())
    for path in (_CHILD, _CHILD.with_name("instructions.py")):
        with contextlib.suppress(OSError):  # nvg may be where there are no files
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _ask(target: tuple[str, str, str], functions: Sequence[tuple[str, str]]) -> tuple[list[bool] | None, bool]:
    """(answers of a child, fewer than functions if it ended at one; whether it took too long). No answers but None if
    there is no child that could have given any."""
    import subprocess

    command = python_command()
    if command is None:
        return None, False
    triple, cpu, features = target
    request = {
        "path": str(Path(llvmlite.__file__).parents[1]),
        "triple": triple, "cpu": cpu, "features": features, "functions": functions,
    }  # fmt: skip
    timed_out = False
    try:
        output = subprocess.run(
            [*command, str(_CHILD)], input=json.dumps(request).encode(), stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, timeout=TIMEOUT_S, creationflags=creation_flags(),
        ).stdout  # fmt: skip
    except subprocess.TimeoutExpired as error:
        output, timed_out = error.stdout or b"", True
    except OSError:
        return None, False
    lines = output.decode().split()
    return ([line == "yes" for line in lines[1:]], timed_out) if lines[:1] == ["ready"] else (None, False)


def _keep(path: Path, missing: Sequence[str]) -> None:
    with contextlib.suppress(OSError):  # then it is asked again next time
        make_private(path.parent)
        with replacing(path) as file:
            file.write(json.dumps({"missing": missing}).encode())


def _say(line: str) -> None:
    if sys.stderr is not None:
        print(f"nvg: {line}", file=sys.stderr, flush=True)
