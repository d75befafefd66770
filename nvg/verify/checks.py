"""All that can be said about a model's directory, check by check; a fault in one does not hide those of others."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nvg.errors import NvgError, ParameterError, cause, shown
from nvg.files import read_json, size_text, weight_files
from nvg.hub import resolve_model
from nvg.llm import LLM
from nvg.model.checkpoint import DTYPES, Checkpoint
from nvg.model.config import ModelConfig, read_config
from nvg.model.generation import read_generation_defaults
from nvg.params import EngineConfig
from nvg.plugins import registry
from nvg.runtime.kernel_store import Report
from nvg.tokenizers.chat import find_template
from nvg.tokenizers.contract import Tokenizer
from nvg.verify import fingerprint
from nvg.verify.fingerprint import Fingerprint

OK, WARNING, BAD = "ok", "warning", "bad"
_FILES = ("config.json", "generation_config.json", "model.safetensors.index.json")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "chat_template.jinja")
_PIECE = 2**20  # values that are read at once
_MOST_ENDS = 5  # are listed
_SAMPLE = "Once upon a time, naïve façade:\n\t42 x 1.5 = 63 – “日本語” 🦊 e\u0301\u200d don't  \r\n\0"


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    state: str
    """OK, WARNING, or BAD: the model can't be used, or not be trusted."""
    text: str


@dataclass
class Verification:
    """What is known about a model."""

    model: str
    path: str
    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    """Plain data for JSON: files, config, generation, tensors, tokenizer, fingerprint, comparison."""

    @property
    def is_sound(self) -> bool:
        return all(finding.state != BAD for finding in self.findings)

    def add(self, check: str, state: str, text: str) -> None:
        self.findings.append(Finding(check, state, text))


def verify(config: EngineConfig, saved: Fingerprint | None, report: Report) -> Verification:
    """Check the model that `config` names, and compare its logits with those of `saved`.

    Raises ModelNotFoundError; every fault of the files is a finding.
    """
    directory = resolve_model(config.model)
    found = Verification(config.model, str(directory))
    model = _check_config(found, directory)
    _check_generation(found, directory)
    _check_files(found, directory)
    stored_as: tuple[str, ...] = ()
    if model is not None:
        stored_as = _check_weights(found, directory)
    else:
        found.add("weights", WARNING, "not read, because a config.json without faults says which there must be")
    _check_tokenizer(found, directory, config.tokenizer, model)
    _check_chat(found, directory)
    if model is not None and found.is_sound:
        _check_logits(found, config, model, stored_as, saved, report)
    else:
        found.add("logits", WARNING, "not computed, because of the faults above")
    return found


def _check_config(found: Verification, directory: Path) -> ModelConfig | None:
    try:
        config = read_config(directory)
    except NvgError as error:
        found.add("config", BAD, str(error))
        return None
    found.facts["config"] = asdict(config)
    flags = [
        *(["unscaled attention"] if not config.scale_attn_weights else []),
        *(["attention scaled by the inverse of the layer"] if config.scale_attn_by_inverse_layer_idx else []),
        "tied head" if config.tie_word_embeddings else "head of its own",
    ]
    given = [*_given_ends(directory / "config.json"), *_given_ends(directory / "generation_config.json")]
    if lost := sorted({token_id for token_id in given if token_id >= config.vocab_size}):
        told = ", ".join(map(shown, lost[:_MOST_ENDS]))
        found.add("config", WARNING, f"eos_token_id {told} is beyond the vocabulary of {config.vocab_size}: ignored")
    found.add(
        "config", OK,
        f"{config.n_layer} layers, {config.n_head} heads of {config.head_size}, n_embd {config.n_embd}, n_inner "
        f"{config.n_inner}, {config.activation_function}, {config.n_positions} positions, vocabulary of "
        f"{config.vocab_size}, layer_norm_epsilon {config.layer_norm_epsilon:g}, {', '.join(flags)}",
    )  # fmt: skip
    return config


def _given_ends(path: Path) -> list[int]:
    """The end-of-text ids that a file names, which was read before."""
    given = read_json(path).get("eos_token_id") if path.is_file() else None
    return given if isinstance(given, list) else [] if given is None else [given]


def _check_generation(found: Verification, directory: Path) -> None:
    try:
        defaults = read_generation_defaults(directory)
    except NvgError as error:
        found.add("defaults", BAD, str(error))
        return
    stages = {name: dict(options) for name, options in defaults.stages}
    found.facts["generation"] = {
        "params": dict(defaults.params),
        "stages": stages,
        "origins": dict(defaults.origins),
        "unused": json.loads(json.dumps(dict(defaults.unused)), parse_constant=str),  # nan is no JSON
    }
    told = [f"{name} {shown(value)}" for name, value in defaults.params.items()]
    told += [f"{name}.{option} {shown(value)}" for name, options in stages.items() for option, value in options.items()]
    files = ", ".join(sorted(set(defaults.origins.values())))
    found.add("defaults", OK, f"{', '.join(told)} (from {files})" if told else "the model has none of its own")
    if defaults.unused:
        unused = ", ".join(f"{key} {shown(value)}" for key, value in defaults.unused.items())
        found.add("defaults", WARNING, f"not used by nvg: {unused}")


def _check_files(found: Verification, directory: Path) -> None:
    try:
        weights = [path.name for path in weight_files(directory)]
    except NvgError:
        weights = []  # told by the check of the weights
    files: list[dict[str, Any]] = []
    for name in (*_FILES, *weights, *_TOKENIZER_FILES):
        path = directory / name
        if path.is_file():
            link = os.path.realpath(path) if path.is_symlink() else None
            files.append({"name": name, "bytes": path.stat().st_size, "link": link})
    found.facts["files"] = files
    told = ", ".join(f"{file['name']} {size_text(file['bytes'])}" for file in files if file["name"] not in weights)
    total = sum(file["bytes"] for file in files if file["name"] in weights)
    if weights:
        name = weights[0] if len(weights) == 1 else f"{len(weights)} shards"
        told += f", {name} {size_text(total)}"
    found.add("files", OK, told)


def _check_weights(found: Verification, directory: Path) -> tuple[str, ...]:
    """The dtypes that the tensors have."""
    problems: list[str] = []
    try:
        with Checkpoint(directory, problems=problems) as checkpoint:
            for line in (*problems, *checkpoint.warnings):
                found.add("weights", BAD if line in problems else WARNING, line)
            dtypes = Counter(checkpoint.dtype(name) for name in checkpoint.names)
            sizes = {name: math.prod(checkpoint.shape(name)) for name in checkpoint.names}
            if not problems:
                told = ", ".join(f"{count} as {dtype}" for dtype, count in dtypes.most_common())
                found.add("weights", OK, f"{_millions(sum(sizes.values()))} parameters in {len(sizes)} tensors, {told}")
            _check_values(found, checkpoint)
            return tuple(sorted(dtypes, key=list(DTYPES).index))
    except NvgError as error:
        found.add("weights", BAD, str(error))
        return ()


def _check_values(found: Verification, checkpoint: Checkpoint) -> None:
    """Read every value that there is."""
    tensors, faults = [], 0
    largest = (0.0, "")
    for name in checkpoint.names:
        fact: dict[str, Any] = {
            "name": name, "shape": list(checkpoint.shape(name)), "dtype": checkpoint.dtype(name), "largest": None
        }  # fmt: skip
        try:
            fact["largest"] = _largest_value(checkpoint, name)
            largest = max(largest, (fact["largest"], name))
        except NvgError as error:
            faults += 1
            found.add("values", BAD, str(error))
        tensors.append(fact)
    found.facts["tensors"] = tensors
    checkpoint.check_unchanged()
    if not faults:
        found.add("values", OK, f"all are finite, none beyond {largest[0]:.4g} ({largest[1]})")


def _largest_value(checkpoint: Checkpoint, name: str) -> float:
    """The largest absolute value of a tensor, which may not fit into memory. Raises CheckpointError."""
    *rows, columns = checkpoint.shape(name)
    num_rows, largest = math.prod(rows), 0.0
    step = max(1, _PIECE // columns)
    for first in range(0, num_rows, step):
        values = np.empty((min(step, num_rows - first), columns), np.float32)
        checkpoint.read_rows(name, first, values)
        largest = max(largest, float(values.max()), -float(values.min()))
    return largest


def _check_tokenizer(found: Verification, directory: Path, name: str | None, config: ModelConfig | None) -> None:
    try:
        tokenizer: Tokenizer = registry().tokenizers.load(name or "gpt2").from_dir(directory)
    except NvgError as error:
        found.add("tokenizer", BAD, str(error))
        return
    size, ends = tokenizer.vocab_size, tuple(tokenizer.eos_token_ids)
    found.facts["tokenizer"] = {
        "vocab_size": size,
        "eos_token_ids": list(ends),
        "special_tokens": dict(tokenizer.special_tokens),
        "fingerprint": tokenizer.fingerprint,
    }
    faults = [("tokenizer", *fault) for fault in _faults_of_tokenizer(tokenizer, config)]
    for fault in faults:
        found.add(*fault)
    if all(state != BAD for _, state, _ in faults):
        spare = config.vocab_size - size if config else 0
        rows = f", {spare} rows of the weights beyond them, which are never drawn" if spare else ""
        some = [f"{i} ({shown(tokenizer.token_bytes(i).decode(errors='replace'))})" for i in ends[:_MOST_ENDS]]
        more = ", ..." if len(ends) > _MOST_ENDS else ""
        end = f"; a text ends with {', '.join(some)}{more}" if ends else ""
        found.add("tokenizer", OK, f"{size} ids{rows}{end}")


def _check_chat(found: Verification, directory: Path) -> None:
    try:
        template = find_template(directory)
    except NvgError as error:
        found.add("chat", BAD, str(error))
        return
    if template is not None:
        source, path = template
        found.add("chat", OK, f"a template of {len(source)} characters ({path.name})")


def _faults_of_tokenizer(tokenizer: Tokenizer, config: ModelConfig | None) -> Iterator[tuple[str, str]]:
    size, ends = tokenizer.vocab_size, tuple(tokenizer.eos_token_ids)
    if config is not None and size > config.vocab_size:
        yield BAD, f"{size} ids, but the weights have rows for {config.vocab_size}: they belong to different models"
    try:
        token_ids = tokenizer.encode(_SAMPLE)
        back = tokenizer.decode(token_ids)
    except Exception as error:  # a plugin's
        yield BAD, f"a text of many characters can't be encoded and decoded: {cause(error)}"
        return
    if not all(0 <= token_id < size for token_id in token_ids):
        yield BAD, f"it gives ids outside of 0 to {size - 1}"
    elif back.lstrip(" ") != _SAMPLE:  # some begin every text with a space
        yield WARNING, f"a text comes back as another: {shown(back, 300)}"
    if not ends:
        yield WARNING, "no token ends a text: neither eos_token_id nor <|endoftext|> is there"
    elif config is not None and config.eos_token_ids and set(config.eos_token_ids) != set(ends):
        yield (
            WARNING,
            f"a text ends with {shown(list(ends))} here, with {shown(list(config.eos_token_ids))} in the config",
        )


def _check_logits(
    found: Verification,
    config: EngineConfig,
    model: ModelConfig,
    stored_as: tuple[str, ...],
    saved: Fingerprint | None,
    report: Report,
) -> None:
    try:
        with LLM(**asdict(config), report=report) as llm:
            taken = fingerprint.take(llm, model.vocab_size, model.n_positions, stored_as)
    except (NvgError, MemoryError) as error:
        found.add("logits", BAD, cause(error))
        return
    if not np.isfinite(taken.logits).all():
        found.add("logits", BAD, "some are not finite: the weights are too large for float32")
        return
    found.facts["fingerprint"] = taken.as_dict()
    largest = max(abs(value) for row in taken.logits for value in row)
    told = f"{len(taken.logits)} positions in {taken.dtype}, none beyond {largest:.4g}"
    if saved is None:
        found.add("logits", OK, f"{told} (--format json saves them, --compare FILE compares)")
        return
    try:
        compared = fingerprint.compare(taken, saved)
    except ParameterError as error:
        found.add("logits", BAD, f"not those of the fingerprint: {error}")
        return
    found.facts["comparison"] = {**asdict(compared), "same": compared.is_same}
    near = f"{compared.distance:.2g} standard deviations from the fingerprint, of which rounding explains up to "
    near += f"{compared.tolerance:.2g}"
    found.add(
        "logits", OK if compared.is_same else BAD, f"{'' if compared.is_same else 'another model: '}{told}; {near}"
    )


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e5 else str(count)
