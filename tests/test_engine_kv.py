"""Blocks, the prefix cache, and how sequences use both: nothing leaks, and nobody writes to what others read."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvg.engine.blocks import BlockPool
from nvg.engine.kv import KVCache, KVEntries
from nvg.engine.prefix import ROOT, PrefixCache

SIZE = 4


class Tokens:
    """A sequence, as far as KVCache knows one."""

    def __init__(self, token_ids):
        self.window = np.array(token_ids, np.int32)
        self.kv = KVEntries()


class Memory:
    """A KV cache over slots that hold tokens."""

    def __init__(self, num_blocks, table_width=16):
        self.slots = np.full((num_blocks, SIZE), -1, np.int32)
        self.cache = KVCache(num_blocks, SIZE, table_width, self._copy)
        self.pool = self.cache.pool

    def _copy(self, source, target):
        self.slots[target] = self.slots[source]

    def feed(self, sequence, num_tokens):
        """A step: the next tokens are written to their slots. Returns whether there was room."""
        kv = sequence.kv
        if self.cache.reserve(kv, num_tokens) < num_tokens:
            return False
        for position in range(kv.num_tokens, kv.num_tokens + num_tokens):
            block = kv.blocks[position // SIZE]
            assert self.pool.num_users(block) == 1, "written by one of several users"
            self.slots[block, position % SIZE] = sequence.window[position]
        self.cache.advance(sequence, num_tokens)
        return True

    def fill(self, token_ids):
        """A new sequence with all of its tokens in the cache; (sequence, how many tokens were there before)."""
        sequence = Tokens(token_ids)
        saved = self.cache.reuse(sequence)
        assert self.feed(sequence, len(token_ids) - saved)
        return sequence, saved

    def check(self, sequence):
        """What the sequence's slots hold are its tokens."""
        kv = sequence.kv
        held = self.slots[kv.blocks].reshape(-1)[: kv.num_tokens]
        assert held.tolist() == sequence.window[: kv.num_tokens].tolist()


def test_the_pool_gives_all_or_nothing():
    pool = BlockPool(3, 32)
    assert (pool.blocks_for(1), pool.blocks_for(32), pool.blocks_for(33)) == (1, 1, 2)
    blocks = pool.allocate(2)
    assert sorted(blocks) == [0, 1]
    assert pool.allocate(2) is None
    assert pool.num_free == 1
    pool.release(blocks)
    assert sorted(pool.allocate(3)) == [0, 1, 2]


def test_a_block_is_free_when_its_last_user_has_gone():
    pool = BlockPool(1, 32)
    [block] = pool.allocate(1)
    pool.share(block)
    pool.release([block])
    assert (pool.num_free, pool.num_users(block)) == (0, 1)
    pool.release([block])
    assert pool.num_free == 1


def test_a_prefix_is_found_by_all_that_came_before():
    prefixes = PrefixCache()
    one, two = (np.arange(4, dtype=np.int32) + i for i in (0, 4))
    assert prefixes.add(ROOT, one.tobytes(), 7) == 7
    node = prefixes.node_of(7)
    assert prefixes.find(ROOT, one.tobytes()) == 7
    assert prefixes.find(node, one.tobytes()) is None
    assert prefixes.find(ROOT, two.tobytes()) is None
    assert prefixes.add(node, two.tobytes(), 3) == 3
    assert prefixes.find(node, two.tobytes()) == 3
    assert prefixes.add(node, two.tobytes(), 5) == 3, "the first one is kept"
    assert 5 not in prefixes
    prefixes.forget(7)
    assert prefixes.find(ROOT, one.tobytes()) is None
    assert prefixes.add(ROOT, one.tobytes(), 7) == 7
    assert prefixes.find(prefixes.node_of(7), two.tobytes()) is None, "what followed the old one does not follow this"


def test_what_a_sequence_leaves_is_reused_up_to_its_last_full_block():
    memory = Memory(8)
    first, saved = memory.fill(range(10))
    assert saved == 0
    memory.cache.release(first.kv)
    assert memory.pool.num_free == 8
    assert memory.cache.reuse(first) == 8, "it may begin again"
    memory.cache.release(first.kv)
    again, saved = memory.fill(range(12))
    assert saved == 8
    memory.check(again)
    other, saved = memory.fill([*range(6), 9, 9, 9])
    assert saved == 4
    memory.check(other)
    memory.check(again)


def test_the_last_token_is_always_computed():
    memory = Memory(8)
    memory.fill(range(8))
    assert memory.fill(range(8))[1] == 4
    assert memory.fill(range(9))[1] == 8


def test_the_least_recently_used_goes_first_and_ends_before_begins():
    memory = Memory(4)
    old, _ = memory.fill(range(8))
    memory.cache.release(old.kv)
    new, _ = memory.fill(range(100, 108))
    memory.cache.release(new.kv)
    used, saved = memory.fill([*range(4), 55])  # has the old one's first block, and takes its second
    assert saved == 4
    memory.check(used)
    memory.cache.release(used.kv)
    assert memory.fill(range(100, 109))[1] == 8
    memory = Memory(4)
    old, _ = memory.fill(range(16))
    memory.cache.release(old.kv)
    memory.fill([9, 9, 9, 9])  # takes one block
    assert memory.cache.reuse(Tokens(range(17))) == 12


def test_what_two_have_computed_at_once_is_kept_once():
    memory = Memory(8)
    one, two = Tokens(range(9)), Tokens(range(9))
    for sequence in (one, two):
        assert memory.cache.reuse(sequence) == 0
        memory.feed(sequence, 3)
    assert memory.pool.num_free == 6
    for sequence in (one, two):
        memory.feed(sequence, 6)
        memory.check(sequence)
    assert one.kv.blocks[:2] == two.kv.blocks[:2]
    assert memory.pool.num_free == 8 - 2 - 2


def test_what_was_computed_meanwhile_is_taken_at_the_next_piece():
    memory = Memory(8)
    late, early = Tokens(range(14)), Tokens(range(14))
    memory.feed(late, 2)
    memory.feed(early, 14)
    assert memory.cache.reuse(late) == 10
    assert late.kv.blocks[:3] == early.kv.blocks[:3]
    assert memory.pool.num_free == 8 - 4
    memory.check(late)


def test_forked_sequences_copy_what_they_write_to():
    memory = Memory(8)
    first, _ = memory.fill(range(6))
    others = [Tokens(range(6)) for _ in range(2)]
    for other in others:
        memory.cache.fork(first.kv, other.kv)
    assert memory.pool.num_free == 6
    for number, sequence in enumerate([first, *others]):
        sequence.window = np.append(sequence.window, np.arange(4) + 10 * number).astype(np.int32)
        assert memory.feed(sequence, 4)
    for sequence in (first, *others):
        memory.check(sequence)
        memory.cache.release(sequence.kv)
    assert memory.pool.num_free == 8


def test_a_copy_needs_room():
    memory = Memory(1)
    first, _ = memory.fill(range(3))
    other = Tokens(range(3))
    memory.cache.fork(first.kv, other.kv)
    assert memory.cache.reserve(other.kv, 1) == 0
    memory.cache.release(first.kv)
    assert memory.cache.reserve(other.kv, 1) == 1


def test_as_much_room_as_there_is():
    memory = Memory(2)
    sequence = Tokens(range(20))
    assert memory.cache.reserve(sequence.kv, 20) == 8
    assert memory.cache.reserve(sequence.kv, 20) == 8
    assert memory.cache.reserve(sequence.kv, 5) == 5


@settings(max_examples=200)
@given(st.data(), st.integers(1, 12))
def test_any_use_of_it_keeps_contents_and_leaks_nothing(data, num_blocks):
    """Sequences over two tokens, so that prefixes are often equal, are begun, grown, forked and ended at random."""
    memory = Memory(num_blocks)
    live = []
    for _ in range(data.draw(st.integers(1, 30))):
        action = data.draw(st.sampled_from(["begin", "feed", "fork", "end", "reuse"]))
        if action == "begin":
            live.append(Tokens(data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=30))))
        elif live:
            sequence = live[data.draw(st.integers(0, len(live) - 1))]
            left = len(sequence.window) - sequence.kv.num_tokens
            if action == "feed" and left:
                memory.feed(sequence, data.draw(st.integers(1, left)))
            elif action == "reuse" and left:
                memory.cache.reuse(sequence)
            elif action == "fork":
                end = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=4))
                copy = Tokens([*sequence.window[: sequence.kv.num_tokens], *end])
                memory.cache.fork(sequence.kv, copy.kv)
                live.append(copy)
            elif action == "end":
                memory.cache.release(sequence.kv)
                live.remove(sequence)
        for sequence in live:
            memory.check(sequence)
        used = {block for sequence in live for block in sequence.kv.blocks}
        assert memory.pool.num_free == num_blocks - len(used)
        users = [block for sequence in live for block in sequence.kv.blocks]
        assert all(memory.pool.num_users(block) == users.count(block) for block in used)
    for sequence in live:
        memory.cache.release(sequence.kv)
    assert memory.pool.num_free == num_blocks
    blocks = memory.pool.allocate(num_blocks)
    assert sorted(blocks) == list(range(num_blocks))
    assert memory.cache.reuse(Tokens([0] * 9)) == 0, "nothing is found of what was given away"


def test_a_double_release_is_found():
    pool = BlockPool(1, SIZE)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(AssertionError):
        pool.release(blocks)
