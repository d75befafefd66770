"""What the compiler's target CPU can do: decides vector width and register tiles."""

from __future__ import annotations

from functools import cache

from numba.core.registry import cpu_target


@cache
def target() -> tuple[str, str, frozenset[str]]:
    """(triple, CPU name, features that are on) of the machine code that Numba makes; follows NUMBA_CPU_NAME and
    NUMBA_CPU_FEATURES."""
    triple, name, features = cpu_target.target_context.codegen().magic_tuple()
    return triple, name, frozenset(f[1:] for f in features.split(",") if f.startswith("+"))


@cache
def vector_floats() -> int:
    """float32 lanes of a vector register: 16 with AVX-512, 8 with AVX2, else 4 (SSE2, NEON)."""
    features = target()[2]
    return 16 if "avx512f" in features else 8 if "avx2" in features else 4


@cache
def vector_registers() -> int:
    """How many vector registers there are."""
    triple, _, features = target()
    return 32 if "avx512f" in features or triple.startswith(("aarch64", "arm64")) else 16


@cache
def has_fma() -> bool:
    """Whether fused multiply-add is one instruction; without it, it would be a call into the C library."""
    triple, _, features = target()
    return "fma" in features or triple.startswith(("aarch64", "arm64"))


_NOTABLE = ("avx2", "fma", "f16c", "avx512f", "avx512vnni", "avxvnni", "avx512bf16", "amx-tile", "neon", "dotprod")


def notable_features() -> list[str]:
    """The features among those of `target` that decide how fast kernels can be."""
    return [feature for feature in _NOTABLE if feature in target()[2]]


@cache
def has_bf16_dot() -> bool:
    """Whether one instruction adds products of pairs of bfloat16 to float32 lanes (vdpbf16ps, 512 bits)."""
    features = target()[2]
    return "avx512f" in features and "avx512bf16" in features


@cache
def has_vnni() -> bool:
    """Whether one instruction adds products of four unsigned and four signed bytes to int32 lanes (vpdpbusd, 512
    bits)."""
    features = target()[2]
    return "avx512f" in features and "avx512vnni" in features
