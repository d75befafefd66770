"""The compiled passes against naive formulas: ties, runs of -inf, sizes around the chunks, any CPU."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numba import njit
from numba.core.errors import TypingError

from nvg.sampling import mass, random, select, vector
from nvg.sampling.chain import compile_steps
from nvg.sampling.vector import CHUNK, LANES

SIZES = [1, 2, LANES - 1, LANES, LANES + 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 7]
LONG = 3 * select.FEW + 11  # cut down by bounds before it is searched
EDGES = [0.0, -0.0, 1e-45, -1e-45, float(np.finfo(np.float32).max), float(np.finfo(np.float32).min)]


@st.composite
def rows(draw):
    """A row with ties and runs of -inf, at least one of which is finite; short, or so long that bounds are used."""
    values = st.one_of(st.integers(-3, 3).map(float), st.floats(-30, 30, width=32), st.sampled_from(EDGES))
    row = draw(hnp.arrays(np.float32, st.integers(1, 90), elements=values))
    if draw(st.booleans()):
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        decimals = draw(st.sampled_from([0, 1, 7]))
        head = row
        row = (rng.normal(size=LONG) * draw(st.sampled_from([0.0, 0.01, 1.0, 5.0]))).round(decimals).astype(np.float32)
        row[rng.permutation(LONG)[: head.size]] = head
    start = draw(st.integers(0, row.size - 1))
    row[start : start + draw(st.integers(0, row.size))] = -np.inf
    if not (row > -np.inf).any():
        row[start] = draw(values)
    return row


def fixed_rows():
    """Sizes around the chunks: all equal, ascending, and one left of all."""
    for size in SIZES:
        yield np.full(size, 2.5, np.float32)
        yield np.arange(size, dtype=np.float32)
        alone = np.full(size, -np.inf, np.float32)
        alone[size // 2] = -7
        yield alone


def ranked(row):
    """Indices from the most probable down, of equal ones the lowest first."""
    return np.argsort(-row, kind="stable")


def only(row, kept):
    left = np.full_like(row, -np.inf)
    left[kept] = row[kept]
    return left


def edited(function, row, *args):
    copy = row.copy()
    assert function(copy, *args) is None
    return copy


def check_all(row, k, p):
    n = row.size
    order = ranked(row)
    finite = np.flatnonzero(row > -np.inf)
    assert select.count_candidates(row) == finite.size
    ids = np.arange(100, 100 + n, dtype=np.int32)
    left, left_ids = np.empty(finite.size, np.float32), np.empty(finite.size, np.int32)
    select.compact(row, ids, left, left_ids)
    np.testing.assert_array_equal(left, row[finite])
    np.testing.assert_array_equal(left_ids, ids[finite])

    few, few_ids = np.empty(finite.size, np.float32), np.empty(finite.size, np.int32)
    assert select.survey(row, few, few_ids) == finite.size
    np.testing.assert_array_equal(few, row[finite])
    np.testing.assert_array_equal(few_ids, finite)
    assert select.survey(row, few[1:], few_ids[1:]) == finite.size

    assert select.argmax(row) == np.argmax(row)
    np.testing.assert_array_equal(edited(select.keep_first_largest, row), only(row, order[:1]))

    k = min(k, n)
    threshold = select.kth_largest(row, k)
    assert threshold == row[order[k - 1]]
    np.testing.assert_array_equal(edited(select.keep_from, row, threshold, k), only(row, order[:k]))
    np.testing.assert_array_equal(edited(select.keep_largest, row, k), only(row, order[:k]))

    threshold, size = mass.nucleus(row, p)
    descending = row[order].astype(np.float64)
    weights = np.exp(descending - descending[0])
    reached, target = weights.cumsum(), p * weights.sum()
    assert threshold == row[order[size - 1]]
    assert reached[size - 1] >= target * (1 - 1e-6)
    assert size == 1 or reached[size - 2] < target * (1 + 1e-6)

    bound = np.float32(float(row.max()) + math.log(p))
    np.testing.assert_array_equal(edited(select.keep_ratio, row, math.log(p)), only(row, np.flatnonzero(row >= bound)))
    with np.errstate(over="ignore"):
        expected = ((row.astype(np.float64) - float(row.max())) / p).astype(np.float32)
    np.testing.assert_array_equal(edited(select.divide, row, p), expected)

    weights = np.exp(row.astype(np.float64) - float(row.max()))
    index, logprob = select.pick(row, p)
    before, upto, total = (math.fsum(weights[:end]) for end in (index, index + 1, n))  # a running sum rounds too often
    assert weights[index] > 0
    assert upto > p * total * (1 - 1e-14)
    assert index == 0 or before < p * total * (1 + 1e-14)
    assert logprob == pytest.approx(float(row[index]) - float(row.max()) - math.log(total), abs=1e-12, rel=1e-12)


@settings(deadline=None)
@given(rows(), st.one_of(st.integers(1, 90), st.integers(400, LONG)), st.floats(1e-6, 0.999999))
def test_each_pass_follows_its_formula(row, k, p):
    check_all(row, k, p)


@pytest.mark.parametrize("row", list(fixed_rows()), ids=lambda row: str(row.size))
@pytest.mark.parametrize(("k", "p"), [(1, 1e-6), (3, 0.4), (1000, 0.99)])
def test_sizes_around_the_chunks(row, k, p):
    check_all(row, k, p)


def test_a_nucleus_that_ends_at_the_least_negative_number():
    """Between it and zero is the negative zero, which is no other number."""
    for values in ([0.0, -1e-45, -1e-45], [-0.0, -1e-45, 1e-45], [-1e-45, -3e-45, 0.0]):
        check_all(np.array(values, np.float32), 2, 0.87)


def test_a_long_row_of_equals_and_one_of_two_values():
    check_all(np.zeros(LONG, np.float32), 40, 0.9)
    row = np.zeros(LONG, np.float32)
    row[::3] = 1e-3
    check_all(row, 5000, 0.6)
    row = np.zeros(LONG, np.float32)
    row[1000] = 14  # the others are about one hundredth together
    check_all(row, 1, 0.5)


@pytest.mark.parametrize("shift", [1e4, -1e30, 3e38])
def test_a_nucleus_far_from_zero(shift):
    """Where neighbouring float32 are far apart, bounds must not pass the values that they bound."""
    rng = np.random.default_rng(4)
    check_all((rng.normal(size=LONG) + shift).astype(np.float32), 7, 0.5)
    check_all((rng.normal(size=LONG) * abs(shift) / 10 + shift * 0.5).astype(np.float32), 7, 0.999)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf])
def test_a_fault_anywhere_is_seen(size, value):
    for i in range(size):
        row = np.zeros(size, np.float32)
        row[i] = value
        row[0 if i else -1] = -np.inf if size > 1 else value
        assert select.count_candidates(row) == -1
        assert select.survey(row, np.empty(size, np.float32), np.empty(size, np.int32)) == -1
    assert select.count_candidates(np.full(size, -np.inf, np.float32)) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [1, CHUNK, LONG])
def test_rows_against_the_rules_harm_nobody(value, size):
    row = np.full(size, value, np.float32)
    for function, args in (
        (select.keep_first_largest, ()),
        (select.kth_largest, (1,)),
        (mass.nucleus, (0.5,)),
        (select.keep_from, (0.0, 1)),
        (select.keep_largest, (1,)),
        (select.keep_ratio, (-1.0,)),
    ):
        function(row.copy(), *args)
    index, _ = select.pick(row, 0.5)
    assert 0 <= index < size


def test_rows_of_another_kind_are_refused_not_misread():
    row = np.arange(10, dtype=np.float32)
    with pytest.raises(TypingError):
        select.kth_largest(row.astype(np.float64), 1)
    with pytest.raises(TypingError):
        select.kth_largest(row[::2], 1)


@njit
def total_weight(chunk):
    return vector.total_weight(chunk, 0, 1, np.float32(0))


def test_the_exponentials_of_the_draw_are_good_to_the_last_bits():
    row = np.concatenate([np.zeros(1), -np.logspace(-8, np.log10(700), 20_000), [-709.0, -1e30, -np.inf]])
    row = row.astype(np.float32)
    expected = np.exp(row.astype(np.float64))
    chunk = np.full(LANES, -np.inf, np.float32)
    for i in range(row.size - 3):
        chunk[i % LANES] = row[i]
        assert total_weight(chunk) == pytest.approx(expected[i], rel=5e-16, abs=0)
        chunk[i % LANES] = -np.inf
    for value in row[-3:]:
        chunk[3] = value
        assert total_weight(chunk) == 0


def test_the_largest_number_draws_a_token_that_has_weight():
    """Even where rounding lets no sum in order exceed a bar that the sums of lanes exceeded."""
    rng = np.random.default_rng(7)
    for _ in range(300):
        row = rng.normal(size=rng.integers(2, 1500)).astype(np.float32)
        row[-3:] = -np.inf if row.size > 5 else row[-3:]
        index, _ = select.pick(row, 1 - 2.0**-53)
        assert row[index] > -np.inf


def test_the_place_in_memory_and_the_company_do_not_matter():
    rng = np.random.default_rng(8)
    row = rng.normal(size=LONG).astype(np.float32)
    results = set()
    for shift in range(CHUNK + 1):
        buffer = rng.normal(size=LONG + 2 * CHUNK).astype(np.float32)
        moved = buffer[shift : shift + LONG]
        moved[:] = row
        results.add((mass.nucleus(moved, 0.8), select.kth_largest(moved, 50), select.pick(moved, 0.3)))
    assert len(results) == 1


def test_all_that_python_calls_is_compiled_beforehand():
    names = {step.name for step in compile_steps()}
    for module in (select, random):
        for name, function in vars(module).items():
            if getattr(function, "_cache", None).__class__.__name__ == "_FileCache" and name != "_philox":
                assert name.strip("_") in names


ELSEWHERE = """
import numpy, sys
from nvg.runtime import cpu
from nvg.sampling import mass, select
from nvg.sampling.random import uniform
row = numpy.load(sys.argv[1])
first, top = row.copy(), row.copy()
select.keep_first_largest(first)
threshold, size = mass.nucleus(row, 0.9)
select.keep_from(top, threshold, size)
draws = [select.pick(row, uniform(3, 0, i, 0, 0))[0] for i in range(50)]
print(cpu.features().vector_floats)
print(select.count_candidates(row), first.argmax(), select.kth_largest(row, 40), size, hash(top.tobytes()), draws)
"""
SSE = "+sse4.2,+sse4.1,+ssse3,+sse3,+sse2,+sse,+popcnt,+cx16,+64bit,+cmov"
AVX2 = f"{SSE},+avx,+avx2,+fma,+bmi,+bmi2,+lzcnt"


@pytest.mark.skipif(sys.platform == "win32" or os.uname().machine != "x86_64", reason="for x86-64")
@pytest.mark.parametrize(("name", "features", "width"), [("nehalem", SSE, "4"), ("haswell", AVX2, "8")])
def test_other_cpus_choose_the_same(tmp_path, name, features, width):
    row = np.random.default_rng(6).normal(size=LONG).astype(np.float32)
    row[50:90] = -np.inf
    np.save(tmp_path / "row.npy", row)

    def lines(**environment):
        command = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "row.npy")]
        environment = {**os.environ, "PYTHONHASHSEED": "0", **environment}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    elsewhere = lines(NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES=features)
    assert elsewhere[0] == width
    assert elsewhere[1] == lines()[1]
