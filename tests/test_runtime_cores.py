"""Counting cores and memory, with the system's files replaced."""

import math
from pathlib import Path

import pytest

from nvg.runtime import cores, cpu


@pytest.fixture
def system(monkeypatch):
    """A dict path -> text that stands for the system's files."""
    files = {}
    monkeypatch.setattr(cores, "_read", lambda path: files.get(str(path), ""))
    return files


def siblings(cpu_number):
    return f"/sys/devices/system/cpu/cpu{cpu_number}/topology/thread_siblings_list"


def test_smt_siblings_are_one_core(system):
    system.update({siblings(0): "0,4", siblings(4): "0,4", siblings(1): "1,5", siblings(5): "1,5"})
    assert cores.physical_cores({0, 4, 1, 5}) == 2
    assert cores.physical_cores({0, 1}) == 2
    assert cores.physical_cores({0, 4}) == 1


def test_cores_without_topology_count_each(system):
    assert cores.physical_cores({0, 1, 2}) == 3


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", math.inf), ("150000 100000", 1.5), ("50000 100000", 0.5), ("", math.inf)]
)
def test_a_cgroup_quota_limits(system, quota, expected):
    system.update({"/proc/self/cgroup": "0::/jobs/mine", "/sys/fs/cgroup/jobs/mine/cpu.max": quota})
    assert cores.cgroup_cpus() == expected


def test_the_parents_quota_holds_too_and_so_does_version_1(system):
    system.update({"/proc/self/cgroup": "0::/jobs/mine", "/sys/fs/cgroup/jobs/cpu.max": "200000 100000"})
    assert cores.cgroup_cpus() == 2
    system["/sys/fs/cgroup/cpu/cpu.cfs_quota_us"] = "100000"
    system["/sys/fs/cgroup/cpu/cpu.cfs_period_us"] = "100000"
    assert cores.cgroup_cpus() == 1


def test_default_threads_is_at_least_one(system, monkeypatch):
    monkeypatch.setattr(cores, "allowed_cpus", lambda: {0, 1, 2, 3})
    assert cores.default_threads() == 4
    system.update({"/proc/self/cgroup": "0::/", "/sys/fs/cgroup/cpu.max": "50000 100000"})
    assert cores.default_threads() == 1


def test_memory_is_what_the_cgroup_leaves(system):
    system["/proc/meminfo"] = "MemTotal: 100 kB\nMemAvailable:   1000 kB"
    assert cores.available_memory() == 1_024_000
    system.update({"/proc/self/cgroup": "0::/a", "/sys/fs/cgroup/a/memory.max": "5000"})
    system["/sys/fs/cgroup/a/memory.current"] = "4000"
    assert cores.available_memory() == 1000
    system["/sys/fs/cgroup/a/memory.stat"] = "anon 3000\ninactive_file 700\nactive_file 300"
    assert cores.available_memory() == 1700, "what was read from files and not used again can go"
    system["/sys/fs/cgroup/memory/memory.limit_in_bytes"] = "3000"
    system["/sys/fs/cgroup/memory/memory.usage_in_bytes"] = "2900"
    assert cores.available_memory() == 100
    system["/sys/fs/cgroup/memory/memory.stat"] = "inactive_file 1\ntotal_inactive_file 400"
    assert cores.available_memory() == 500


def test_this_machine():
    assert 1 <= cores.default_threads() <= len(cores.allowed_cpus())
    assert cpu.features().vector_floats in (4, 8, 16)
    if Path("/proc/cpuinfo").exists() and cpu.target()[0].startswith("x86_64"):
        flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0]
        assert (cpu.features().vector_floats >= 8) == (" avx2" in flags)


def caches(cpu_number, *indices):
    """Files of a CPU's caches: (level, size, which CPUs share it)."""
    where = f"/sys/devices/system/cpu/cpu{cpu_number}/cache"
    names = ("level", "size", "shared_cpu_list")
    return {
        f"{where}/index{i}/{name}": text for i, one in enumerate(indices) for name, text in zip(names, one, strict=True)
    }


def test_last_level_caches_count_once_each(system, monkeypatch):
    monkeypatch.setattr(cores, "allowed_cpus", lambda: {0, 1, 8})
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [self / f"index{i}" for i in range(3)])
    for number, shared in ((0, "0-7"), (1, "0-7"), (8, "8-15")):
        system.update(caches(number, ("1", "32K", str(number)), ("2", "1024K", str(number)), ("3", "16384K", shared)))
    assert cores.last_level_cache_bytes() == 2 * 16 * 2**20
    monkeypatch.setattr(cores, "allowed_cpus", lambda: {0, 1})
    assert cores.last_level_cache_bytes() == 16 * 2**20
    system.clear()
    assert cores.last_level_cache_bytes() == 0


def test_peak_memory_is_what_the_system_says(system, monkeypatch):
    system["/proc/self/status"] = "Name:\tpython\nVmHWM:\t   2048 kB\nVmRSS:\t 1024 kB"
    assert cores.peak_resident_bytes() == 2 * 2**20
    system.clear()
    peak = cores.peak_resident_bytes()  # by getrusage, where there is such a thing
    assert peak is None or 2**24 < peak < 2**42


@pytest.mark.parametrize(
    ("triple", "on", "width", "bf16_dot", "int8_dot"),
    [
        ("x86_64-linux", {"avx2", "fma"}, 8, False, "pmaddwd"),
        ("x86_64-linux", {"avx2", "avxvnni"}, 8, False, "vnni"),
        ("x86_64-linux", {"avx2", "avx512f", "avx512bw", "avx512vnni"}, 16, False, "vnni"),
        ("x86_64-linux", {"avx2", "avx512f", "avx512bw", "avx512bf16"}, 16, True, "pmaddwd"),
        ("x86_64-linux", {"avx512vnni", "avx512bf16"}, 4, False, "pmaddwd"),
        ("aarch64-linux", {"neon"}, 4, False, "plain"),
        ("aarch64-linux", {"neon", "dotprod"}, 4, False, "sdot"),
        ("riscv64-linux", set(), 4, False, "plain"),
    ],
)
def test_instructions_need_their_features(triple, on, width, bf16_dot, int8_dot):
    found = cpu.features_of(triple, frozenset(on))
    assert (found.vector_floats, found.bf16_dot, found.int8_dot) == (width, bf16_dot, int8_dot)


def test_notable_features_are_those_that_are_on(monkeypatch):
    monkeypatch.setattr(cpu, "target", lambda: ("x86_64-linux", "some", frozenset({"avx2", "fma", "sse3"})))
    assert cpu.notable_features() == ["avx2", "fma"]
