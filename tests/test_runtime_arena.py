"""Memory for weights: whole, zero, in huge pages until they are slow, and given back."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from nvg.runtime import arena as arena_module
from nvg.runtime.arena import HUGE_PAGE, Arena, Patience

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_it_is_zero_aligned_and_of_that_size():
    for size in (64, HUGE_PAGE, 3 * HUGE_PAGE + 64):
        memory = Arena(size).bytes
        assert memory.shape == (size,)
        assert memory.ctypes.data % HUGE_PAGE == 0
        assert not memory.any()
        memory[:] = 7


def test_its_bytes_outlive_it():
    memory = Arena(HUGE_PAGE).bytes[64:]
    memory[:] = 3
    assert (memory == 3).all()


def test_too_much_is_a_memory_error():
    with pytest.raises(MemoryError, match="bytes for weights"):
        Arena(2**62)


def test_more_than_is_free_is_a_memory_error(monkeypatch):
    monkeypatch.setattr(arena_module, "available_memory", lambda: HUGE_PAGE)
    assert Arena(HUGE_PAGE).bytes.size == HUGE_PAGE
    with pytest.raises(MemoryError, match=f"{HUGE_PAGE + 1} bytes for weights, and {HUGE_PAGE} are free"):
        Arena(HUGE_PAGE + 1)
    monkeypatch.setattr(arena_module, "available_memory", lambda: 0)  # the system doesn't say
    Arena(HUGE_PAGE)


def entry_of(array):
    """/proc/self/smaps' entry of the memory of `array`: name -> kB, and "VmFlags"."""
    address, found = array.ctypes.data, {}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if head := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            is_it = int(head[1], 16) <= address < int(head[2], 16)
        elif is_it:
            name, _, value = line.partition(":")
            found[name] = value.split() if name == "VmFlags" else int(value.split()[0])
    return found


@on_linux
def test_huge_pages_are_asked_for_until_they_are_slow(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(arena_module.time, "thread_time", lambda: clock[0])
    quick = Arena(8 * HUGE_PAGE)
    assert "hg" in entry_of(quick.bytes)["VmFlags"]
    assert entry_of(quick.bytes)["Rss"] >= 8 * 2048, "all of it is there"

    def slow():
        clock[0] += 0.005
        return clock[0]

    monkeypatch.setattr(arena_module.time, "thread_time", slow)
    halting = Arena(64 * HUGE_PAGE)
    entry = entry_of(halting.bytes)
    assert "nh" in entry["VmFlags"]
    assert 4 * 2048 <= entry["Rss"] <= 8 * 2048
    assert "hg" in entry_of(Arena(64 * HUGE_PAGE, patience_s=np.inf).bytes)["VmFlags"]


def test_patience_counts_what_was_lost(monkeypatch):
    clock = iter([0.0, 0.001, 0.012, 0.013, 0.0235, 0.0236])
    monkeypatch.setattr(arena_module.time, "thread_time", lambda: next(clock))
    patience = Patience(0.001, 0.0199)
    assert [patience.is_over(HUGE_PAGE) for _ in range(3)] == [False, False, False], "11 ms for 1, and quick ones"
    assert not patience.is_over(2 * HUGE_PAGE), "10.5 ms for 2: 18.5 lost"
    assert not patience.is_over(0)


@on_linux
def test_what_is_given_back_is_no_more_resident():
    arena = Arena(4 * HUGE_PAGE)
    arena.bytes[:] = 9
    before = entry_of(arena.bytes)["Rss"]
    arena.release(HUGE_PAGE - 1)
    assert entry_of(arena.bytes)["Rss"] == before
    arena.release(3 * HUGE_PAGE + 5)
    assert entry_of(arena.bytes)["Rss"] == before - 3 * 2048
    assert (arena.bytes[3 * HUGE_PAGE :] == 9).all()
    arena.release(4 * HUGE_PAGE)
    assert entry_of(arena.bytes)["Rss"] == before - 4 * 2048
