import numpy as np
import pytest

from nvg.sampling.random import DRAW_STAGE, new_seed, philox, uniform

WORD = 2**64 - 1


def numpy_block(key: tuple[int, int], counter: tuple[int, int, int, int]) -> list[int]:
    # NumPy counts before it makes a block, so that its state is one behind.
    number = sum(word << (64 * i) for i, word in enumerate(counter))
    before = (number - 1) % 2**256
    words = [(before >> (64 * i)) & WORD for i in range(4)]
    generator = np.random.Philox(
        key=np.array(key, dtype=np.uint64),
        counter=np.array(words, dtype=np.uint64),
    )
    return [int(word) for word in generator.random_raw(4)]


@pytest.mark.parametrize(
    ("key", "counter"),
    [
        ((0, 0), (0, 0, 0, 0)),
        ((1, 2), (3, 4, 5, 0)),
        ((WORD, WORD), (WORD, WORD, WORD, WORD)),
        ((0x243F6A8885A308D3, 7), (63, DRAW_STAGE, 0, 0)),
    ],
)
def test_philox_equals_numpy(key, counter):
    assert list(philox(key, counter)) == numpy_block(key, counter)


def test_philox_equals_numpy_on_many():
    values = np.random.default_rng(0).integers(0, WORD, size=(50, 6), dtype=np.uint64, endpoint=True)
    for row in values.tolist():
        assert list(philox(tuple(row[:2]), tuple(row[2:]))) == numpy_block(tuple(row[:2]), tuple(row[2:]))


def test_uniform_has_53_bits_of_the_first_word():
    word = numpy_block((11, 1), (5, 2, 3, 0))[0]
    assert uniform(11, 1, 5, 2, 3) == (word >> 11) / 2**53


def test_each_argument_counts():
    base = (1, 2, 3, 4, 5)
    numbers = {uniform(*base)}
    for i in range(5):
        numbers.add(uniform(*(value + (j == i) for j, value in enumerate(base))))
    assert len(numbers) == 6
    assert all(0 <= number < 1 for number in numbers)


def test_new_seeds_fit_json():
    seeds = {new_seed() for _ in range(100)}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**53 for seed in seeds)
