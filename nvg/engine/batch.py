"""A step's shares as the flat arrays that the model runner takes."""

from __future__ import annotations

from collections.abc import Sequence as Listed

import numpy as np

from nvg.engine.scheduler import Share
from nvg.model.contract import Batch


class BatchBuilder:
    """Builds one batch after the other in the same memory."""

    def __init__(self, max_num_seqs: int, max_tokens: int, max_rows: int, table_width: int, max_model_len: int) -> None:
        self._token_ids = np.zeros(max_tokens, np.int32)
        self._positions = np.zeros(max_tokens, np.int32)
        self._query_offsets = np.zeros(max_num_seqs + 1, np.int32)
        self._block_tables = np.zeros((max_num_seqs, table_width), np.int32)
        self._context_lens = np.zeros(max_num_seqs, np.int32)
        self._logits_rows = np.zeros(max_rows, np.int32)
        self._numbers = np.arange(max(max_model_len, max_tokens), dtype=np.int32)

    def build(self, shares: Listed[Share]) -> Batch:
        """The batch of these shares, valid until the next is built."""
        num_tokens = num_rows = 0
        for s, share in enumerate(shares):
            sequence, kv = share.sequence, share.sequence.kv
            assert kv.block_table is not None
            first, end = kv.num_tokens, kv.num_tokens + share.num_tokens
            begin, num_tokens = num_tokens, num_tokens + share.num_tokens
            self._token_ids[begin:num_tokens] = sequence.window[first:end]
            self._positions[begin:num_tokens] = self._numbers[first:end]
            self._query_offsets[s + 1] = num_tokens
            self._block_tables[s] = kv.block_table
            self._context_lens[s] = end
            if share.num_rows:
                rows = self._numbers[num_tokens - share.num_rows : num_tokens]
                self._logits_rows[num_rows : num_rows + share.num_rows] = rows
                num_rows += share.num_rows
        return Batch(
            token_ids=self._token_ids[:num_tokens],
            positions=self._positions[:num_tokens],
            query_offsets=self._query_offsets[: len(shares) + 1],
            block_tables=self._block_tables[: len(shares)],
            context_lens=self._context_lens[: len(shares)],
            logits_rows=self._logits_rows[:num_rows],
        )
