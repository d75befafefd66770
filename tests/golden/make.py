"""Writes cases.json, values.npz and combinations.npz beside it: what transformers computes, in float32.

Run it from the repository's root with torch and transformers installed: python tests/golden/make.py
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, GPT2LMHeadModel

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import checkpoints  # noqa: E402

TINY = {
    f"activation-{name}": {"activation": name, "seed": seed} for seed, name in enumerate(checkpoints.ACTIVATIONS)
} | {
    "f16": {"dtype": "F16", "seed": 10},
    "bf16": {"dtype": "BF16", "seed": 11},
    "untied": {"tie": False, "seed": 12},
    "unscaled": {"scale_attn_weights": False, "seed": 13},
    "inverse-layer": {"scale_attn_by_inverse_layer_idx": True, "n_layer": 4, "seed": 14},
    "inverse-layer-unscaled": {
        "scale_attn_by_inverse_layer_idx": True,
        "scale_attn_weights": False,
        "n_layer": 3,
        "seed": 15,
    },
    "epsilon": {"layer_norm_epsilon": 0.1, "seed": 16},
    "inner": {"n_inner": 50, "seed": 17},
    "head-size-1": {"n_embd": 8, "n_head": 8, "seed": 18},
    "head-size-11": {"n_embd": 33, "n_head": 3, "vocab_size": 300, "seed": 19},
    "head-size-64": {"n_embd": 128, "n_head": 2, "n_layer": 1, "seed": 20},
    "head-size-128": {"n_embd": 128, "n_head": 1, "n_layer": 1, "seed": 21},
    "masks": {"with_masks": True, "prefix": "", "seed": 22},
    "long": {"n_positions": 300, "n_embd": 48, "n_head": 4, "n_layer": 3, "seed": 23},
}
TALES_TEXT = """\
Once upon a time there lived in a village at the edge of the forest a poor miller, who had three sons and one old cat.
"My children," said he one evening, "I am growing old, and the mill will grind no more; go out into the world, and let
each of you bring home what he thinks most precious." So the eldest took the road to the north, where the King's castle
stood upon a hill of glass; the second went south to the sea; but the youngest, whom all called Simpleton, sat down by
the well and wept. Then the cat said: "Dry your tears, and buy me a pair of boots - 3 pence will do!"
"""


def forward(model, token_ids):
    with torch.no_grad():
        return model(torch.tensor([token_ids])).logits[0].numpy()


def follow_greedily(model, prompt, count):
    """The most probable tokens after the prompt, and by how much each beat the second."""
    ids, gaps, past = list(prompt), [], None
    with torch.no_grad():
        for _ in range(count):
            new = ids if past is None else ids[-1:]
            out = model(torch.tensor([new]), past_key_values=past, use_cache=True)
            past = out.past_key_values
            best = out.logits[0, -1].topk(2).values
            ids.append(int(out.logits[0, -1].argmax()))
            gaps.append(float(best[0] - best[1]))
    return np.array(ids[len(prompt) :], np.int32), np.array(gaps, np.float32)


def record(directory, token_ids, *, num_positions, num_columns, prompt=(), num_greedy=0):
    """The arrays of one case, after a check of the float32 run against a float64 one."""
    model = GPT2LMHeadModel.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    logits = forward(model, token_ids)
    greedy, gaps = follow_greedily(model, prompt, num_greedy)
    rounding = np.abs(logits - forward(model.double(), token_ids)).max()
    assert rounding < 6e-5, rounding
    rng = np.random.default_rng(0)
    positions = np.unique(np.linspace(0, len(token_ids) - 1, num_positions).astype(np.int32))
    columns = np.sort(rng.choice(logits.shape[1], num_columns, replace=False)).astype(np.int32)
    top = logits.max(axis=1, keepdims=True).astype(np.float64)
    print(f"{np.abs(logits).max():8.2f} largest logit   {rounding:.1e} rounding   {directory}")
    return {
        "positions": positions,
        "columns": columns,
        "logits": logits[np.ix_(positions, columns)],
        "argmax": logits.argmax(axis=1).astype(np.int32),
        "logsumexp": (top[:, 0] + np.log(np.exp(logits - top).sum(axis=1))).astype(np.float32),
        "greedy": greedy,
        "greedy_gap": gaps,
    }


def record_combinations():
    """What transformers computes for every combination of flags."""
    logits = {}
    for name, options in checkpoints.combinations().items():
        with tempfile.TemporaryDirectory() as temporary:
            checkpoints.write_checkpoint(temporary, **options)
            model = GPT2LMHeadModel.from_pretrained(temporary, dtype=torch.float32, attn_implementation="eager").eval()
        whole = forward(model, checkpoints.COMBINATION_IDS)
        for block in model.transformer.h:
            block.attn.reorder_and_upcast_attn = False  # it is about float16, and refuses float64
        rounding = np.abs(whole - forward(model.double(), checkpoints.COMBINATION_IDS)).max()
        assert rounding < 6e-5, (name, rounding)
        logits[name] = whole[np.ix_(checkpoints.COMBINATION_ROWS, checkpoints.COMBINATION_COLUMNS)]
    np.savez_compressed(HERE / "combinations.npz", names=[*logits], logits=np.stack([*logits.values()]))


def main():
    record_combinations()
    cases, arrays = {}, {}

    def add(name, writer, options, directory, token_ids, prompt=(), **how):
        token_ids, prompt = [int(i) for i in token_ids], [int(i) for i in prompt]
        cases[name] = {"writer": writer, "options": options, "token_ids": token_ids, "greedy_prompt": prompt}
        values = record(directory, token_ids, prompt=prompt, **how)
        arrays.update({f"{name}/{key}": value for key, value in values.items()})

    with tempfile.TemporaryDirectory() as temporary:
        for name, options in TINY.items():
            directory = checkpoints.write_checkpoint(Path(temporary) / name, **options)
            size = json.loads((directory / "config.json").read_text())["vocab_size"]
            length = options.get("n_positions", 64)
            token_ids = np.random.default_rng(options["seed"]).integers(0, size, length)
            greedy = {"prompt": token_ids[:20], "num_greedy": 200} if name == "long" else {}
            add(name, "tiny", options, directory, token_ids, num_positions=24, num_columns=32, **greedy)
        tales = checkpoints.TALES
        ids = AutoTokenizer.from_pretrained(tales)(TALES_TEXT)["input_ids"]
        long_ids = (ids * 4)[:512]
        add("tales", "tales", {}, tales, long_ids, ids[:12], num_positions=40, num_columns=64, num_greedy=200)
        directory = checkpoints.write_gpt2_124m(Path(temporary) / "gpt2_124m", seed=0)
        token_ids = np.random.default_rng(0).integers(0, 50257, 48)
        add("gpt2_124m", "gpt2_124m", {"seed": 0}, directory, token_ids, num_positions=12, num_columns=256)
    lines = [f"{json.dumps(name)}: {json.dumps(case)}" for name, case in cases.items()]
    (HERE / "cases.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    np.savez_compressed(HERE / "values.npz", **arrays)


if __name__ == "__main__":
    main()
