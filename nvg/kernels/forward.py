"""One step of GPT-2, as the job of a thread team: every thread runs `forward` on its share, meeting at barriers."""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np
from numba import carray, types

from nvg.kernels.attention import QUERY_ROWS, SUM_ROWS, attend
from nvg.kernels.formats import GROUP, PANEL
from nvg.kernels.kv import own_tokens, store_kv
from nvg.kernels.layers import activate, add_token_row, copy_row, layer_norm
from nvg.kernels.matmul import ROW_BLOCK, matmul, own_panels, row_block_product
from nvg.kernels.operands import store_operand
from nvg.kernels.simd import address_of, float32_at, int32_at, int64_at
from nvg.kernels.tiles import ADD_BIAS, FROM_C
from nvg.runtime.compile_cache import CompileStep, Job, function_step, njit
from nvg.runtime.team import MEETING_WORDS, barrier

# What a layer's parameters are, in the order of the addresses in `layer_addresses`. Matrices are packed in panels,
# vectors plain.
LAYER_PARAMETERS = (
    "ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight", "attn.c_proj.bias",
    "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias",
)  # fmt: skip

_INTEGERS = (
    # shape of the model
    "n_layer", "n_head", "n_embd", "n_inner", "padded_vocab_size", "activation",
    # shape of the step
    "num_tokens", "num_seqs", "num_rows", "num_ones", "skips_rows", "tables_width", "block_size",
    # bytes between rows of the buffers
    "ld_embd", "ld_qkv", "ld_scores", "ld_sums", "ld_operand", "ld_inner_operand",
    # bytes of a panel, and steps of a tile, over n_embd and over n_inner
    "embd_panel_bytes", "inner_panel_bytes", "embd_steps", "inner_steps",
    # addresses: float32
    "attention_scales", "x", "last_x", "y", "qkv", "scores", "sums", "panel_rows", "norm_rows", "logits",
    # addresses: rows of operands
    "operand", "inner_operand",
    # addresses: weights and keys and values, packed
    "embedding", "wpe", "ln_f_weight", "ln_f_bias", "head", "pool",
    # addresses: int64
    "layer_addresses", "meeting",
    # addresses: int32
    "token_ids", "positions", "query_offsets", "tile_offsets", "block_tables", "sequence_of", "ones", "logits_rows",
)  # fmt: skip
CONTEXT = np.dtype([(name, np.int64) for name in _INTEGERS] + [("epsilon", np.float64)], align=True)
_context_at = address_of(numba.from_dtype(CONTEXT))


@njit(cached=True, nogil=False)
def describe_step(
    context, token_ids, positions, query_offsets, block_tables, logits_rows, sequence_of, tile_offsets, ones
):  # fmt: skip
    """Say in `context` (the address of a CONTEXT record) what a step works on: a batch's arrays (see
    `nvg.model.contract.Batch`), all int32 and contiguous, which must outlive the step.

    sequence_of, of T or more, tile_offsets, of S + 1 or more, and ones, of S or more, are filled in; S <= T. Returns
    the most keys and values that a sequence has.
    """
    c = carray(_context_at(context), 1)[0]
    num_seqs, num_rows = query_offsets.size - 1, logits_rows.size
    c.num_tokens, c.num_seqs, c.num_rows = token_ids.size, num_seqs, num_rows
    c.tables_width = block_tables.shape[1]
    c.token_ids, c.positions = token_ids.ctypes.data, positions.ctypes.data
    c.query_offsets, c.block_tables = query_offsets.ctypes.data, block_tables.ctypes.data
    c.logits_rows = logits_rows.ctypes.data
    c.sequence_of, c.tile_offsets, c.ones = sequence_of.ctypes.data, tile_offsets.ctypes.data, ones.ctypes.data
    tile_offsets[0] = 0
    longest, num_ones = np.int64(0), 0
    for s in range(num_seqs):
        longest = max(longest, np.int64(positions[query_offsets[s + 1] - 1]) + 1)
        num_queries = query_offsets[s + 1] - query_offsets[s]
        tiles = (num_queries + QUERY_ROWS - 1) // QUERY_ROWS if num_queries > 1 else 0
        tile_offsets[s + 1] = tile_offsets[s] + tiles
        sequence_of[query_offsets[s] : query_offsets[s + 1]] = s
        if num_queries == 1:
            ones[num_ones] = query_offsets[s]
            num_ones += 1
    c.num_ones = num_ones
    # Tokens whose logits nobody wants end with their keys and values in the last layer. Those of a sequence's only
    # token are stored beside its attention, which must not be skipped; one by one is no gain for most of the tokens.
    num_wanted_ones, is_ascending = 0, True
    for r in range(num_rows):
        sequence = sequence_of[logits_rows[r]]
        num_wanted_ones += query_offsets[sequence + 1] - query_offsets[sequence] == 1
        is_ascending &= r == 0 or logits_rows[r] > logits_rows[r - 1]
    c.skips_rows = is_ascending and num_wanted_ones == num_ones and 2 * num_rows <= token_ids.size
    return longest


def compile_steps() -> list[CompileStep]:
    """What must be compiled before a step can be described."""
    int32s, table = types.Array(types.int32, 1, "C"), types.Array(types.int32, 2, "C")
    return [function_step(describe_step, (types.int64, int32s, int32s, int32s, table, *[int32s] * 4))]


@cache
def _norm_to_operand(dtype: str) -> Any:
    """The compiled function (x, n_embd, weight, bias, epsilon, scratch, out): layer norm of one row at address x, as an
    operand at address out; scratch is for a row of float32."""
    to_operand = store_operand(dtype)
    is_float32 = dtype == "float32"

    def norm(x, n_embd, weight, bias, epsilon, scratch, out):
        if is_float32:
            layer_norm(x, n_embd, weight, bias, epsilon, out)
        else:
            layer_norm(x, n_embd, weight, bias, epsilon, scratch)
            to_operand(scratch, (n_embd + GROUP - 1) // GROUP, out)

    return njit(norm, name=f"norm_to_operand_{dtype}")


@cache
def _expand(dtype: str) -> Any:
    """The compiled function that computes this thread's columns of activation(a @ c_fc + bias), as operands: a panel of
    32 columns is a group of the next matmul's inner length."""
    multiply = row_block_product(dtype)
    to_operand = store_operand(dtype)

    def expand(
        a, lda, num_rows, weights, k_bytes, steps, bias, kind, scratch, out, ldo, group_bytes, first, end, next_weights
    ):
        for row in range(0, num_rows, ROW_BLOCK):
            rows = min(ROW_BLOCK, num_rows - row)
            for panel in range(first, end):
                at = weights + panel * k_bytes
                multiply(
                    a + row * lda, lda, rows, at, scratch, PANEL * 4, steps, ADD_BIAS, bias + panel * PANEL * 4,
                    at + k_bytes if panel + 1 < end else next_weights,
                )  # fmt: skip
                activate(kind, scratch, rows * PANEL)
                for r in range(rows):
                    to_operand(scratch + r * PANEL * 4, 1, out + (row + r) * ldo + panel * group_bytes)

    return njit(expand, name=f"expand_{dtype}")


def _forward(dtype: str, kv_dtype: str) -> Any:
    product = matmul(dtype)
    expand = _expand(dtype)
    norm_to_operand = _norm_to_operand(dtype)
    to_operand = store_operand(dtype)
    add_token = add_token_row(dtype)
    store = store_kv(kv_dtype)
    attend_all = attend(kv_dtype)
    is_float32 = dtype == "float32"
    operand_group_bytes = {"float32": 4 * GROUP, "bfloat16": 2 * GROUP}.get(dtype, GROUP + 8)

    def forward(context, thread, num_threads):
        """Job: one step as `context` (the address of a CONTEXT record) describes it."""
        c = carray(_context_at(context), 1)[0]
        n_embd, n_inner, num_tokens = c.n_embd, c.n_inner, c.num_tokens
        shape = (c.n_layer, c.n_head, n_embd // c.n_head, c.block_size)
        ldx, ldq, lda, ldh = c.ld_embd, c.ld_qkv, c.ld_operand, c.ld_inner_operand
        addresses = carray(int64_at(c.layer_addresses), c.n_layer * len(LAYER_PARAMETERS))
        scales = carray(float32_at(c.attention_scales), c.n_layer)
        token_ids = carray(int32_at(c.token_ids), num_tokens)
        positions = carray(int32_at(c.positions), num_tokens)
        sequence_of = carray(int32_at(c.sequence_of), num_tokens)
        query_offsets = carray(int32_at(c.query_offsets), c.num_seqs + 1)
        tile_offsets = carray(int32_at(c.tile_offsets), c.num_seqs + 1)
        block_tables = carray(int32_at(c.block_tables), c.num_seqs * c.tables_width)
        ones, rows = carray(int32_at(c.ones), c.num_ones), carray(int32_at(c.logits_rows), c.num_rows)
        meeting = carray(int64_at(c.meeting), MEETING_WORDS)
        # this thread's own
        scores, sums = c.scores + thread * QUERY_ROWS * c.ld_scores, c.sums + thread * SUM_ROWS * c.ld_sums
        panel_rows, norm_row = c.panel_rows + thread * ROW_BLOCK * PANEL * 4, c.norm_rows + thread * ldx
        first, end = num_tokens * thread // num_threads, num_tokens * (thread + 1) // num_threads

        stored = own_tokens(positions, sequence_of, num_tokens, thread, num_threads)
        epsilon = np.float32(c.epsilon)
        embd_groups = (n_embd + GROUP - 1) // GROUP
        qkv_panels = own_panels((3 * n_embd + PANEL - 1) // PANEL, thread, num_threads)
        embd_panels = own_panels((n_embd + PANEL - 1) // PANEL, thread, num_threads)
        inner_panels = own_panels((n_inner + PANEL - 1) // PANEL, thread, num_threads)
        head_panels = own_panels(c.padded_vocab_size // PANEL, thread, num_threads)
        units = np.int64(tile_offsets[c.num_seqs]) * c.n_head + num_threads
        first_row, end_row = c.num_rows * thread // num_threads, c.num_rows * (thread + 1) // num_threads
        x, selected = c.x, False

        for t in range(first, end):
            copy_row(c.wpe + np.int64(positions[t]) * n_embd * 4, n_embd, x + t * ldx)
            add_token(np.int64(token_ids[t]), c.embedding, c.embd_panel_bytes, n_embd, x + t * ldx)
        for layer in range(c.n_layer):
            at = addresses[layer * len(LAYER_PARAMETERS) : (layer + 1) * len(LAYER_PARAMETERS)]
            if layer + 1 < c.n_layer:
                after_layer = addresses[(layer + 1) * len(LAYER_PARAMETERS) + 2] + qkv_panels[0] * c.embd_panel_bytes
            else:
                after_layer = c.head + head_panels[0] * c.embd_panel_bytes
            for t in range(first, end):
                norm_to_operand(x + t * ldx, n_embd, at[0], at[1], epsilon, norm_row, c.operand + t * lda)
            if barrier(meeting, num_threads):
                return
            product(
                c.operand, lda, num_tokens, at[2], c.embd_panel_bytes, c.embd_steps, c.qkv, ldq,
                qkv_panels[0], qkv_panels[1], ADD_BIAS, at[3], at[4] + embd_panels[0] * c.embd_panel_bytes,
            )  # fmt: skip
            if barrier(meeting, num_threads):
                return
            if num_tokens > c.num_seqs:
                store(
                    c.qkv, ldq, positions, query_offsets, sequence_of, block_tables, c.tables_width, stored[0],
                    stored[1], shape, layer, c.pool,
                )  # fmt: skip
                if barrier(meeting, num_threads):
                    return
            if c.skips_rows and layer + 1 == c.n_layer:  # the others have done all that anybody needs of them
                for r in range(first_row, end_row):
                    copy_row(x + np.int64(rows[r]) * ldx, n_embd, c.last_x + r * ldx)
                x, selected, ones, num_tokens, first, end = c.last_x, True, rows, c.num_rows, first_row, end_row
            attended, ld_attended = (c.operand, lda) if is_float32 else (c.y, ldx)
            attend_all(
                c.qkv, ldq, positions, query_offsets, sequence_of, tile_offsets, c.num_seqs, ones, selected,
                block_tables, c.tables_width, scales[layer], shape, layer, c.pool, scores, c.ld_scores, sums,
                c.ld_sums, attended, ld_attended, meeting, layer * units, thread, num_threads,
            )  # fmt: skip
            if barrier(meeting, num_threads):
                return
            if not is_float32:
                for t in range(first, end):
                    to_operand(c.y + t * ldx, embd_groups, c.operand + t * lda)
                if barrier(meeting, num_threads):
                    return
            product(
                c.operand, lda, num_tokens, at[4], c.embd_panel_bytes, c.embd_steps, x, ldx,
                embd_panels[0], embd_panels[1], FROM_C | ADD_BIAS, at[5],
                at[8] + inner_panels[0] * c.embd_panel_bytes,
            )  # fmt: skip
            if barrier(meeting, num_threads):
                return
            for t in range(first, end):
                norm_to_operand(x + t * ldx, n_embd, at[6], at[7], epsilon, norm_row, c.operand + t * lda)
            if barrier(meeting, num_threads):
                return
            expand(
                c.operand, lda, num_tokens, at[8], c.embd_panel_bytes, c.embd_steps, at[9], c.activation, panel_rows,
                c.inner_operand, ldh, operand_group_bytes, inner_panels[0], inner_panels[1],
                at[10] + embd_panels[0] * c.inner_panel_bytes,
            )  # fmt: skip
            if barrier(meeting, num_threads):
                return
            product(
                c.inner_operand, ldh, num_tokens, at[10], c.inner_panel_bytes, c.inner_steps, x, ldx,
                embd_panels[0], embd_panels[1], FROM_C | ADD_BIAS, at[11], after_layer,
            )  # fmt: skip
            if barrier(meeting, num_threads):
                return
        if c.num_rows > 0:
            for r in range(first_row, end_row):
                row_at = x + (r if selected else np.int64(rows[r])) * ldx
                norm_to_operand(row_at, n_embd, c.ln_f_weight, c.ln_f_bias, epsilon, norm_row, c.operand + r * lda)
            if barrier(meeting, num_threads):
                return
            product(
                c.operand, lda, c.num_rows, c.head, c.embd_panel_bytes, c.embd_steps, c.logits,
                c.padded_vocab_size * 4, head_panels[0], head_panels[1], 0, 0, 0,
            )  # fmt: skip

    return forward


@cache
def forward(dtype: str, kv_dtype: str) -> Job:
    """The job of a step with weights of `dtype` and keys and values of `kv_dtype`."""
    return Job(_forward(dtype, kv_dtype), f"forward_{dtype}_{kv_dtype}")
