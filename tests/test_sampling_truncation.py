"""Samplers that cut by the shape of the distribution, and dynamic temperature, against their formulas in float64."""

import math
from itertools import pairwise

import numpy as np
import pytest
from rows import State, entropy, left, log_softmax, random_rows, request

from nvg.sampling.chain import Chain, Stage
from nvg.sampling.dyntemp import DynTemp
from nvg.sampling.epsilon import Epsilon
from nvg.sampling.eta import Eta
from nvg.sampling.mirostat import Mirostat
from nvg.sampling.mirostat2 import Mirostat2
from nvg.sampling.tailfree import TailFree
from nvg.sampling.topa import TopA
from nvg.sampling.topnsigma import TopNSigma
from nvg.sampling.typical import Typical
from nvg.sampling.xtc import XTC

NEAR = 1e-5
PROBABILITIES = np.array([0.08, 0.34, 0.02, 0.21, 0.3, 0.05])


def epsilon_bound(spec, lp):
    return math.log(spec.epsilon)


def eta_bound(spec, lp):
    return math.log(min(spec.epsilon, math.sqrt(spec.epsilon) * math.exp(-entropy(lp))))


def top_a_bound(spec, lp):
    return math.log(spec.a * np.exp(lp.max()) ** 2)


def top_n_sigma_bound(spec, lp):
    return lp.max() - spec.n * lp[np.isfinite(lp)].std()


@pytest.mark.parametrize(
    ("bound", "specs"),
    [
        (epsilon_bound, [Epsilon(), Epsilon(1e-9), Epsilon(0.02), Epsilon(0.3), Epsilon(1.0)]),
        (eta_bound, [Eta(), Eta(1e-9), Eta(0.05), Eta(0.5), Eta(1.0)]),
        (top_a_bound, [TopA(), TopA(1e-6), TopA(0.02), TopA(1.0)]),
        (top_n_sigma_bound, [TopNSigma(), TopNSigma(0.1), TopNSigma(2.0), TopNSigma(7)]),
    ],
)
def test_what_is_cut_by_a_bound(bound, specs):
    for row in random_rows(150):
        lp = log_softmax(row)
        for spec in specs:
            limit = bound(spec, lp)
            after = left(spec, row)
            stays = after > -np.inf
            assert (after[stays] == row[stays]).all()
            assert stays[lp == lp.max()].all()
            assert stays[lp > limit + NEAR].all(), spec
            assert not stays[(lp < limit - NEAR) & (lp < lp.max())].any(), spec


@pytest.mark.parametrize("p", [1e-6, 0.2, 0.5, 0.9, 0.999])
def test_typical_keeps_the_nearest_to_the_entropy_that_reach_p(p):
    for row in random_rows(150, seed=1):
        lp = log_softmax(row)
        distance = np.abs(-lp - entropy(lp))
        after = left(Typical(p), row)
        stays = after > -np.inf
        assert stays.any()
        assert (after[stays] == row[stays]).all()
        assert distance[stays].max() <= distance[~stays].min(initial=np.inf) + NEAR
        mass = np.exp(lp)
        assert mass[stays].sum() >= p - NEAR
        farthest = np.flatnonzero(stays & (distance > distance[stays].max() - 2 * NEAR))
        assert mass[stays].sum() - mass[farthest].max() < p + NEAR


def test_typical_by_hand():
    # Surprises in nats: 2.5 1.1 3.9 1.6 1.2 3.0; their mean, the entropy, is 1.5: 1.6, 1.2, 1.1, 2.5 is the order.
    for p, kept in ((0.2, [3]), (0.22, [3, 4]), (0.6, [1, 3, 4]), (0.9, [0, 1, 3, 4])):
        assert np.flatnonzero(left(Typical(p), np.log(PROBABILITIES)) > -np.inf).tolist() == kept
    assert np.flatnonzero(left(Typical(0.5), [3.0] * 8) > -np.inf).tolist() == [0, 1, 2, 3]


def tail_begins(probabilities, z):
    """How many of the sorted probabilities llama.cpp's tail-free sampling keeps, element by element."""
    first = [a - b for a, b in pairwise(probabilities)]
    second = [abs(a - b) for a, b in pairwise(first)]
    total = sum(second)
    weights = [w / total if total > 1e-6 else 1 / len(second) for w in second]
    reached = 0.0
    for i, weight in enumerate(weights):
        reached += weight
        if reached > z and i >= 1:
            return i
    return len(probabilities)


@pytest.mark.parametrize("z", [0.0, 0.3, 0.7, 0.95, 0.999])
def test_tail_free_cuts_where_the_curve_has_bent(z):
    for row in random_rows(100, seed=2):
        lp = log_softmax(row)
        probabilities = sorted(np.exp(lp[np.isfinite(lp)]).tolist(), reverse=True)
        after = left(TailFree(z), row)
        stays = after > -np.inf
        assert (after[stays] == row[stays]).all()
        assert row[stays].min() >= row[~stays].max(initial=-np.inf)
        if len(probabilities) <= 2:
            assert stays.sum() == len(probabilities)
        elif abs(sum(np.abs(np.diff(probabilities, 2))) - 1e-6) > 1e-7:
            fewest, most = tail_begins(probabilities, z - NEAR), tail_begins(probabilities, z + NEAR)
            assert fewest <= stays.sum() <= most


@pytest.mark.parametrize("threshold", [0.01, 0.1, 0.3, 0.5])
def test_xtc_leaves_the_least_probable_of_those_above_the_threshold(threshold):
    spec = XTC(1.0, threshold)
    for row in random_rows(150, seed=3, most=20):
        lp = log_softmax(row)
        if np.abs(lp - math.log(threshold)).min() < NEAR:
            continue
        ranking = sorted((i for i in range(row.size) if lp[i] > math.log(threshold)), key=lambda i: (-row[i], i))
        expected = row.copy()
        expected[ranking[:-1]] = -np.inf
        assert left(spec, row, State(numbers=[0.999])).tolist() == expected.tolist()


def test_xtc_happens_with_its_probability():
    row = np.log(PROBABILITIES)
    assert np.flatnonzero(left(XTC(0.5, 0.1), row, State(numbers=[0.49])) == -np.inf).tolist() == [1, 4]
    assert left(XTC(0.5, 0.1), row, State(numbers=[0.5])).tolist() == row.astype(np.float32).tolist()
    chain = Chain([Stage("xtc", XTC(0.3, 0.1), "test")], request(6), seed=5)
    kept = np.array([0.08, 0, 0.02, 0.21, 0, 0.05])
    expected = 0.7 * PROBABILITIES + 0.3 * kept / kept.sum()
    assert chi_square(chain, lambda: row.astype(np.float32), expected) < 20.5  # 5 degrees: once in a thousand


def chi_square(chain, make_row, expected, num_draws=4000):
    counts = np.zeros(expected.size)
    for step in range(num_draws):
        counts[chain.sample(make_row(), np.zeros(1, np.int32), np.zeros(step, np.int32))[0]] += 1
    possible = expected > 0
    assert not counts[~possible].any()
    return ((counts - num_draws * expected)[possible] ** 2 / (num_draws * expected[possible])).sum()


@pytest.mark.parametrize("spec", [DynTemp(), DynTemp(0.7, 0.7, 1.0), DynTemp(1.5, 0.4, 3.0), DynTemp(0.6, 0.0, 1.0)])
def test_dynamic_temperature_follows_the_entropy(spec):
    for row in random_rows(150, seed=4):
        lp = log_softmax(row)
        finite = np.isfinite(lp)
        h = entropy(lp) / math.log(finite.sum()) if finite.sum() > 1 else 0.0
        low, high = max(0.0, spec.t - spec.range), spec.t + spec.range
        t = low + (high - low) * h**spec.exponent
        if t < 1e-3 or (finite.sum() == 1):
            continue
        np.testing.assert_allclose(np.exp(log_softmax(left(spec, row))), np.exp(log_softmax(row / t)), atol=2e-5)


def test_dynamic_temperature_at_its_ends():
    assert np.flatnonzero(left(DynTemp(0.5, 0.5), [50.0, -50.0, -50.0]) > -np.inf).tolist() == [0]
    assert left(DynTemp(0.0, 0.0), [1.0, 3.0, 3.0]).tolist() == [-np.inf, 3.0, -np.inf]
    even = left(DynTemp(1.0, 0.5), [2.0, 2.0, 2.0])
    assert even.tolist() == [even[0]] * 3
    assert left(DynTemp(), [7.0, -np.inf]).tolist() == [7.0, -np.inf]


def paper_s_k(row, mu, m, vocab_size):
    """Mirostat's k as the paper's algorithm 1 and llama.cpp write it."""
    logits = np.sort(row[np.isfinite(row)].astype(np.float64))[::-1][:m]
    t = [math.log((i + 2) / (i + 1)) for i in range(logits.size - 1)]
    b = [logits[i] - logits[i + 1] for i in range(logits.size - 1)]
    s = sum(x * y for x, y in zip(t, b, strict=True)) / sum(x * x for x in t)
    epsilon = s - 1
    return ((epsilon * 2**mu) / (1 - vocab_size**-epsilon)) ** (1 / s)


def test_mirostat_finds_k_and_learns_from_what_is_drawn():
    rng = np.random.default_rng(6)
    spec = Mirostat(tau=3.0, eta=0.2, m=50)
    sampler = spec.start(request(900))
    mu = 6.0
    for _ in range(60):
        row = (rng.standard_normal(900) * rng.uniform(0.5, 4)).astype(np.float32)
        row[rng.integers(900, size=40)] = -np.inf
        k = paper_s_k(row, mu, 50, 900)
        after = left(sampler, row)
        num_left = int((after > -np.inf).sum())
        assert num_left in {
            min(max(int(k * factor), 1), int(np.isfinite(row).sum())) for factor in (1 - NEAR, 1 + NEAR)
        }
        assert row[after > -np.inf].min() >= row[after == -np.inf].max()
        logprob = -rng.exponential(2.0)
        sampler.accept(0, logprob)
        mu -= 0.2 * (-logprob / math.log(2) - 3.0)


@pytest.mark.parametrize("row", [[2.0] * 20, [5.0], [5.0, -np.inf], [300.0, 0.0, -300.0], [1.0, 1.0, -np.inf]])
def test_mirostat_on_rows_that_fit_no_distribution(row):
    for spec in (Mirostat(), Mirostat(tau=0.1), Mirostat(tau=40.0), Mirostat2(), Mirostat2(tau=0.01)):
        after = left(spec.start(request(len(row))), row)
        assert (after > -np.inf).any()
        assert (after[after > -np.inf] == np.array(row, np.float32)[after > -np.inf]).all()


def test_mirostat_2_removes_what_is_more_surprising_than_mu():
    sampler = Mirostat2(tau=1.0, eta=0.5).start(request(6))
    row = np.log(PROBABILITIES)
    assert np.flatnonzero(left(sampler, row) > -np.inf).tolist() == [1, 4]  # mu 2: at most 2 bits, at least 0.25
    sampler.accept(1, math.log(0.25))  # 2 bits, one more than tau: mu becomes 1.5
    assert np.flatnonzero(left(sampler, row) > -np.inf).tolist() == [1]  # 0.354 and more: none, so the most probable
    assert np.flatnonzero(left(sampler, [1.0, 4.0, 4.0, 4.0]) > -np.inf).tolist() == [1]
    sampler.accept(1, 0.0)
    sampler.accept(1, 0.0)
    sampler.accept(1, 0.0)  # mu 3: at least 0.125
    assert np.flatnonzero(left(sampler, row) > -np.inf).tolist() == [1, 3, 4]


@pytest.mark.parametrize("spec", [Mirostat(tau=3.0), Mirostat2(tau=3.0)])
def test_mirostat_comes_near_its_surprise(spec):
    rng = np.random.default_rng(8)
    chain = Chain([Stage("mirostat", spec, "test")], request(2000), seed=1)
    surprises = []
    for step in range(600):
        row = (-1.1 * np.log(rng.permutation(2000) + 1.0)).astype(np.float32)
        _, logprob = chain.sample(row, np.zeros(1, np.int32), np.zeros(step, np.int32))
        surprises.append(-logprob / math.log(2))
    assert np.mean(surprises[100:]) == pytest.approx(3.0, abs=0.25)


@pytest.mark.parametrize(
    "spec",
    [Typical(1), Epsilon(0), Eta(0), TopNSigma(0), TailFree(1), TopA(0), XTC(0.0), XTC(1.0, 0.6), DynTemp(1.0, 0.0)],
)
def test_off_changes_no_probability(spec):
    for row in random_rows(20, seed=9):
        np.testing.assert_allclose(
            np.exp(log_softmax(left(spec, row, State(numbers=[0.0])))), np.exp(log_softmax(row)), atol=1e-6
        )
