"""The checksum of memory: the same as a plain sum, and different for every small damage."""

import numpy as np
import pytest

from nvg.kernels.checksum import CHUNK_BYTES, checksum_chunks


def checksum(words):
    out = np.empty((-(-words.nbytes // CHUNK_BYTES), 2), np.uint64)
    words.flags.writeable = False
    checksum_chunks(words, out)
    return out.tolist()


def plain(words):
    """The same, one word after the other, in Python's integers."""
    mix, bits, per_chunk = 0x9E3779B97F4A7C15, 2**64, CHUNK_BYTES // 8
    found = []
    for start in range(0, len(words), per_chunk):
        part = [int(word) for word in words[start : start + per_chunk]]
        sums, sums_of_sums = [0] * 64, [0] * 64
        for i, word in enumerate(part):
            sums[i % 64] += word
            sums_of_sums[i % 64] += sums[i % 64]
        first, second = len(part), 0
        for lane in range(64):
            first, second = first * mix + sums[lane], second * mix + sums_of_sums[lane]
        found.append([first % bits, second % bits])
    return found


def random_words(size):
    return np.random.default_rng(size).integers(0, 2**64, size, np.uint64)


@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000, CHUNK_BYTES // 8, CHUNK_BYTES // 8 + 8])
def test_it_is_that_of_the_plain_sum(size):
    words = random_words(size)
    assert checksum(words) == plain(words)


def test_every_flipped_bit_and_every_swap_changes_it():
    words = random_words(300)
    sound = checksum(words.copy())
    for i in range(300):
        damaged = words.copy()
        damaged[i] ^= np.uint64(1) << np.uint64(i % 64)
        assert checksum(damaged) != sound
    for i in range(300 - 64):  # within a lane, where a sum alone would not see it
        damaged = words.copy()
        damaged[[i, i + 64]] = damaged[[i + 64, i]]
        assert checksum(damaged) != sound


def test_zeros_at_the_end_count():
    assert checksum(np.zeros(64, np.uint64)) != checksum(np.zeros(128, np.uint64))
