"""Writes random GPT-2 checkpoints as Hugging Face directories, and gives the golden values that belong to them.

The weights come from the raw bits of PCG64, whose stream NumPy promises to keep, by exact float arithmetic: the same
seed gives the same bytes on every machine.
"""

import itertools
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TALES = Path(__file__).resolve().parents[1] / "nvg" / "data" / "tales"
GOLDEN = Path(__file__).resolve().parent / "golden"
END_OF_TEXT = "<|endoftext|>"
MERGES = [
    *("h e", "Ġ t", "Ġ a", "i n", "r e", "Ġt he", "n d", "e r", "Ġ s", "o u"),
    *("Ġ w", "e n", "Ġa nd", "Ġ b", "i t", "i s", "o n", "l l", "Ġt o", "Ġ Ġ"),
]


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-in for each byte: itself where it is printable in Latin-1, else from U+0100 up."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = iter(range(256, 512))
    return [chr(byte if byte in printable else next(hidden)) for byte in range(256)]


def vocabulary() -> dict[str, int]:
    """The tiny byte-level BPE's tokens and ids: 256 bytes, the merges, and end-of-text last."""
    tokens = [*byte_alphabet(), *(merge.replace(" ", "") for merge in MERGES), END_OF_TEXT]
    return {token: token_id for token_id, token in enumerate(tokens)}


def write_tokenizer(directory, layout="tokenizer.json") -> None:
    """Write the tiny tokenizer as one tokenizer.json, or as "vocab.json" with merges.txt."""
    directory = Path(directory)
    vocab = vocabulary()
    if layout == "vocab.json":
        (directory / "vocab.json").write_text(json.dumps(vocab), "utf-8")
        (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]), "utf-8")
        return
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocab[END_OF_TEXT], "content": END_OF_TEXT, **flags, "special": True}],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [merge.split(" ") for merge in MERGES],
        },
    }
    (directory / layout).write_text(json.dumps(tokenizer), "utf-8")


def to_stored(values, dtype) -> np.ndarray:
    """float32 values as the array whose bytes a safetensors file holds: F32, F16, or BF16 (nearest, ties to even)."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
    return np.asarray(values, {"F32": "<f4", "F16": "<f2"}[dtype])


def write_safetensors(path, tensors) -> None:
    """Write name -> (dtype, shape, stored array or bytes), in that order."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, stored) in tensors.items():
        size = memoryview(stored).nbytes
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, stored in tensors.values():
            file.write(memoryview(stored).cast("B"))


def _uniform(bits, shape, std, mean=0.0):
    """Uniform float32 of that mean and standard deviation."""
    size = math.prod(shape)
    integers = bits.random_raw((size + 1) // 2).view(np.int32)[:size]
    values = integers.astype(np.float32)
    values *= np.float32(std * math.sqrt(3) / 2**31)
    if mean:
        values += np.float32(mean)
    return values.reshape(shape)


def random_tensors(config, seed, std) -> dict[str, np.ndarray]:
    """Random float32 tensors for a config.json, by canonical name; `std(name, shape)` is each one's deviation."""
    bits = np.random.PCG64(seed)
    c, inner = config["n_embd"], config["n_inner"] or 4 * config["n_embd"]
    shapes = {"wte.weight": (config["vocab_size"], c), "wpe.weight": (config["n_positions"], c)}
    for i in range(config["n_layer"]):
        for name, n_in, n_out in (
            ("attn.c_attn", c, 3 * c),
            ("attn.c_proj", c, c),
            ("mlp.c_fc", c, inner),
            ("mlp.c_proj", inner, c),
        ):
            shapes[f"h.{i}.{name}.weight"], shapes[f"h.{i}.{name}.bias"] = (n_in, n_out), (n_out,)
        for name in ("ln_1", "ln_2"):
            shapes[f"h.{i}.{name}.weight"] = shapes[f"h.{i}.{name}.bias"] = (c,)
    shapes["ln_f.weight"] = shapes["ln_f.bias"] = (c,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], c)
    tensors = {}
    for name, shape in shapes.items():
        is_gain = ".ln_" in f".{name}" and name.endswith("weight")
        tensors[name] = _uniform(bits, shape, std(name, shape), 1.0 if is_gain else 0.0)
    return tensors


def _lively(name, shape):
    """Deviations that make attention, positions and every bias matter, and logits of about 1 to 10."""
    if len(shape) == 1:
        return 0.2
    if name in ("wte.weight", "wpe.weight", "lm_head.weight"):
        return 2.5 / math.sqrt(shape[1])
    return 1.5 / math.sqrt(shape[0])


def write_checkpoint(
    directory,
    *,
    seed=0,
    n_layer=2,
    n_head=2,
    n_embd=32,
    n_positions=64,
    n_inner=None,
    vocab_size=None,
    dtype="F32",
    prefix="transformer.",
    activation="gelu_new",
    layer_norm_epsilon=1e-5,
    scale_attn_weights=True,
    scale_attn_by_inverse_layer_idx=False,
    tie=True,
    with_masks=False,
    tokenizer="tokenizer.json",
    config=None,
) -> Path:
    """Write a tiny random GPT-2: config.json, model.safetensors and a byte-level tokenizer (None: without it).

    `vocab_size` None is the tokenizer's. `config` overrides or adds keys of config.json after the weights are drawn.
    Returns the directory, which is made if need be.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    vocab = vocabulary()
    values = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": vocab_size or len(vocab),
        "n_positions": n_positions,
        "n_embd": n_embd,
        "n_layer": n_layer,
        "n_head": n_head,
        "n_inner": n_inner,
        "activation_function": activation,
        "layer_norm_epsilon": layer_norm_epsilon,
        "scale_attn_weights": scale_attn_weights,
        "scale_attn_by_inverse_layer_idx": scale_attn_by_inverse_layer_idx,
        "tie_word_embeddings": tie,
        "bos_token_id": vocab[END_OF_TEXT],
        "eos_token_id": vocab[END_OF_TEXT],
    }
    tensors = {
        name if name == "lm_head.weight" else prefix + name: (dtype, array.shape, to_stored(array, dtype))
        for name, array in random_tensors(values, seed, _lively).items()
    }
    if with_masks:  # as transformers before 4.31 stored them
        mask = np.tri(n_positions, dtype=np.uint8)
        for i in range(n_layer):
            tensors[f"{prefix}h.{i}.attn.bias"] = ("U8", (1, 1, n_positions, n_positions), mask)
            tensors[f"{prefix}h.{i}.attn.masked_bias"] = ("F32", (1,), np.full(1, -1e4, "<f4"))
    write_safetensors(directory / "model.safetensors", tensors)
    (directory / "config.json").write_text(json.dumps(values | (config or {}), indent=2), "utf-8")
    if tokenizer:
        write_tokenizer(directory, tokenizer)
    return directory


GPT2_124M = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
}


def write_gpt2_124m(directory, seed=0) -> Path:
    """Write a GPT-2 of the true small size (124 M parameters, float32, 498 MB), without a tokenizer, in a few seconds.

    Deviations are those of GPT-2's initialisation: 0.02, and 0.01 for positions; biases are not zero here.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = random_tensors(GPT2_124M, seed, lambda name, shape: 0.01 if name == "wpe.weight" else 0.02)
    stored = {f"transformer.{name}": ("F32", array.shape, array) for name, array in tensors.items()}
    write_safetensors(directory / "model.safetensors", stored)
    (directory / "config.json").write_text(json.dumps(GPT2_124M, indent=2), "utf-8")
    return directory


@dataclass(frozen=True)
class Golden:
    """What transformers computed, in float32, for one checkpoint. T tokens, P positions, K columns, G greedy tokens."""

    name: str
    writer: str
    """"tales", "gpt2_124m" or "tiny": which checkpoint; see `golden_directory`."""
    options: dict
    """Keyword arguments of the writer."""
    token_ids: list[int]
    positions: np.ndarray  # (P,) rows of `logits`
    columns: np.ndarray  # (K,) vocabulary ids of `logits`
    logits: np.ndarray  # (P, K) float32
    argmax: np.ndarray  # (T,) at every position
    logsumexp: np.ndarray  # (T,) float32
    greedy_prompt: list[int]
    greedy: np.ndarray  # (G,) the most probable tokens after greedy_prompt
    greedy_gap: np.ndarray  # (G,) float32: by how much the best logit beat the second


def golden_names() -> list[str]:
    """All golden cases, small ones first."""
    return list(json.loads((GOLDEN / "cases.json").read_text()))


def golden(name) -> Golden:
    """The golden values of one case."""
    case = json.loads((GOLDEN / "cases.json").read_text())[name]
    with np.load(GOLDEN / "values.npz") as values:
        arrays = {key.split("/")[1]: values[key] for key in values.files if key.split("/")[0] == name}
    return Golden(name=name, **case, **arrays)


ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu", "relu", "silu", "swish", "tanh")


def combinations() -> dict[str, dict]:
    """Every combination of what config.json can say about the arithmetic, as options of write_checkpoint; the ways to
    store a checkpoint take turns among them."""
    found = {}
    flags = itertools.product(ACTIVATIONS, (True, False), (False, True), (True, False), (None, 21))
    for number, (activation, scale, by_layer, tie, n_inner) in enumerate(flags):
        turn = number + number // 16  # so that no flag always comes with the same way to store
        found[f"{activation}-{number % 16:04b}"] = {
            "seed": 1000 + number,
            "n_layer": 2,
            "n_head": (1, 2, 4)[turn % 3],
            "n_embd": 8,
            "n_positions": 16,
            "vocab_size": 40,
            "activation": activation,
            "scale_attn_weights": scale,
            "scale_attn_by_inverse_layer_idx": by_layer,
            "tie": tie,
            "n_inner": n_inner,
            "dtype": ("F32", "F16", "BF16")[turn % 3],
            "prefix": ("transformer.", "")[turn // 3 % 2],
            "with_masks": turn // 2 % 2 == 0,
            "layer_norm_epsilon": (1e-5, 1e-2)[turn // 5 % 2],
            "config": {"reorder_and_upcast_attn": turn % 2 == 0},
            "tokenizer": None,
        }
    return found


COMBINATION_IDS = [3 * i % 40 for i in range(16)]
COMBINATION_ROWS, COMBINATION_COLUMNS = [0, 5, 15], [*range(0, 40, 4)]


def combination_logits() -> dict[str, np.ndarray]:
    """(rows, columns) of the logits that transformers computed for each of `combinations`, in float32."""
    with np.load(GOLDEN / "combinations.npz") as values:
        return dict(zip(values["names"].tolist(), values["logits"], strict=True))


def golden_directory(case: Golden, directory) -> Path:
    """The case's checkpoint: written into `directory`, but for tales, which is in the package."""
    if case.writer == "tales":
        return TALES
    return {"tiny": write_checkpoint, "gpt2_124m": write_gpt2_124m}[case.writer](directory, **case.options)
