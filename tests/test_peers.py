"""Live comparison with transformers on checkpoints that no golden value knows; runs where it is installed."""

import itertools
import os
import random

import numpy as np
import pytest
from checkpoints import write_checkpoint
from test_model_checkpoint import parts, rewrite, shard
from test_model_config import OTHER_NAMES, USUAL
from test_model_runner import make_runner, step

from nvg import LLM, SamplingParams
from nvg.model.checkpoint import Checkpoint
from nvg.model.config import ACTIVATIONS, ModelConfig

pytestmark = pytest.mark.peers
SEED = os.environ.get("NVG_TEST_SEED", "0")  # another one finds other checkpoints


def random_options(rng):
    head_size, n_head = rng.choice([1, 2, 8, 11, 33, 64]), rng.randint(1, 5)
    return {
        "seed": rng.randrange(2**31),
        "n_layer": rng.randint(1, 4),
        "n_head": n_head,
        "n_embd": head_size * n_head,
        "n_inner": rng.choice([None, 7, 100]),
        "activation": rng.choice(ACTIVATIONS),
        "dtype": rng.choice(["F32", "F16", "BF16"]),
        "tie": rng.random() < 0.7,
        # Unscaled, large heads of random weights are so steep that float32 itself, transformers' too, is off by 1e-3.
        "scale_attn_weights": rng.random() < 0.7 or head_size > 11,
        "scale_attn_by_inverse_layer_idx": rng.random() < 0.3,
        "layer_norm_epsilon": rng.choice([1e-5, 1e-12, 1e-3]),
        "n_positions": 128,
    }


@pytest.fixture(scope="module")
def torch():
    pytest.importorskip("transformers", reason="transformers is not installed (pip install -e .[peers])")
    return pytest.importorskip("torch", reason="torch is not installed (pip install -e .[peers])")


@pytest.mark.parametrize("case", [f"{SEED}-{i}" for i in range(24)])
def test_logits_and_greedy_tokens_of_random_checkpoints(case, torch, tmp_path):
    from transformers import GPT2LMHeadModel

    rng = random.Random(case)
    directory = write_checkpoint(tmp_path, **random_options(rng))
    model = GPT2LMHeadModel.from_pretrained(directory, dtype=torch.float32).eval()
    ids = [rng.randrange(277) for _ in range(90)]
    with torch.inference_mode():
        in_float32 = model(torch.tensor([ids])).logits[0].numpy()
        model = model.double()
        exact = model(torch.tensor([ids])).logits[0].numpy()
    runner = make_runner(directory)
    try:
        logits = np.concatenate([step(runner, [(ids[:50], 0, [1, 0, 2])]), step(runner, [(ids[50:], 50, [1, 0, 2])])])
    finally:
        runner.close()
    # A layer norm over two numbers, or unscaled attention over large heads, can be so steep that float32 itself is off
    # by more than 1e-4: there the measure is how far transformers' own float32 is from its float64.
    assert np.abs(logits - exact).max() < max(1e-4, 4 * np.abs(in_float32 - exact).max())
    with LLM(str(directory)) as llm:
        params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
        drawn = llm.generate(ids[:40], params)[0].token_ids
    with torch.inference_mode():
        rows = model(torch.tensor([ids[:40] + drawn])).logits[0, 39:-1].numpy()
    best = rows.max(1)
    assert (best - rows[np.arange(len(drawn)), drawn] < 1e-3).all(), "only near-ties may fall otherwise"


def whole_logits(directory, ids):
    runner = make_runner(directory, num_blocks=4)
    try:
        return step(runner, [(ids, 0, [1, 0, 2])])
    finally:
        runner.close()


STORAGE = [*itertools.product(("F32", "F16", "BF16"), ("transformer.", ""), (False, True), (False, True))]


@pytest.mark.slow
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("flags", [*itertools.product((True, False), repeat=5)], ids=str)
def test_every_combination_of_flags(flags, activation, torch, tmp_path):
    from transformers import GPT2LMHeadModel

    scale, by_layer, tie, upcast, has_inner = flags
    rng = random.Random(f"{SEED} {flags} {activation}")
    # Each activation comes with every way to store some five times: nothing in the arithmetic knows of it.
    for number, (dtype, prefix, with_masks, is_sharded) in enumerate(rng.sample(STORAGE, 4)):
        directory = write_checkpoint(
            tmp_path / str(number), seed=rng.randrange(2**31), n_layer=2, n_embd=24, n_head=rng.choice([1, 2, 3, 24]),
            n_positions=32, vocab_size=50, tokenizer=None, activation=activation, scale_attn_weights=scale,
            scale_attn_by_inverse_layer_idx=by_layer, tie=tie, n_inner=37 if has_inner else None, dtype=dtype,
            prefix=prefix, with_masks=with_masks, config={"reorder_and_upcast_attn": upcast},
        )  # fmt: skip
        model = GPT2LMHeadModel.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
        if is_sharded:
            shard(directory)
        ids = [rng.randrange(50) for _ in range(32)]
        with torch.inference_mode():
            in_float32 = model(torch.tensor([ids])).logits[0].numpy()
            for block in model.transformer.h:
                block.attn.reorder_and_upcast_attn = False  # it is about float16, and refuses float64
            exact = model.double()(torch.tensor([ids])).logits[0].numpy()
        # Unscaled attention can be so steep that the order of float32's sums shows.
        assert np.abs(whole_logits(directory, ids) - exact).max() < max(1e-4, 8 * np.abs(in_float32 - exact).max())


@pytest.mark.parametrize("case", range(40))
def test_sizes_by_other_names_or_missing(case, torch):
    from transformers import GPT2Config

    rng = random.Random(case)
    sizes = {"n_embd": 240, "n_head": 5, "n_layer": 3, "n_positions": 77, "vocab_size": rng.choice([50256, 60000])}
    sizes |= {"n_inner": 31, "intermediate_size": 9, "n_ctx": 8}
    sizes |= {other: sizes[name] for other, name in OTHER_NAMES.items()}
    data = {name: sizes[name] for name in rng.sample([*sizes], rng.randrange(len(sizes)))}
    theirs = GPT2Config.from_dict(dict(data))
    if theirs.n_embd % theirs.n_head:
        data["n_head"] = data["num_attention_heads"] = theirs.n_head = 6
    config = ModelConfig.from_dict(data | {"model_type": "gpt2"}, "")
    assert {name: getattr(config, name) for name in USUAL} == {name: getattr(theirs, name) for name in USUAL}
    assert config.n_inner == (theirs.n_inner or 4 * theirs.n_embd)
    assert config.eos_token_ids == ((50256,) if theirs.vocab_size > 50256 else ())


@pytest.mark.parametrize(
    ("kind", "dtype", "tie"),
    [
        ("LMHeadModel", "float32", True),
        ("LMHeadModel", "float16", False),
        ("Model", "bfloat16", True),
        ("DoubleHeadsModel", "float32", False),
        ("ForSequenceClassification", "float16", True),
    ],
)
def test_checkpoints_as_transformers_writes_them(kind, dtype, tie, torch, tmp_path):
    import transformers

    torch.manual_seed(1)
    config = transformers.GPT2Config(
        n_embd=48, n_head=3, n_layer=2, n_positions=64, vocab_size=101, tie_word_embeddings=tie, eos_token_id=[7, 9],
        bos_token_id=7, pad_token_id=7, initializer_range=0.3, activation_function="gelu",
    )  # fmt: skip
    model = getattr(transformers, f"GPT2{kind}")(config).to(getattr(torch, dtype)).eval()
    model.save_pretrained(tmp_path, max_shard_size="60KB" if kind == "LMHeadModel" else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == (kind == "LMHeadModel")
    expected = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.float64).eval()
    ids = [i * 17 % 101 for i in range(64)]
    with torch.inference_mode():
        exact = expected(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(whole_logits(tmp_path, ids) - exact).max() < 1e-4
    with Checkpoint(tmp_path) as checkpoint:
        assert checkpoint.config.eos_token_ids == (7, 9)
        extra = {"DoubleHeadsModel": "multiple_choice_head", "ForSequenceClassification": "score.weight"}.get(kind)
        assert len(checkpoint.warnings) == (extra is not None)
        assert all(extra in line for line in checkpoint.warnings)


@pytest.mark.parametrize("is_same", [True, False])
def test_two_heads_that_should_be_one(is_same, torch, tmp_path):
    import transformers

    if int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("transformers before 5 takes the embedding, whatever the head is")
    directory = write_checkpoint(tmp_path, tie=False, config={"tie_word_embeddings": True})
    if is_same:
        tensors = parts(directory)
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
        rewrite(directory, tensors)
    model = transformers.GPT2LMHeadModel.from_pretrained(directory, dtype=torch.float64).eval()
    with torch.inference_mode():
        exact = model(torch.tensor([[5, 6, 7]])).logits[0].numpy()
    assert np.abs(whole_logits(directory, [5, 6, 7]) - exact).max() < 1e-4


@pytest.mark.parametrize("case", [f"{SEED}-{i}" for i in range(6)])
def test_guided_greedy_tokens_and_scores_of_random_checkpoints(case, torch, tmp_path):
    from transformers import GPT2LMHeadModel

    rng = random.Random(f"guided {case}")
    directory = write_checkpoint(tmp_path, **random_options(rng))
    model = GPT2LMHeadModel.from_pretrained(directory, dtype=torch.float64).eval()
    ids, negative = ([rng.randrange(277) for _ in range(size)] for size in (20, rng.choice([3, 30])))
    negative = rng.choice([negative, None])
    scale = rng.choice([0, 0.4, 1.5, 3, 8])
    with torch.inference_mode():
        output = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            guidance_scale=scale,
            negative_prompt_ids=None if negative is None else torch.tensor([negative]),
            do_sample=False,
            max_new_tokens=30,
            eos_token_id=-1,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )
    expected = output.sequences[0, len(ids) :].tolist()
    scores = torch.cat(output.scores).log_softmax(1).numpy()
    params = SamplingParams(
        temperature=0, max_tokens=30, ignore_eos=True, logprobs=3, guidance_scale=scale, negative_prompt=negative
    )
    with LLM(str(directory)) as llm:
        drawn = llm.generate(ids, params)[0]
    close = np.sort(scores)[:, -1] - np.sort(scores)[:, -2] < 1e-3 * max(scale, 1)
    certain = int(close.argmax()) if close.any() else 30  # what follows a near-tie may be another text
    assert certain > 5
    assert drawn.token_ids[:certain] == expected[:certain]
    for told, row in zip(drawn.logprobs[:certain], scores, strict=False):
        for token_id, logprob in told.top.items():
            assert abs(logprob - row[token_id]) < 1e-3 * max(scale, 1)
