"""How many cores this process may use, and how much memory: affinity mask, cgroup quota and SMT siblings."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def allowed_cpus() -> set[int]:
    """The logical CPUs in this process's affinity mask."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _own_cgroups() -> list[Path]:
    """This process's cgroup v2 directory and its ancestors; a limit on any of them holds."""
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        if line.startswith("0::"):
            group = _CGROUP / line[3:].lstrip("/")
            return [group, *(parent for parent in group.parents if parent.is_relative_to(_CGROUP))]
    return [_CGROUP]


def cgroup_cpus() -> float:
    """CPUs' worth of time that the cgroup quota allows; inf without a quota."""
    limit = math.inf
    for group in _own_cgroups():
        quota, _, period = _read(group / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            limit = min(limit, int(quota) / int(period))
    quota, period = (_read(_CGROUP / "cpu" / f"cpu.cfs_{name}_us") for name in ("quota", "period"))  # cgroup v1
    if quota.isdigit() and period.isdigit() and int(period):
        limit = min(limit, int(quota) / int(period))
    return limit


def physical_cores(cpus: set[int]) -> int:
    """How many different cores `cpus` stand for: SMT siblings share one, and a second thread on it gains nothing."""
    cores = set()
    for cpu in cpus:
        siblings = _read(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"))
        cores.add(siblings or str(cpu))
    return max(1, len(cores))


def default_threads() -> int:
    """Physical cores within the affinity mask, at most the cgroup's quota rounded down (at least 1)."""
    return max(1, int(min(physical_cores(allowed_cpus()), cgroup_cpus())))


def available_memory() -> int:
    """Bytes that can be allocated without swapping, within the cgroup's limit; 0 if the system doesn't say."""
    available = 0
    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    for group in _own_cgroups():
        available = min(available, _room(group, "memory.max", "memory.current", "inactive_file"))
    version_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    return min(available, _room(_CGROUP / "memory", *version_1))


def _room(group: Path, limit_file: str, used_file: str, cached: str) -> int:
    """Bytes that a cgroup's memory limit leaves; files that it read and that can be dropped are not in use."""
    limit, used = _read(group / limit_file), _read(group / used_file)
    if not (limit.isdigit() and used.isdigit()):
        return sys.maxsize
    droppable = 0
    for line in _read(group / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == cached and value.isdigit():
            droppable = int(value)
    return max(0, int(limit) - int(used) + min(droppable, int(used)))


def last_level_cache_bytes() -> int:
    """Bytes of the largest caches that the allowed CPUs have, together; 0 if the system doesn't say."""
    sizes: dict[tuple[int, str], int] = {}
    for cpu in allowed_cpus():
        for index in Path(f"/sys/devices/system/cpu/cpu{cpu}/cache").glob("index*"):
            level, size, shared = (_read(index / name) for name in ("level", "size", "shared_cpu_list"))
            if level.isdigit() and size.endswith("K") and size[:-1].isdigit():
                sizes[int(level), shared] = int(size[:-1]) * 1024
    last = max((level for level, _ in sizes), default=0)
    return sum(size for (level, _), size in sizes.items() if level == last)


def peak_resident_bytes() -> int | None:
    """The most memory that this process has had resident; None if the system doesn't say."""
    for line in _read(Path("/proc/self/status")).splitlines():  # getrusage counts what was there before an exec, too
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
