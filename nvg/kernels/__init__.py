"""Compiled kernels: arrays in, arrays out, nothing allocated, nothing raised.

Dimension letters, here and in nvg/model:

    T  tokens of a step (all sequences)      C  n_embd, width of the residual stream
    S  sequences of a step                   H  n_head                 D  head size, C / H
    R  rows whose logits are wanted          F  n_inner, width of the MLP
    V  vocabulary                            L  n_layer                P  positions
    M  rows of a matmul                      K  its inner length       N  its columns

`round32(N)` columns are stored for N: matrices are packed in panels of 32 columns (`nvg.kernels.formats`). Kernels that
tiles are part of take addresses (int64) and distances in bytes.
"""
