"""How many KV blocks there are."""

from __future__ import annotations

from nvg.errors import EngineError
from nvg.params import EngineConfig
from nvg.runtime.cores import available_memory

_SHARE_OF_FREE_MEMORY = 2


def num_kv_blocks(config: EngineConfig, bytes_per_block: int, max_model_len: int) -> int:
    """As many blocks as max_num_seqs whole contexts need, or as kv_memory, or half of the free memory, hold.

    Raises EngineError where that is none.
    """
    wanted = -(-max_model_len // config.block_size) * config.max_num_seqs
    memory = config.kv_memory
    if memory is None:
        memory = available_memory() // _SHARE_OF_FREE_MEMORY or wanted * bytes_per_block
    allowed = memory // bytes_per_block
    if allowed < 1:
        raise EngineError(f"{memory} bytes of KV memory hold no block of {bytes_per_block} bytes: raise kv_memory")
    return min(wanted, allowed)
