"""Reads the files of a byte-level BPE tokenizer, checks them, and refuses what would silently give other ids."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from itertools import chain, repeat
from operator import add
from pathlib import Path
from typing import Any

from nvg.errors import CheckpointError
from nvg.files import read_json, shown
from nvg.tokenizers.added_tokens import AddedToken, read_added_tokens
from nvg.tokenizers.bpe_merge import MergeTable
from nvg.tokenizers.byte_alphabet import CHAR_OF_BYTE, ByteIds, spell
from nvg.tokenizers.components import UnsupportedError
from nvg.tokenizers.normalizing import Normalizer, read_normalizer
from nvg.tokenizers.post_processing import Affixes, read_post_processor
from nvg.tokenizers.splitting import PreTokenizer, read_pre_tokenizer
from nvg.tokenizers.text_files import read_object, read_text

END_OF_TEXT = "<|endoftext|>"
WAY_OUT = "nvg reads byte-level BPE; another kind needs a tokenizer plugin, such as nvg-hf-tokenizers (--tokenizer hf)"


@dataclass(frozen=True)
class BPEDefinition:
    """All that decides what a byte-level BPE tokenizer does; checked."""

    tokens: list[str]
    """Spelling (see byte_alphabet) of each id."""
    merges: MergeTable
    byte_ids: ByteIds
    affixes: Affixes
    """The ids before and after those of a whole text."""
    added_tokens: list[AddedToken]
    pre_tokenizer: PreTokenizer
    normalizer: Normalizer | None
    normalizer_setting: str
    """What the file says of the normalizer."""
    whole_pieces: dict[str, int] | None
    """Spelling -> id of the pieces that are one token whatever the merges say (`ignore_merges`)."""
    eos_token_ids: tuple[int, ...]


def read_definition(directory: Path) -> BPEDefinition:
    """The tokenizer in `directory`: `tokenizer.json`, or else `vocab.json` and `merges.txt`.

    Raises CheckpointError (one line: the file, what is wrong) where they are missing, damaged, contradictory, or
    ask for something that nvg's byte-level BPE doesn't do.
    """
    tokenizer_json, vocab_json, merges_txt = (directory / n for n in ("tokenizer.json", "vocab.json", "merges.txt"))
    if os.path.lexists(tokenizer_json):
        source, settings = tokenizer_json, read_object(tokenizer_json)
        model = settings.get("model")
        if not isinstance(model, dict):
            raise CheckpointError(f"{source}: there is no 'model' in it")
        _refuse_unsupported(source, settings, model)
        try:
            normalizer, normalizer_setting = (
                read_normalizer(settings.get("normalizer")),
                repr(settings.get("normalizer")),
            )
            pre_tokenizer = read_pre_tokenizer(settings.get("pre_tokenizer"))
            affixes = read_post_processor(settings.get("post_processor"))
        except (UnsupportedError, RecursionError) as error:
            raise CheckpointError(f"{source}: {error} is not supported; {WAY_OUT}") from None
        vocab = _checked_vocab(source, model.get("vocab"))
        merges = _merges_of_json(source, model.get("merges"), vocab)
        byte_ids = _byte_ids(source, model, vocab)
        added_tokens = read_added_tokens(source, settings.get("added_tokens") or [])
        ignore_merges = bool(model.get("ignore_merges", False))
    elif os.path.lexists(vocab_json) and os.path.lexists(merges_txt):
        source = vocab_json
        vocab = _checked_vocab(source, read_object(source))
        merges = _merge_table(merges_txt, [line for line in read_text(merges_txt).split("\n") if line], vocab)
        _refuse_more_tokens(directory / "added_tokens.json", vocab)
        added_tokens = [AddedToken(END_OF_TEXT, vocab[END_OF_TEXT], True, False)] if END_OF_TEXT in vocab else []
        affixes, byte_ids = ((), ()), ByteIds.of_vocab(vocab)
        ignore_merges, normalizer, normalizer_setting = False, None, "None"
        pre_tokenizer = read_pre_tokenizer({"type": "ByteLevel", "add_prefix_space": False})
    else:
        raise CheckpointError(
            f"{directory}: no tokenizer here; looked for tokenizer.json, and for vocab.json with merges.txt "
            "(copy them from the checkpoint, or name a tokenizer with --tokenizer)"
        )
    tokens = _tokens_by_id(source, vocab, added_tokens)
    for token_id in chain(*affixes):
        if token_id >= len(tokens):
            raise CheckpointError(
                f"{source}: the post_processor adds id {token_id}; ids go from 0 to {len(tokens) - 1}"
            )
    specials = {token.content: token.token_id for token in added_tokens if token.special}
    return BPEDefinition(
        tokens=tokens,
        merges=merges,
        byte_ids=byte_ids,
        affixes=affixes,
        added_tokens=added_tokens,
        pre_tokenizer=pre_tokenizer,
        normalizer=normalizer,
        normalizer_setting=normalizer_setting,
        whole_pieces=vocab if ignore_merges else None,
        eos_token_ids=_eos_token_ids(directory, len(tokens), specials),
    )


def _refuse_unsupported(source: Path, settings: dict[str, Any], model: dict[str, Any]) -> None:
    """Raise for whatever would make the ids other than byte-level BPE gives.

    `truncation` and `padding` are let be: they are about batches of fixed length, not about a text's ids.
    """

    def refuse(what: str) -> CheckpointError:
        return CheckpointError(f"{source}: {what} is not supported; {WAY_OUT}")

    def type_of(component: Any) -> Any:
        return component.get("type") if isinstance(component, dict) else component

    # Files of the first years name no type; only BPE has merges.
    if model.get("type", "BPE") != "BPE":
        raise refuse(f"model {shown(model['type'])}")
    if type_of(settings.get("decoder")) not in (None, "ByteLevel"):
        raise refuse(f"decoder {shown(type_of(settings['decoder']))}")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise refuse(f"{option} {shown(model[option])}")


def _checked_vocab(source: Path, vocab: Any) -> dict[str, int]:
    """Token -> id, with ids that are integers >= 0."""
    if not isinstance(vocab, dict) or not vocab:
        raise CheckpointError(f"{source}: the vocabulary is not an object of tokens and their ids")
    if set(map(type, vocab.values())) != {int} or min(vocab.values()) < 0:
        token, wrong = next((t, i) for t, i in vocab.items() if type(i) is not int or i < 0)
        raise CheckpointError(f"{source}: token {shown(token)} has id {shown(wrong)}; an id must be an integer >= 0")
    return vocab


def _byte_ids(source: Path, model: dict[str, Any], vocab: dict[str, int]) -> ByteIds:
    """What bytes become that the vocabulary lacks: most trainers give a byte a token only where they were told to."""
    missing = next((char for char in CHAR_OF_BYTE.values() if char not in vocab), None)
    token = model.get("unk_token")
    if missing is None or (token is None and not model.get("byte_fallback")):
        return ByteIds.of_vocab(vocab)
    if model.get("byte_fallback"):
        raise CheckpointError(
            f"{source}: byte_fallback is not supported where the vocabulary lacks a byte's {missing!r}; {WAY_OUT}"
        )
    if not isinstance(token, str) or token not in vocab:
        raise CheckpointError(
            f"{source}: the vocabulary lacks a byte's {missing!r}, and the unk_token for it, {shown(token)}; "
            "take both from the same checkpoint"
        )
    return ByteIds.of_vocab(vocab, vocab[token], bool(model.get("fuse_unk", False)))


def _merges_of_json(source: Path, merges: Any, vocab: dict[str, int]) -> MergeTable:
    """The merges of tokenizer.json: a list of "a b" or of ["a", "b"]."""
    if isinstance(merges, list):
        kinds = set(map(type, merges))
        if kinds <= {str}:
            return _merge_table(source, merges, vocab)
        if kinds == {list} and set(map(type, chain.from_iterable(merges))) == {str}:
            return _merge_table(source, list(map(" ".join, merges)), vocab)
    raise CheckpointError(f'{source}: \'merges\' must be a list of "a b" or of ["a", "b"]')


def _merge_table(source: Path, lines: list[str], vocab: dict[str, int]) -> MergeTable:
    """The table of merges that are written "a b", lowest rank first; a first line `#version: ...` is none of them."""
    if lines and lines[0].startswith("#version"):
        lines = lines[1:]
    # GPT-2 has 50,000 merges, and each costs start-up time: check and look up in bulk, and search only on a fault.
    if list(map(str.count, lines, repeat(" "))).count(1) != len(lines):
        number, line = next((n, line) for n, line in enumerate(lines, 1) if line.count(" ") != 1)
        raise CheckpointError(
            f"{source}: merge {number} is {shown(line)}; it must be two tokens with one space between"
        )
    parts = " ".join(lines).split(" ") if lines else []
    lefts, rights = parts[::2], parts[1::2]
    try:
        left_ids, right_ids, merged_ids = (
            list(map(vocab.__getitem__, tokens)) for tokens in (lefts, rights, map(add, lefts, rights))
        )
    except KeyError:
        number, token = next(
            (number, token)
            for number, (left, right) in enumerate(zip(lefts, rights, strict=True), 1)
            for token in (left, right, left + right)
            if token not in vocab
        )
        raise CheckpointError(
            f"{source}: merge {number}, {shown(lines[number - 1])}, needs the token {shown(token)}, which the "
            "vocabulary lacks; take both from the same checkpoint"
        ) from None
    return MergeTable(left_ids, right_ids, merged_ids, max(vocab.values()) + 1)


def _refuse_more_tokens(path: Path, vocab: dict[str, int]) -> None:
    """Raise if `added_tokens.json` adds to the vocabulary: it doesn't say how its tokens are found in text."""
    more = (
        [token for token, token_id in read_object(path).items() if vocab.get(token) != token_id]
        if os.path.lexists(path)
        else []
    )
    if more:
        raise CheckpointError(
            f"{path}: adds {shown(more[0])} to vocab.json; nvg reads added tokens from tokenizer.json only "
            "(transformers' save_pretrained writes one)"
        )


def _tokens_by_id(source: Path, vocab: dict[str, int], added_tokens: list[AddedToken]) -> list[str]:
    """The spelling of each id; ids are 0 .. n - 1, each used once."""
    spelled = dict(vocab)
    for token in added_tokens:
        in_vocab = spelled.pop(token.content, token.token_id)
        if in_vocab != token.token_id:
            raise CheckpointError(
                f"{source}: added token {shown(token.content)} has id {token.token_id}, but {in_vocab} in the "
                "vocabulary"
            )
    ids = sorted([*spelled.values(), *(token.token_id for token in added_tokens)])
    if ids != list(range(len(ids))):
        token_id, uses = Counter(ids).most_common(1)[0]
        if uses > 1:
            raise CheckpointError(f"{source}: {uses} tokens have the id {token_id}; each must have its own")
        hole = next(expected for expected, found in enumerate(ids) if expected != found)
        raise CheckpointError(
            f"{source}: no token has the id {hole}, and one has {ids[-1]}; {len(ids)} tokens must have ids 0 to "
            f"{len(ids) - 1}"
        )
    if not set("".join(spelled)) <= set(CHAR_OF_BYTE.values()):
        alphabet = set(CHAR_OF_BYTE.values())
        foreign = next(token for token in spelled if not set(token) <= alphabet)
        raise CheckpointError(f"{source}: token {shown(foreign)} is not spelled in byte-level characters; {WAY_OUT}")
    tokens = [""] * len(ids)
    for token_text, token_id in spelled.items():
        tokens[token_id] = token_text
    for token in added_tokens:
        try:
            tokens[token.token_id] = spell(token.content.encode())
        except UnicodeEncodeError as error:
            raise CheckpointError(f"{source}: added token {shown(token.content)} is not Unicode") from error
    return tokens


def _eos_token_ids(directory: Path, vocab_size: int, specials: dict[str, int]) -> tuple[int, ...]:
    """The ids that end a text: those of generation_config.json, else of config.json, else `<|endoftext|>`.

    Ids beyond the vocabulary don't count: a config.json that somebody left at its defaults says 50256 for any model.
    """
    for name in ("generation_config.json", "config.json"):
        path = directory / name
        value = read_json(path).get("eos_token_id") if os.path.lexists(path) else None
        listed = value if isinstance(value, list) else [] if value is None else [value]
        for token_id in listed:
            if type(token_id) is not int or token_id < 0:
                raise CheckpointError(
                    f"{path}: eos_token_id is {shown(value)}; it must be an integer >= 0 or a list of them"
                )
        known = tuple(dict.fromkeys(token_id for token_id in listed if token_id < vocab_size))
        if known:
            return known
    return (specials[END_OF_TEXT],) if END_OF_TEXT in specials else ()
