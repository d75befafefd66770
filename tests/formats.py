"""What packed weights and operands mean, decoded in plain NumPy from the layouts' description."""

import numpy as np

LEVELS = np.array([-125, -99, -79, -62, -47, -34, -21, -9, 3, 15, 27, 40, 55, 71, 89, 112], np.float64)


def widen(halves):
    """bfloat16 in uint16 -> float64."""
    return (halves.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def decode_weights(dtype, packed, k, n):
    """(K, N) float64 of a packed matrix (uint8)."""
    k32, panels = -(-k // 32) * 32, -(-n // 32)
    packed = packed.reshape(panels, -1)
    if dtype == "float32":
        values = packed.view(np.float32).astype(np.float64).reshape(panels, k32, 32)
    elif dtype == "bfloat16":
        values = widen(packed.view(np.uint16)).reshape(panels, k32 // 2, 32, 2).swapaxes(2, 3).reshape(panels, k32, 32)
    else:
        groups = packed.reshape(panels, k32 // 32, -1)
        scales = widen(np.ascontiguousarray(groups[:, :, -64:]).view(np.uint16))  # (panels, groups, 32)
        codes = groups[:, :, :-64]
        if dtype == "int8":
            levels = codes.astype(np.float64) - 128
        else:
            nibbles = codes.reshape(panels, k32 // 32, 4, 1, 128)
            levels = LEVELS[np.concatenate([nibbles & 15, nibbles >> 4], axis=3)]
        levels = levels.reshape(panels, k32 // 32, 8, 32, 4).swapaxes(3, 4).reshape(panels, k32 // 32, 32, 32)
        values = (levels * scales[:, :, None, :]).reshape(panels, k32, 32)
    return values.swapaxes(0, 1).reshape(k32, panels * 32)[:k, :n]


def decode_operands(dtype, rows, k):
    """(M, K) float64 of operand rows (uint8), each beginning with its first group."""
    if dtype == "float32":
        return rows.view(np.float32)[:, :k].astype(np.float64)
    if dtype == "bfloat16":
        return widen(rows.view(np.uint16))[:, :k]
    groups = rows[:, : -(-k // 32) * 40].reshape(len(rows), -1, 40)
    codes = np.ascontiguousarray(groups[:, :, :32]).view(np.int8).astype(np.float64)
    scales = np.ascontiguousarray(groups[:, :, 32:36]).view(np.float32).astype(np.float64)
    return (codes * scales).reshape(len(rows), -1)[:, :k]


def round_weights(dtype, weights):
    """Values as `dtype`, float32 or bfloat16, keeps them, float64."""
    if dtype == "float32":
        return weights
    if dtype == "bfloat16":
        bits = weights.astype(np.float32).view(np.uint32).astype(np.uint64)
        return widen(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16))
    raise ValueError(dtype)
