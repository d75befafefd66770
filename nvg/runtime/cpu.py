"""What the compiler's target CPU can do: decides vector width, register tiles and dot instructions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from numba.core.registry import cpu_target

from nvg.runtime.instructions import instruction
from nvg.runtime.probe import missing_instructions


@dataclass(frozen=True)
class Features:
    """What vector code is written for."""

    vector_floats: int
    """float32 lanes of a vector register: 16 with AVX-512, 8 with AVX2, else 4 (SSE, NEON)."""
    vector_registers: int
    """How many there are."""
    fma: bool
    """Whether fused multiply-add is one instruction; without it, it would be a call into the C library."""
    bf16_dot: bool
    """Whether there is a dot product of bfloat16 pairs."""
    int8_dot: str
    """How four products of bytes are summed: "vnni", "sdot", "pmaddwd" or "plain"."""
    byte_shuffle: str
    """How bytes are looked up in a table of 16: "pshufb", "tbl" or "plain"."""


def features_of(triple: str, on: frozenset[str]) -> Features:
    """Of a target triple and the names of LLVM features that are on."""
    is_arm = triple.startswith(("aarch64", "arm64"))
    is_x86 = triple.startswith(("x86_64", "i686"))
    width = 16 if {"avx512f", "avx512bw"} <= on else 8 if "avx2" in on else 4
    vnni = ("avx512vnni" in on and (width == 16 or "avx512vl" in on)) or ("avxvnni" in on and width == 8)
    if is_arm:
        int8_dot = "sdot" if "dotprod" in on else "plain"
    else:
        int8_dot = "vnni" if vnni else "pmaddwd" if is_x86 else "plain"
    return Features(
        vector_floats=width,
        vector_registers=32 if width == 16 or is_arm else 16,
        fma="fma" in on or is_arm,
        bf16_dot="avx512bf16" in on and width == 16,
        int8_dot=int8_dot,
        byte_shuffle="tbl" if is_arm else "pshufb" if is_x86 and "ssse3" in on else "plain",
    )


@cache
def target() -> tuple[str, str, frozenset[str]]:
    """(triple, CPU name, features that are on) of the machine code that Numba makes; follows NUMBA_CPU_NAME and
    NUMBA_CPU_FEATURES."""
    triple, name, features = _llvm_target()
    return triple, name, frozenset(f[1:] for f in features.split(",") if f.startswith("+"))


def _llvm_target() -> tuple[str, str, str]:
    target: tuple[str, str, str] = cpu_target.target_context.codegen().magic_tuple()
    return target


@cache
def features() -> Features:
    """Of the machine code that Numba makes here, without the instructions that it can't."""
    triple, _, on = target()
    found = features_of(triple, on)
    kinds = {found.int8_dot, found.byte_shuffle} - {"plain"}
    if found.int8_dot == "vnni":
        kinds.add("pmaddwd")  # what there is without it
    if found.bf16_dot:
        kinds.add("dpbf16ps")
    wanted = {kind: instruction(kind, found.vector_floats) for kind in sorted(kinds)}
    names = missing_instructions(_llvm_target(), list(wanted.values()))
    missing = {kind for kind, one in wanted.items() if one.name in names}
    int8_dot = found.int8_dot
    if int8_dot in missing:
        int8_dot = "pmaddwd" if int8_dot == "vnni" and "pmaddwd" not in missing else "plain"
    return replace(
        found,
        bf16_dot=found.bf16_dot and "dpbf16ps" not in missing,
        int8_dot=int8_dot,
        byte_shuffle="plain" if found.byte_shuffle in missing else found.byte_shuffle,
    )


_NOTABLE = ("avx2", "fma", "f16c", "avx512f", "avx512vnni", "avxvnni", "avx512bf16", "amx-tile", "neon", "dotprod")


def notable_features() -> list[str]:
    """The features among those of `target` that decide how fast kernels can be."""
    return [feature for feature in _NOTABLE if feature in target()[2]]
