"""Writes a random GPT-2 of true size as a Hugging Face directory: for benchmarks that need no real weights.

python benchmarks/dummy.py gpt2 DIR
"""

from __future__ import annotations

import argparse
import json
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SIZES = {"gpt2": (12, 12, 768), "gpt2-medium": (24, 16, 1024), "gpt2-large": (36, 20, 1280), "gpt2-xl": (48, 25, 1600)}
"""Published GPT-2 sizes: n_layer, n_head, n_embd."""
VOCAB_SIZE, N_POSITIONS = 50257, 1024
_STD = 0.02  # GPT-2's initializer_range
_END_OF_TEXT = "<|endoftext|>"


def byte_tokens() -> list[str]:
    """Byte-level BPE's printable stand-in for each byte 0 .. 255."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte if byte in plain else 0x100 + others.index(byte)) for byte in range(256)]


def vocabulary(size: int) -> tuple[list[str], list[str]]:
    """(tokens by id, merges) of a byte-level BPE whose merges are pairs of bytes; the last token is end-of-text.

    Raises ValueError unless size is from 257 to 65793.
    """
    if not 257 <= size <= 257 + 256**2:
        raise ValueError(f"a vocabulary of {size} tokens; it must be from 257 to {257 + 256**2}")
    letters = byte_tokens()
    pairs = [(letters[i // 256], letters[i % 256]) for i in range(size - 257)]
    tokens = [*letters, *(first + second for first, second in pairs), _END_OF_TEXT]
    return tokens, [f"{first} {second}" for first, second in pairs]


def write_checkpoint(directory: Path, size: str) -> Path:
    """Write config.json, model.safetensors (float32) and tokenizer.json, unless `directory` has this model already."""
    config = _config(*SIZES[size])
    path = directory / "config.json"
    text = json.dumps(config, indent=2)
    if path.is_file() and path.read_text("utf-8") == text:
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    _write_tensors(directory / "model.safetensors", config)
    _write_tokenizer(directory / "tokenizer.json")
    unfinished = directory / "config.json.tmp"
    unfinished.write_text(text, "utf-8")
    os.replace(unfinished, path)  # last: a directory with a config is complete
    return directory


def _config(n_layer: int, n_head: int, n_embd: int) -> dict[str, object]:
    return {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "bos_token_id": VOCAB_SIZE - 1,
        "eos_token_id": VOCAB_SIZE - 1,
        "layer_norm_epsilon": 1e-5,
        "model_type": "gpt2",
        "n_embd": n_embd,
        "n_head": n_head,
        "n_inner": None,
        "n_layer": n_layer,
        "n_positions": N_POSITIONS,
        "tie_word_embeddings": True,
        "vocab_size": VOCAB_SIZE,
    }


def _shapes(n_layer: int, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "transformer.wte.weight", (VOCAB_SIZE, width)
    yield "transformer.wpe.weight", (N_POSITIONS, width)
    for layer in range(n_layer):
        prefix = f"transformer.h.{layer}"
        for name, inputs, outputs in (
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, 4 * width),
            ("mlp.c_proj", 4 * width, width),
        ):
            yield f"{prefix}.{name}.weight", (inputs, outputs)
            yield f"{prefix}.{name}.bias", (outputs,)
        for name in ("ln_1", "ln_2"):
            yield f"{prefix}.{name}.weight", (width,)
            yield f"{prefix}.{name}.bias", (width,)
    yield "transformer.ln_f.weight", (width,)
    yield "transformer.ln_f.bias", (width,)


def _write_tensors(path: Path, config: dict[str, object]) -> None:
    """Normal values as GPT-2 is initialised; biases and layer norms are random too, so that a mix-up shows."""
    n_layer, width = config["n_layer"], config["n_embd"]
    assert isinstance(n_layer, int)
    assert isinstance(width, int)
    shapes = dict(_shapes(n_layer, width))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    random = np.random.default_rng(2)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for name, shape in shapes.items():
            values = random.standard_normal(math.prod(shape), np.float32)
            values *= np.float32(_STD)
            if ".ln_" in name and name.endswith("weight"):
                values += np.float32(1)
            file.write(values.astype("<f4", copy=False).data)


def _write_tokenizer(path: Path) -> None:
    tokens, merges = vocabulary(VOCAB_SIZE)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    added = {"id": VOCAB_SIZE - 1, "content": _END_OF_TEXT, "special": True}
    for flag in ("single_word", "lstrip", "rstrip", "normalized"):
        added[flag] = False
    tokenizer = {
        "version": "1.0",
        "added_tokens": [added],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges},
    }
    path.write_text(json.dumps(tokenizer), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a random GPT-2 checkpoint of true size.")
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("directory", type=Path)
    args = parser.parse_args()
    try:
        print(write_checkpoint(args.directory, args.size))
    except OSError as error:
        parser.error(f"{args.directory}: {error.strerror}")


if __name__ == "__main__":
    main()
