"""The draw that ends every chain: inverse CDF over ascending token ids."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from nvg.sampling.contract import Logits, TokenIds


def draw(
    logits: Logits, token_ids: TokenIds, uniform: float, scratch: npt.NDArray[np.float64] | None = None
) -> tuple[int, float]:
    """Draw a token from softmax(logits): the first whose cumulative probability exceeds `uniform`.

    logits: float32 (n,), at least one finite, -inf for a token that can't be drawn, no NaN or +inf. token_ids: int32
    (n,), ascending. uniform: in [0, 1), a multiple of 2**-53. scratch: float64, at least (n,), overwritten; None
    allocates one.

    Returns (token_id, log-probability in nats). Weights are summed in float64 from the first token to the last, so
    that the same row and number give the same token on any number of threads.
    """
    n = logits.size
    if n == 1:
        return int(token_ids[0]), 0.0
    weights = np.empty(n) if scratch is None else scratch[:n]
    top = float(logits.max())
    np.subtract(logits, top, out=weights, dtype=np.float64)
    np.exp(weights, out=weights)
    np.cumsum(weights, out=weights)
    total = float(weights[-1])
    # At most 1 - 2**-53 times the total is below the total in floating point too, so there always is such a token.
    index = int(np.searchsorted(weights, uniform * total, side="right"))
    return int(token_ids[index]), float(logits[index]) - top - math.log(total)
