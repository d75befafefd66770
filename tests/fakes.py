"""A model runner of one's own, as a third party would write it: logits from a table, checked use of the KV blocks."""

import threading
import zlib
from dataclasses import fields

import numpy as np

from nvg.errors import AbortedError
from nvg.model.contract import Batch

SMALL_BLOCK = 4


def with_small_blocks(config):
    """Blocks that no kernel has, so that few tokens have many."""
    object.__setattr__(config, "block_size", SMALL_BLOCK)
    return config


class TableRunner:
    """Logits of a token are `table[token]`: a Markov chain. Remembers which token each KV slot holds, and asserts at
    each step that the history of every sequence is where its block table says."""

    def __init__(self, table, max_model_len=64, max_batched_tokens=16, max_logits_rows=8):
        self.table = np.asarray(table, np.float32)
        self.vocab_size = self.table.shape[1]
        self.max_model_len = max_model_len
        self.max_batched_tokens = max_batched_tokens
        self.max_logits_rows = max_logits_rows
        self.batches = []
        self.closed = False
        self.hold = threading.Event()
        self.hold.set()
        self.runs = threading.Event()
        """Set when the first step has begun."""
        self._aborted = False

    def bytes_per_block(self, block_size):
        return block_size * 4

    def allocate_kv(self, num_blocks, block_size):
        self.slots = np.full((num_blocks, block_size), -1, np.int32)

    def copy_blocks(self, src, dst):
        self.slots[dst] = self.slots[src]

    def execute(self, batch):
        self._aborted = False
        self.runs.set()
        while not self.hold.wait(0.01):
            if self._aborted:
                raise AbortedError("the step was aborted")
        block_size = self.slots.shape[1]
        assert all(getattr(batch, name).dtype == np.int32 for name in batch.__dataclass_fields__)
        assert len(batch.token_ids) <= self.max_batched_tokens
        assert len(batch.logits_rows) <= self.max_logits_rows
        read, written = [], []
        for s, context_len in enumerate(batch.context_lens):
            span = slice(batch.query_offsets[s], batch.query_offsets[s + 1])
            positions = batch.positions[span]
            assert positions.tolist() == list(range(context_len - len(positions), context_len))
            blocks = batch.block_tables[s, : -(-context_len // block_size)]
            assert (self.slots[blocks].reshape(-1)[: positions[0]] >= 0).all(), "a hole in the sequence's history"
            self.slots[blocks[positions // block_size], positions % block_size] = batch.token_ids[span]
            read.append(set(blocks.tolist()))
            written.append(set(blocks[positions // block_size].tolist()))
        for s, blocks in enumerate(written):
            assert not any(blocks & others for t, others in enumerate(read) if t != s), "one writes what another reads"
        self.batches.append(Batch(**{field.name: getattr(batch, field.name).copy() for field in fields(batch)}))
        return self.logits(batch)

    def logits(self, batch):
        """(R, V) of a step whose tokens are in their slots."""
        return self.table[batch.token_ids[batch.logits_rows]].copy()

    def abort(self):
        self._aborted = True

    def close(self):
        self.closed = True


class LetterTokenizer:
    """Letters a, b, c, ... are tokens 1, 2, 3, ...; 0 is end-of-text."""

    def __init__(self, vocab_size):
        self.vocab_size = vocab_size
        self.eos_token_ids = (0,)
        self.special_tokens = {"<eos>": 0}
        self.fingerprint = f"letters-{vocab_size}"

    def encode(self, text, *, allow_special=False):
        return [ord(letter) - 96 for letter in text]

    def encode_batch(self, texts, *, allow_special=False):
        return [self.encode(text) for text in texts]

    def token_bytes(self, token_id):
        return bytes([96 + token_id]) if token_id else b"<eos>"

    def decode_bytes(self, token_ids):
        return b"".join(map(self.token_bytes, token_ids))

    def decode(self, token_ids):
        return self.decode_bytes(token_ids).decode()


def cycle(vocab_size, scale=50.0):
    """A table whose greedy continuation of token t is t + 1, and of the last one 1; end-of-text never comes."""
    table = np.zeros((vocab_size, vocab_size), np.float32)
    for token in range(vocab_size):
        table[token, token % (vocab_size - 1) + 1] = scale
    table[:, 0] = -scale
    return table


class HistoryRunner(TableRunner):
    """Logits depend on every token before, as it stands in the slots that the block table names: whoever reads a wrong
    block gets other logits."""

    def __init__(self, vocab_size, **options):
        super().__init__(np.zeros((vocab_size, vocab_size)), **options)

    def logits(self, batch):
        rows = []
        for t in batch.logits_rows:
            s = int(np.searchsorted(batch.query_offsets, t, side="right")) - 1
            history = self.slots[batch.block_tables[s]].reshape(-1)[: batch.positions[t] + 1]
            seed = zlib.crc32(history.tobytes())
            rows.append(np.random.Generator(np.random.PCG64(seed)).standard_normal(self.vocab_size, np.float32) * 2)
        return np.array(rows, np.float32).reshape(-1, self.vocab_size)
