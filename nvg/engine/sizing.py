"""How many KV blocks there are."""

from __future__ import annotations

from nvg.errors import EngineError, ParameterError
from nvg.params import MIN_BLOCK_SIZE, EngineConfig
from nvg.runtime.cores import available_memory

_SHARE_OF_FREE_MEMORY = 2


def num_kv_blocks(config: EngineConfig, bytes_per_block: int, max_model_len: int) -> int:
    """As many blocks as max_num_seqs whole contexts need, or as kv_memory, or half of the free memory, hold.

    Raises ParameterError where kv_memory holds none, EngineError where the free memory does not.
    """
    wanted = -(-max_model_len // config.block_size) * config.max_num_seqs
    memory = config.kv_memory
    if memory is None:
        memory = available_memory() // _SHARE_OF_FREE_MEMORY or wanted * bytes_per_block
    allowed = memory // bytes_per_block
    if allowed < 1 and config.kv_memory is not None:
        raise ParameterError(
            f"kv_memory is {config.kv_memory}; it must be at least a block's bytes, {bytes_per_block}: "
            f"raise it{_or_smaller(config.block_size)}"
        )
    if allowed < 1:
        raise EngineError(
            f"half of the free memory holds no KV block of {bytes_per_block} bytes: free some"
            f"{_or_smaller(config.block_size)}"
        )
    return min(wanted, allowed)


def _or_smaller(block_size: int) -> str:
    return f", or lower block_size, {block_size}" if block_size > MIN_BLOCK_SIZE else ""
