"""Counter-based randomness: each number is a function of where it is used, so nothing is stored and nothing drifts.

The generator is Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3",
doi:10.1145/2063384.2063405), the one behind `numpy.random.Philox`.
"""

# mypy: disallow-untyped-decorators=False, warn-return-any=False

import secrets

import numpy as np
from numba.core import types

from nvg.runtime.compile_cache import CompileStep, function_step, njit

DRAW_STAGE = 2**64 - 1
"""The stage index of the engine's own draw: apart from all chains' stages, so that adding one does not shift it."""

_MULTIPLIERS = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_WEYL = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
_ROUNDS = 10
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def uniform(seed: int, choice: int, position: int, stage: int, draw: int) -> float:
    """A multiple of 2**-53 in [0, 1), decided by its arguments: integers from 0 to 2**64 - 1.

    seed: the request's. choice: which of its n continuations. position: output position. stage: index in the chain, or
    `DRAW_STAGE`. draw: how many numbers this stage has drawn at this position.
    """
    return uniform_of_words(signed(seed), signed(choice), signed(position), signed(stage), signed(draw))


def philox(key: tuple[int, int], counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """One block of Philox4x64-10: four 64-bit words."""
    words: tuple[int, int, int, int] = _philox(*map(signed, (*key, *counter)))
    return words


def signed(word: int) -> int:
    """A 64-bit word as the int64 with its bits: one type, so that kernels are compiled once."""
    return word if word < 1 << 63 else word - (1 << 64)


@njit
def _high_word(a: np.uint64, b: np.uint64) -> np.uint64:
    """The upper 64 bits of a 128-bit product."""
    a_low, a_high, b_low, b_high = a & _LOW, a >> _HALF, b & _LOW, b >> _HALF
    middle = a_high * b_low + (a_low * b_low >> _HALF)
    other = a_low * b_high + (middle & _LOW)
    return a_high * b_high + (middle >> _HALF) + (other >> _HALF)


@njit(cached=True, nogil=False)
def _philox(k0: int, k1: int, c0: int, c1: int, c2: int, c3: int) -> tuple[int, int, int, int]:
    key0, key1 = np.uint64(k0), np.uint64(k1)
    word0, word1, word2, word3 = np.uint64(c0), np.uint64(c1), np.uint64(c2), np.uint64(c3)
    for _ in range(_ROUNDS):
        word0, word1, word2, word3 = (
            _high_word(_MULTIPLIERS[1], word2) ^ word1 ^ key0,
            _MULTIPLIERS[1] * word2,
            _high_word(_MULTIPLIERS[0], word0) ^ word3 ^ key1,
            _MULTIPLIERS[0] * word0,
        )
        key0 += _WEYL[0]
        key1 += _WEYL[1]
    return word0, word1, word2, word3


@njit(cached=True, nogil=False)
def uniform_of_words(seed: int, choice: int, position: int, stage: int, draw: int) -> float:
    """`uniform` of arguments that are `signed`."""
    word = _philox(seed, choice, position, stage, draw, 0)[0]
    return (word >> np.uint64(11)) * 2.0**-53


def compile_steps() -> list[CompileStep]:
    """All of this file that `uniform` calls."""
    return [function_step(uniform_of_words, (types.int64,) * 5)]


def new_seed() -> int:
    """A fresh seed from the operating system, below 2**53, so that JSON carries it exactly."""
    return secrets.randbits(53)
