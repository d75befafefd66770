"""One step of GPT-2, as the job of a thread team: every thread runs `forward` on its share, meeting at barriers."""

from __future__ import annotations

import numba
import numpy as np
from numba import carray, types
from numba.extending import intrinsic

from nvg.kernels.attention import QUERY_ROWS, attend, round32, store_kv
from nvg.kernels.layers import activate, add_bias, add_to_residual, embed, layer_norm
from nvg.kernels.matmul import matmul, own_panels
from nvg.kernels.microkernels import PANEL
from nvg.kernels.simd import float32_at, int32_at, int64_at
from nvg.runtime.compile_cache import Job, njit
from nvg.runtime.team import MEETING_WORDS, barrier

# What a layer's parameters are, in the order of the offsets in `layer_offsets` (elements of `weights`). Matrices are
# packed in panels, vectors plain.
LAYER_PARAMETERS = (
    "ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight", "attn.c_proj.bias",
    "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias",
)  # fmt: skip

_INTEGERS = (
    # shape of the model
    "n_layer", "n_head", "n_embd", "n_inner", "padded_vocab_size", "activation",
    # shape of the step
    "num_tokens", "num_seqs", "num_rows", "tables_width", "block_size",
    # widths of rows of the buffers
    "ld_embd", "ld_qkv", "ld_inner", "ld_scores",
    # addresses: float32
    "weights", "weights_size", "attention_scales", "pool", "pool_size", "x", "y", "qkv", "h", "projected",
    "scores", "sums", "logits",
    # addresses: int64
    "layer_offsets", "meeting",
    # addresses: int32
    "token_ids", "positions", "query_offsets", "tile_offsets", "block_tables", "sequence_of", "logits_rows",
    # offsets in weights, in elements
    "embedding", "wpe", "ln_f_weight", "ln_f_bias", "head",
)  # fmt: skip
CONTEXT = np.dtype([(name, np.int64) for name in _INTEGERS] + [("epsilon", np.float64)], align=True)
_CONTEXT_TYPE = numba.from_dtype(CONTEXT)


@intrinsic
def _context_at(typingctx, address):
    def codegen(context, builder, sig, args):
        return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

    return types.CPointer(_CONTEXT_TYPE)(types.int64), codegen


@njit
def _own_scratch(c, thread, head_size):
    """This thread's rows of attention scores and of weighted sums."""
    from_score, from_sum = QUERY_ROWS * c.ld_scores, QUERY_ROWS * round32(head_size)
    scores = carray(float32_at(c.scores + 4 * thread * from_score), from_score)
    sums = carray(float32_at(c.sums + 4 * thread * from_sum), from_sum)
    return scores, sums


def _forward(context, thread, num_threads):
    """Job: one step as `context` (the address of a CONTEXT record) describes it."""
    c = carray(_context_at(context), 1)[0]
    n_embd, n_inner, num_tokens = c.n_embd, c.n_inner, c.num_tokens
    shape = (c.n_layer, c.n_head, n_embd // c.n_head, c.block_size)
    ldx, ldq, ldh = c.ld_embd, c.ld_qkv, c.ld_inner
    weights = carray(float32_at(c.weights), c.weights_size)
    offsets = carray(int64_at(c.layer_offsets), c.n_layer * len(LAYER_PARAMETERS))
    scales = carray(float32_at(c.attention_scales), c.n_layer)
    pool = carray(float32_at(c.pool), c.pool_size)
    x = carray(float32_at(c.x), num_tokens * ldx)
    y = carray(float32_at(c.y), max(num_tokens, c.num_rows) * ldx)
    qkv = carray(float32_at(c.qkv), num_tokens * ldq)
    h = carray(float32_at(c.h), num_tokens * ldh)
    projected = carray(float32_at(c.projected), num_tokens * ldx)
    token_ids = carray(int32_at(c.token_ids), num_tokens)
    positions = carray(int32_at(c.positions), num_tokens)
    sequence_of = carray(int32_at(c.sequence_of), num_tokens)
    query_offsets = carray(int32_at(c.query_offsets), c.num_seqs + 1)
    tile_offsets = carray(int32_at(c.tile_offsets), c.num_seqs + 1)
    block_tables = carray(int32_at(c.block_tables), c.num_seqs * c.tables_width)
    meeting = carray(int64_at(c.meeting), MEETING_WORDS)
    score_rows, sum_rows = _own_scratch(c, thread, shape[2])

    epsilon = np.float32(c.epsilon)
    first, end = num_tokens * thread // num_threads, num_tokens * (thread + 1) // num_threads
    qkv_panels = own_panels(ldq // PANEL, thread, num_threads)
    embd_panels = own_panels(ldx // PANEL, thread, num_threads)
    inner_panels = own_panels(ldh // PANEL, thread, num_threads)
    embd_columns = embd_panels[0] * PANEL, min(n_embd, embd_panels[1] * PANEL)
    units = np.int64(tile_offsets[c.num_seqs]) * c.n_head + num_threads

    embed(token_ids, positions, first, end, weights[c.embedding :], weights[c.wpe :], n_embd, x, ldx)
    for layer in range(c.n_layer):
        at = layer * len(LAYER_PARAMETERS)
        for t in range(first, end):
            layer_norm(x, t * ldx, n_embd, weights[offsets[at] :], weights[offsets[at + 1] :], epsilon, y, t * ldx)
        if barrier(meeting, num_threads):
            return
        matmul(y, ldx, num_tokens, weights[offsets[at + 2] :], n_embd, qkv, ldq, qkv_panels[0], qkv_panels[1])
        add_bias(
            qkv, ldq, num_tokens, weights[offsets[at + 3] :],
            qkv_panels[0] * PANEL, min(3 * n_embd, qkv_panels[1] * PANEL),
        )  # fmt: skip
        if barrier(meeting, num_threads):
            return
        store_kv(qkv, ldq, positions, sequence_of, block_tables, c.tables_width, first, end, shape, layer, pool)
        if barrier(meeting, num_threads):
            return
        attend(
            qkv, ldq, positions, query_offsets, tile_offsets, c.num_seqs, block_tables, c.tables_width,
            scales[layer], shape, layer, pool, score_rows, c.ld_scores, sum_rows, y, ldx, meeting, layer * units,
        )  # fmt: skip
        if barrier(meeting, num_threads):
            return
        matmul(y, ldx, num_tokens, weights[offsets[at + 4] :], n_embd, projected, ldx, embd_panels[0], embd_panels[1])
        add_to_residual(
            x, ldx, projected, ldx, num_tokens, weights[offsets[at + 5] :], embd_columns[0], embd_columns[1]
        )
        if barrier(meeting, num_threads):
            return
        for t in range(first, end):
            layer_norm(x, t * ldx, n_embd, weights[offsets[at + 6] :], weights[offsets[at + 7] :], epsilon, y, t * ldx)
        if barrier(meeting, num_threads):
            return
        matmul(y, ldx, num_tokens, weights[offsets[at + 8] :], n_embd, h, ldh, inner_panels[0], inner_panels[1])
        inner_columns = inner_panels[0] * PANEL, min(n_inner, inner_panels[1] * PANEL)
        add_bias(h, ldh, num_tokens, weights[offsets[at + 9] :], inner_columns[0], inner_columns[1])
        activate(c.activation, h, ldh, num_tokens, inner_columns[0], inner_columns[1])
        if barrier(meeting, num_threads):
            return
        matmul(h, ldh, num_tokens, weights[offsets[at + 10] :], n_inner, projected, ldx, embd_panels[0], embd_panels[1])
        add_to_residual(
            x, ldx, projected, ldx, num_tokens, weights[offsets[at + 11] :], embd_columns[0], embd_columns[1]
        )
        if barrier(meeting, num_threads):
            return
    if c.num_rows > 0:
        rows = carray(int32_at(c.logits_rows), c.num_rows)
        logits = carray(float32_at(c.logits), c.num_rows * c.padded_vocab_size)
        for r in range(c.num_rows * thread // num_threads, c.num_rows * (thread + 1) // num_threads):
            token = np.int64(rows[r])
            layer_norm(x, token * ldx, n_embd, weights[c.ln_f_weight :], weights[c.ln_f_bias :], epsilon, y, r * ldx)
        if barrier(meeting, num_threads):
            return
        head_panels = own_panels(c.padded_vocab_size // PANEL, thread, num_threads)
        matmul(
            y, ldx, c.num_rows, weights[c.head :], n_embd,
            logits, c.padded_vocab_size, head_panels[0], head_panels[1],
        )  # fmt: skip


forward = Job(_forward)
