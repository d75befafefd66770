"""Counter-based randomness: each number is a function of where it is used, so nothing is stored and nothing drifts.

The generator is Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3",
doi:10.1145/2063384.2063405), the one behind `numpy.random.Philox`.
"""

import secrets

DRAW_STAGE = 2**64 - 1
"""The stage index of the engine's own draw: apart from all chains' stages, so that adding one does not shift it."""

_WORD = 2**64 - 1
_MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_WEYL = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
_ROUNDS = 10


def uniform(seed: int, choice: int, position: int, stage: int, draw: int) -> float:
    """A multiple of 2**-53 in [0, 1), decided by its arguments: integers from 0 to 2**64 - 1.

    seed: the request's. choice: which of its n continuations. position: output position. stage: index in the chain, or
    `DRAW_STAGE`. draw: how many numbers this stage has drawn at this position.
    """
    word = philox((seed, choice), (position, stage, draw, 0))[0]
    return (word >> 11) * 2.0**-53


def philox(key: tuple[int, int], counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """One block of Philox4x64-10: four 64-bit words."""
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(_ROUNDS):
        product0 = _MULTIPLIERS[0] * c0
        product1 = _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> 64) ^ c1 ^ k0,
            product1 & _WORD,
            (product0 >> 64) ^ c3 ^ k1,
            product0 & _WORD,
        )
        k0 = (k0 + _WEYL[0]) & _WORD
        k1 = (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def new_seed() -> int:
    """A fresh seed from the operating system, below 2**53, so that JSON carries it exactly."""
    return secrets.randbits(53)
