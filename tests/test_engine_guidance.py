"""Classifier-free guidance: two sequences of a choice, whose logits are mixed before its chain."""

import zlib

import numpy as np
import pytest
import reference
from fakes import SMALL_BLOCK, HistoryRunner, LetterTokenizer, with_small_blocks

from nvg import LLM, SamplingParams
from nvg.engine.engine import Engine
from nvg.engine.sequence import Request
from nvg.errors import ParameterError
from nvg.params import EngineConfig
from nvg.sampling.compose import resolve
from nvg.sampling.logprobs import guide

CONTEXT = 24
NUM_IDS = 7
"""Of the tokenizer; the model has one more."""
PROMPT, NEGATIVE = [1, 2, 3, 4, 5, 6, 1, 2, 3], [6, 6, 5, 1, 2]


def mixed(row, negative, scale):
    """The formula, as it stands in the paper."""
    p, n = (x - np.log(np.exp(x - x.max()).sum()) - x.max() for x in (np.float64(row), np.float64(negative)))
    return n + scale * (p - n)


@pytest.mark.parametrize("scale", [0, 0.5, 1, 1.5, 7, 1000])
@pytest.mark.parametrize("size", [1, 5, 16, 33, 50257])
def test_the_mix_is_that_of_the_paper(size, scale):
    rng = np.random.default_rng(size)
    row, negative = (10 * rng.standard_normal((2, size))).astype(np.float32)
    kept, expected = negative.copy(), mixed(row, negative, scale)
    guide(row, negative, float(scale))
    np.testing.assert_allclose(row, expected, rtol=3e-7, atol=3e-6 * max(scale, 1))
    assert (negative == kept).all()


def test_what_either_row_removes_stays_out_and_nan_is_kept():
    inf, nan = np.inf, np.nan
    row = np.array([0, -inf, 0, -inf, nan, 1], np.float32)
    for scale in (0.0, 0.5, 3.0):
        mix = row.copy()
        guide(mix[:4], np.array([1, 1, -inf, -inf], np.float32), scale)
        assert np.isfinite(mix[0])
        assert (mix[1:4] == -inf).all()
        for left, right in ((row[4:], row[:2]), (row[:2], row[4:])):
            mix = left.copy()
            guide(mix, right.copy(), scale)
            assert np.isnan(mix).any()


def make_engine(num_blocks=100, max_num_seqs=8, **options):
    config = EngineConfig(max_num_seqs=max_num_seqs, kv_memory=num_blocks * SMALL_BLOCK * 4, **options)
    runner = HistoryRunner(NUM_IDS + 1, max_model_len=CONTEXT, max_batched_tokens=64, max_logits_rows=16)
    return Engine(with_small_blocks(config), runner, LetterTokenizer(NUM_IDS))


def add(engine, prompt=PROMPT, negative=NEGATIVE, **params):
    defaults = {"temperature": 0, "ignore_eos": True, "guidance_scale": 1.5}
    params = SamplingParams(**{**defaults, **params})
    request = Request(None, list(prompt), params, params.seed or 0, resolve(params), lambda piece: None)
    if negative is not None:
        request.negative_token_ids = list(negative)
    engine.check(request)
    engine.add(request)
    return request


def run(engine):
    for _ in range(1000):
        engine.step()
    assert not engine.has_work
    assert engine.pool.num_free == engine.pool.num_blocks, "blocks have leaked"


def tokens(request):
    return [sequence.choice().token_ids for sequence in request.sequences]


def expected(prompt, negative, scale, max_tokens, slides=False):
    """Greedy tokens by the book: each from two windows computed anew."""

    def logits(window):
        seed = zlib.crc32(np.array(window, np.int32).tobytes())
        generator = np.random.Generator(np.random.PCG64(seed))
        return generator.standard_normal(NUM_IDS + 1, np.float32)[:NUM_IDS] * 2

    windows, output = [list(prompt), list(negative)], []
    while len(output) < max_tokens:
        if max(map(len, windows)) == CONTEXT:
            if not slides:
                break
            windows = [window[-(CONTEXT // 2) :] for window in windows]
        output.append(int(np.argmax(mixed(*map(logits, windows), scale))))
        windows = [[*window, output[-1]] for window in windows]
    return output


@pytest.mark.parametrize("max_num_batched_tokens", [2, 16])
@pytest.mark.parametrize("negative", [[6], NEGATIVE, PROMPT, [5] * 20, [*PROMPT, 1, 2]])
def test_tokens_are_those_of_the_mix(negative, max_num_batched_tokens):
    for scale, on_full in ((0, "stop"), (1.5, "stop"), (4, "slide")):
        engine = make_engine(max_num_batched_tokens=max_num_batched_tokens, max_num_seqs=2)
        request = add(engine, negative=negative, guidance_scale=scale, max_tokens=50, on_full=on_full)
        run(engine)
        assert tokens(request) == [expected(PROMPT, negative, scale, 50, on_full == "slide")]
        assert request.output().finish_reason == "length"


def test_a_prompt_that_fills_the_context_slides_with_its_negative():
    engine = make_engine()
    requests = [
        add(engine, [1, 2] * 12, NEGATIVE, max_tokens=30, on_full="slide"),
        add(engine, PROMPT, [1, 2] * 12, max_tokens=30, on_full="slide"),
        add(engine, [1, 2] * 12, NEGATIVE, max_tokens=30),
        add(engine, max_tokens=0),
    ]
    run(engine)
    assert tokens(requests[0]) == [expected([1, 2] * 12, NEGATIVE, 1.5, 30, slides=True)]
    assert tokens(requests[1]) == [expected(PROMPT, [1, 2] * 12, 1.5, 30, slides=True)]
    assert tokens(requests[2]) == tokens(requests[3]) == [[]]


def test_logprobs_are_those_of_the_mix_and_the_draw_is_that_of_the_seed():
    engine = make_engine()
    add(engine, PROMPT[:-1], None, guidance_scale=None, max_tokens=0)
    request = add(engine, max_tokens=4, logprobs=2, prompt_logprobs=0, temperature=None, seed=5)
    twin = add(engine, max_tokens=4, logprobs=2, prompt_logprobs=0, guidance_scale=1, negative=None)
    run(engine)
    for one in (request, twin):
        assert len(one.prompt_logprobs) == len(PROMPT)
    assert request.prompt_logprobs == twin.prompt_logprobs, "they are the model's own"
    told = request.output().logprobs
    windows = (PROMPT, NEGATIVE)
    rows = [np.random.Generator(np.random.PCG64(zlib.crc32(np.array(w, np.int32).tobytes()))) for w in windows]
    mix = mixed(*(row.standard_normal(NUM_IDS + 1, np.float32)[:NUM_IDS] * 2 for row in rows), 1.5)
    mix -= np.log(np.exp(mix).sum())
    assert told[0].top == {i: pytest.approx(mix[i], abs=1e-5) for i in np.argsort(-mix)[:2]}


def test_choices_share_both_prompts():
    engine = make_engine()
    params = {"temperature": None, "seed": 3, "max_tokens": 6}
    request = add(engine, n=3, **params)
    while not request.is_forked:
        engine.step()
    assert (engine.num_running, len(engine.runner.batches[-1].logits_rows)) == (6, 2)
    assert engine.pool.num_blocks - engine.pool.num_free == 3 + 2
    engine.step()
    assert len(engine.runner.batches[-1].logits_rows) == 6
    run(engine)
    first = add(engine, **params)
    run(engine)
    assert tokens(request)[0] == tokens(first)[0]
    assert len({tuple(one) for one in tokens(request)}) > 1
    assert (request.num_cached_tokens, first.num_cached_tokens) == (0, 8), "of the prompt, not of its negative"


def test_a_negative_prompt_is_computed_once_for_all():
    engine = make_engine(max_num_batched_tokens=16)
    requests = [add(engine, [first, *PROMPT], [1] * 13, max_tokens=3) for first in (1, 2, 3)]
    run(engine)
    assert [request.num_cached_tokens for request in requests] == [0, 0, 0], "the prompts differ"
    assert engine.stats.cached_tokens == 2 * 12 - 2, "all but what two had in one step"
    for request, first in zip(requests, (1, 2, 3), strict=True):
        assert tokens(request) == [expected([first, *PROMPT], [1] * 13, 1.5, 3)]


def test_an_end_at_any_point_leaves_nothing():
    for num_steps in range(14):
        engine = make_engine(num_blocks=20, max_num_batched_tokens=3, max_num_seqs=3)
        request = add(engine, max_tokens=4)
        add(engine, [2, 1], None, guidance_scale=None, max_tokens=12)
        for _ in range(num_steps):
            engine.step()
        engine.abort(request)
        assert engine.num_running + engine.num_waiting == 1
        run(engine)


class Fails:
    def apply(self, logits, token_ids, state):
        raise ZeroDivisionError


def test_a_choice_that_fails_ends_its_negative_too():
    engine = make_engine()
    request = add(engine, sampler=Fails(), temperature=None)
    run(engine)
    assert request.output().finish_reason == "error"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negative": [1, 8]}, "the negative prompt's token id 8 is not in the vocabulary; ids are 0 to 7"),
        ({"negative": [1] * 25}, "the negative prompt has 25 tokens, the context holds 24: shorten it by 1"),
        (
            {"negative": [1] * 20, "max_tokens": 5, "on_full": "error"},
            "the negative prompt has 20 tokens and max_tokens is 5, the context holds 24: lower max_tokens to 4",
        ),
        ({"n": 5}, "n is 5, two sequences each with guidance; at most 8 sequences run at once: lower n or raise"),
    ],
)
def test_what_can_never_run_is_refused(options, message):
    with pytest.raises(ParameterError, match=message):
        add(make_engine(), **options)


def test_room_is_needed_for_both():
    with pytest.raises(ParameterError, match="needs 7 blocks of 4 KV entries, the pool has 5"):
        add(make_engine(num_blocks=5), max_tokens=5)
    request = add(engine := make_engine(num_blocks=7), max_tokens=5)
    run(engine)
    assert len(tokens(request)[0]) == 5


def test_a_scale_of_one_is_off():
    assert [SamplingParams(n=3, guidance_scale=scale).num_seqs for scale in (None, 1, 1.0, 0, 2)] == [3, 3, 3, 6, 6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_scale": -0.1}, r"guidance_scale is -0.1; it must be a number from 0 to 1000 \(1 means off\)"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_scale": "2"}, "guidance_scale is '2'"),
        ({"negative_prompt": "x"}, "negative_prompt needs guidance_scale as well"),
        ({"negative_prompt": 3, "guidance_scale": 2}, "negative_prompt is 3; it must be a text or a sequence of token"),
        ({"negative_prompt": [1, -2], "guidance_scale": 2}, "negative_prompt token id is -2; it must be an integer"),
    ],
)
def test_bad_parameters_are_named(options, message):
    with pytest.raises(ParameterError, match=message):
        SamplingParams(**options)


def test_text_and_ids_on_a_model_give_what_the_reference_gives(compiled_kernels, tiny_checkpoint):
    model = reference.load(tiny_checkpoint)

    def greedy(prompt, negative, scale):
        output = []
        for _ in range(10):
            rows = [reference.logits(model, [*ids, *output])[-1] for ids in (prompt, negative)]
            output.append(int(np.argmax(mixed(*rows, scale))))
        return output

    with LLM(str(tiny_checkpoint)) as llm:
        prompt, text = "Once upon a time", "The king of the"
        ids, negative = llm.tokenizer.encode(prompt), llm.tokenizer.encode(text)
        eos = llm.tokenizer.eos_token_ids[0]

        def generate(**params):
            params = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True, **params)
            return llm.generate(prompt, params)[0].token_ids

        plain = generate()
        assert generate(guidance_scale=1, negative_prompt=text) == plain == greedy(ids, ids, 1)
        for scale in (0, 1.7, 3):
            assert generate(guidance_scale=scale, negative_prompt=text) == greedy(ids, negative, scale)
        assert generate(guidance_scale=3, negative_prompt=negative) == greedy(ids, negative, 3)
        assert generate(guidance_scale=2) == greedy(ids, ids[-1:], 2), "the prompt's last token is the default"
        assert generate(guidance_scale=2, negative_prompt="") == greedy(ids, [eos], 2), "as an empty prompt is"
        assert generate(guidance_scale=2) != plain
        bad = SamplingParams(guidance_scale=2, negative_prompt=[10**6])
        with pytest.raises(ParameterError, match="prompt 1: the negative prompt's token id 1000000 is not in"):
            llm.generate([prompt, prompt], [SamplingParams(), bad])
