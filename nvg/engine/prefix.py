"""The prefix cache: which block holds the keys and values of which tokens, after which others."""

from __future__ import annotations

ROOT = 0
"""The node where every sequence begins."""


class PrefixCache:
    """A tree of full blocks. A node stands for all tokens from a sequence's begin to the end of its block.

    A block's key is the node before it and its own tokens: found by their hash, and compared, so that a hit is exact.
    Nodes are numbered and no number is used twice, so what followed a node that was forgotten can't be found any more.
    """

    def __init__(self) -> None:
        self._blocks: dict[tuple[int, bytes], int] = {}
        self._nodes: dict[int, tuple[int, tuple[int, bytes]]] = {}  # block -> its node and its key
        self._last_node = ROOT

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, block: int) -> bool:
        return block in self._nodes

    def find(self, node: int, tokens: bytes) -> int | None:
        """The block with these tokens (the bytes of an int32 array) after `node`."""
        return self._blocks.get((node, tokens))

    def node_of(self, block: int) -> int:
        """The node of a block that is known."""
        return self._nodes[block][0]

    def add(self, node: int, tokens: bytes, block: int) -> int:
        """Remember a full block; returns the one that has these contents, which is another if that came first."""
        key = node, tokens
        known = self._blocks.setdefault(key, block)
        if known == block:
            assert block not in self._nodes
            self._last_node += 1
            self._nodes[block] = self._last_node, key
        return known

    def forget(self, block: int) -> None:
        """The block is about to be overwritten."""
        _, key = self._nodes.pop(block)
        del self._blocks[key]
