"""The draw that ends every chain: inverse CDF over ascending token ids."""

from __future__ import annotations

from nvg.sampling import select
from nvg.sampling.contract import Logits, TokenIds


def draw(logits: Logits, token_ids: TokenIds, uniform: float) -> tuple[int, float]:
    """Draw a token from softmax(logits): the first whose cumulative probability exceeds `uniform`.

    logits: float32 (n,), at least one finite, -inf for a token that can't be drawn, no NaN or +inf. token_ids: int32
    (n,), ascending. uniform: in [0, 1), a multiple of 2**-53.

    Returns (token_id, log-probability in nats). Weights are summed in float64 in an order that depends on n alone, so
    that the same row and number give the same token on any number of threads.
    """
    if logits.size == 1:
        return int(token_ids[0]), 0.0
    index, logprob = select.pick(logits, uniform)
    return int(token_ids[index]), logprob
