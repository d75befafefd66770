"""The same rows through transformers' processors and llama.cpp's samplers; runs where they are installed."""

import ctypes
import itertools

import numpy as np
import pytest
from rows import State, WordTokenizer, left, log_softmax, request

from nvg.sampling.banned import Banned
from nvg.sampling.dry import DRY
from nvg.sampling.dyntemp import DynTemp
from nvg.sampling.epsilon import Epsilon
from nvg.sampling.eta import Eta
from nvg.sampling.logitbias import LogitBias
from nvg.sampling.minlength import MinLength
from nvg.sampling.minp import MinP
from nvg.sampling.mirostat import Mirostat
from nvg.sampling.mirostat2 import Mirostat2
from nvg.sampling.norepeatngram import NoRepeatNGram
from nvg.sampling.penalties import Penalties
from nvg.sampling.temperature import Temperature
from nvg.sampling.topk import TopK
from nvg.sampling.topnsigma import TopNSigma
from nvg.sampling.topp import TopP
from nvg.sampling.typical import Typical
from nvg.sampling.xtc import XTC

pytestmark = pytest.mark.peers
SIZES = [1, 2, 7, 40, 300, 300, 300, 300, 1000, 5000] * 3


def rows(seed, bottom=-np.inf):
    """Rows without ties and bars met exactly, which peers treat in ways of their own."""
    rng = np.random.default_rng(seed)
    for size in SIZES:
        row = (rng.standard_normal(size) * rng.choice([0.3, 1.5, 4])).astype(np.float32)
        row[1:][rng.random(size - 1) < 0.1] = bottom
        yield row


def assert_same(ours, theirs, probabilities_only=False):
    """The same candidates, with the same logits or at least the same probabilities."""
    assert ((ours > -np.inf) == (theirs > -np.inf)).all(), np.flatnonzero((ours > -np.inf) != (theirs > -np.inf))
    if probabilities_only:
        np.testing.assert_allclose(np.exp(log_softmax(ours)), np.exp(log_softmax(theirs)), rtol=2e-4, atol=1e-6)
    else:
        stays = ours > -np.inf
        np.testing.assert_allclose(ours[stays], theirs[stays], rtol=1e-6, atol=1e-6)


class OfTransformers:
    """A logits processor applied to one row of logits after a text."""

    def __init__(self, torch):
        self.torch = torch

    def __call__(self, processor, row, text=(0,)):
        scores = self.torch.from_numpy(row.copy())[None]
        return processor(self.torch.tensor([list(text)], dtype=self.torch.long), scores)[0].numpy()


@pytest.fixture(scope="module")
def of_transformers():
    pytest.importorskip("transformers", reason="transformers is not installed (pip install -e .[peers])")
    return OfTransformers(pytest.importorskip("torch"))


TRANSFORMERS = [
    ("TopKLogitsWarper", {"top_k": 7}, TopK(7)),
    ("TopPLogitsWarper", {"top_p": 0.9}, TopP(0.9)),
    ("TopPLogitsWarper", {"top_p": 0.3}, TopP(0.3)),
    ("MinPLogitsWarper", {"min_p": 0.05}, MinP(0.05)),
    ("TypicalLogitsWarper", {"mass": 0.9}, Typical()),
    ("TypicalLogitsWarper", {"mass": 0.2}, Typical(0.2)),
    ("EpsilonLogitsWarper", {"epsilon": 3e-4}, Epsilon()),
    ("EpsilonLogitsWarper", {"epsilon": 0.04}, Epsilon(0.04)),
    ("EtaLogitsWarper", {"epsilon": 3e-4}, Eta()),
    ("EtaLogitsWarper", {"epsilon": 0.1}, Eta(0.1)),
    ("TemperatureLogitsWarper", {"temperature": 0.6}, Temperature(0.6)),
]


@pytest.mark.parametrize(("name", "options", "spec"), TRANSFORMERS)
def test_transformers_warpers(name, options, spec, of_transformers):
    import transformers

    warper = getattr(transformers, name)(**options)
    # Its typical sampling can't tell what is removed (0 times -inf) from what is typical, and its entropy of eta
    # sampling asks for finite logits.
    bottom = -60.0 if name.startswith(("Typical", "Eta")) else -np.inf
    for row in rows(1, bottom):
        assert_same(left(spec, row), of_transformers(warper, row), name.startswith("Temperature"))


def texts(seed, vocab_size):
    rng = np.random.default_rng(seed)
    for size in (0, 1, 2, 3, 10, 60, 300):
        yield rng.integers(0, min(vocab_size, 9), size).tolist()


def test_transformers_processors_of_the_text(of_transformers):
    import transformers

    for row, text in itertools.product(list(rows(2))[4:8], texts(3, 300)):
        state = State(text[: len(text) // 2], text[len(text) // 2 :])
        if not text:
            continue
        repetition = transformers.RepetitionPenaltyLogitsProcessor(1.3)
        assert_same(left(Penalties(1.3, last_n=-1), row, state), of_transformers(repetition, row, text))
        for n in (1, 2, 3):
            processor = transformers.NoRepeatNGramLogitsProcessor(n)
            assert_same(left(NoRepeatNGram(n), row, state), of_transformers(processor, row, text))


def test_transformers_processors_of_chosen_tokens(of_transformers):
    import transformers

    sequences = ((5,), (7,), (1, 2), (3, 1, 4), (2, 2, 2, 0))
    biases = {(5,): -2.5, (7,): 3.0, (1, 2): 1.5, (3, 1, 4): -1.0, (0, 4): float("-inf")}
    words = [f"<{i}>" for i in range(300)]
    texts_of_bias = {"".join(words[i] for i in phrase): bias for phrase, bias in biases.items()}
    for row, text in itertools.product(list(rows(4))[4:8], texts(5, 300)):
        if not text:
            continue
        state, asked = State(text[:1], text[1:]), request(300, text[:1], WordTokenizer(words), (3, 8))
        banned = transformers.NoBadWordsLogitsProcessor([list(sequence) for sequence in sequences], eos_token_id=299)
        assert_same(left(Banned(sequences=sequences).start(asked), row, state), of_transformers(banned, row, text))
        bias = transformers.SequenceBiasLogitsProcessor(dict(biases))
        assert_same(left(LogitBias(words=texts_of_bias).start(asked), row, state), of_transformers(bias, row, text))
        length = transformers.generation.MinNewTokensLengthLogitsProcessor(1, 10, [3, 8])
        assert_same(left(MinLength(10).start(asked), row, state), of_transformers(length, row, text))


class OfLlamaCpp:
    """A sampler of llama.cpp applied to a row of candidates."""

    def __init__(self, library):
        self.llama = library

    def __call__(self, sampler, row, text=()):
        for token_id in text:
            self.llama.llama_sampler_accept(sampler, token_id)
        data = (self.llama.llama_token_data * row.size)()
        fields = np.frombuffer(data, np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)]))
        fields["id"], fields["logit"] = np.arange(row.size), row
        candidates = self.llama.llama_token_data_array(data, row.size, -1, False)
        self.llama.llama_sampler_apply(sampler, ctypes.byref(candidates))
        after = np.full(row.size, -np.inf, np.float32)
        for i in range(candidates.size):
            after[candidates.data[i].id] = candidates.data[i].logit
        self.llama.llama_sampler_free(sampler)
        return after


@pytest.fixture(scope="module")
def of_llama_cpp():
    return OfLlamaCpp(pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (.[bench])"))


LLAMA_CPP = [
    ("top_k", (7,), TopK(7)),
    ("top_p", (0.9, 1), TopP(0.9)),
    ("min_p", (0.05, 1), MinP()),
    ("typical", (0.9, 1), Typical(0.9)),
    ("typical", (0.3, 1), Typical(0.3)),
    ("temp", (0.6,), Temperature(0.6)),
    ("temp_ext", (1.0, 0.5, 1.0), DynTemp()),
    ("temp_ext", (0.7, 0.9, 2.5), DynTemp(0.7, 0.9, 2.5)),
    ("xtc", (1.0, 0.1, 1, 7), XTC(1.0, 0.1)),
    ("xtc", (1.0, 0.004, 1, 7), XTC(1.0, 0.004)),
    ("top_n_sigma", (1.0,), TopNSigma()),
    ("top_n_sigma", (2.5,), TopNSigma(2.5)),
]


@pytest.mark.parametrize(("name", "arguments", "spec"), LLAMA_CPP)
def test_llama_cpp_s_samplers(name, arguments, spec, of_llama_cpp):
    make = getattr(of_llama_cpp.llama, f"llama_sampler_init_{name}")
    for row in rows(6, bottom=-80.0):  # it has no -inf among its candidates
        if row.size > 1:
            ours = left(spec, row, State(numbers=[0.5]))
            assert_same(ours, of_llama_cpp(make(*arguments), row), name.startswith("temp"))


def test_llama_cpp_s_penalties(of_llama_cpp):
    make = of_llama_cpp.llama.llama_sampler_init_penalties
    for row, text in itertools.product(list(rows(7, -80.0))[4:8], texts(8, 300)):
        for repetition, presence, frequency, last_n in ((1.3, 0, 0, 64), (0.8, -0.5, 0.3, 20), (1.1, 1.0, 0.1, 500)):
            spec = Penalties(repetition, presence, frequency, last_n)
            vocab_size = [row.size][: len(make.argtypes) - 4]  # of late versions only
            theirs = of_llama_cpp(make(*vocab_size, last_n, repetition, frequency, presence), row, text)
            assert_same(left(spec, row, State(text[:3], text[3:])), theirs)


def test_llama_cpp_s_dry(of_llama_cpp):
    make = of_llama_cpp.llama.llama_sampler_init_dry
    if len(make.argtypes) != 7:
        pytest.skip("written for llama.cpp since b10405")
    words = [f"<{i}>" for i in range(300)]
    row = np.zeros(300, np.float32)
    for num_ids, size, seed in itertools.product((1, 2, 3, 6), (0, 1, 2, 5, 40, 400), range(4)):
        text = np.random.default_rng(seed).integers(0, num_ids, size).tolist()
        for multiplier, base, allowed_length, last_n in ((0.8, 1.75, 2, 2000), (1.0, 1.2, 1, 30), (0.5, 3.0, 4, 100)):
            spec = DRY(multiplier, base, allowed_length, last_n, ())
            sampler = spec.start(request(300, text[:3], WordTokenizer(words)))
            for token_id in text[3:]:
                sampler.accept(token_id, -1.0)
            theirs = of_llama_cpp(make(None, multiplier, base, allowed_length, last_n, None, 0), row, text)
            np.testing.assert_allclose(left(sampler, row, State(text[:3], text[3:])), theirs, rtol=1e-4)


@pytest.mark.parametrize("tau", [1.0, 3.0, 5.0])
def test_llama_cpp_s_mirostats_at_the_first_token(tau, of_llama_cpp):
    for row in rows(9, -80.0):
        if row.size > 2:
            asked = request(row.size)
            first = of_llama_cpp.llama.llama_sampler_init_mirostat(row.size, 1, tau, 0.1, 100)
            assert_same(left(Mirostat(tau).start(asked), row), of_llama_cpp(first, row))
            second = of_llama_cpp.llama.llama_sampler_init_mirostat_v2(1, tau, 0.1)
            assert_same(left(Mirostat2(tau).start(asked), row), of_llama_cpp(second, row))


def test_llama_cpp_s_logit_bias(of_llama_cpp):
    library = of_llama_cpp.llama
    biases = {5: -2.5, 7: 3.0, 40: -100.0}
    array = (library.llama_logit_bias * len(biases))(*(library.llama_logit_bias(*item) for item in biases.items()))
    for row in rows(10, -80.0):
        if row.size >= 300:
            sampler = library.llama_sampler_init_logit_bias(row.size, len(biases), array)
            assert_same(left(LogitBias(ids=biases).start(request(row.size)), row), of_llama_cpp(sampler, row))
