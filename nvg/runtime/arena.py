"""Memory for weights: in huge pages as far as they come quickly, given back piece by piece."""

from __future__ import annotations

import contextlib
import mmap
import sys
import time

import numpy as np
import numpy.typing as npt

from nvg.runtime.cores import available_memory

HUGE_PAGE = 2 << 20
"""Bytes of one where pages have 4 KB; elsewhere a number like any other."""
PATIENCE_S = 0.02


class Patience:
    """Tells when huge pages have become too slow to go on with: when so much of the thread's CPU time was lost on them.

    They are quick to get, but not always: a virtual machine's host takes back large blocks of memory that lie free, and
    to bring 2 MB again can cost 5 ms. Small pages come from what it has left.
    """

    def __init__(self, page_s: float, most_lost_s: float = PATIENCE_S) -> None:
        """page_s: more than it takes to fill the bytes of one when they are in small pages."""
        self._page_s = page_s
        self._most_lost_s = most_lost_s
        self._lost_s = 0.0
        self._last = time.thread_time()

    def is_over(self, num_bytes: int) -> bool:
        """Whether it is, now that `num_bytes` more were filled."""
        now = time.thread_time()
        self._lost_s += max(0.0, now - self._last - self._page_s * num_bytes / HUGE_PAGE)
        self._last = now
        return self._lost_s > self._most_lost_s


class Arena:
    """`size` bytes of zeros, beginning at a multiple of 2 MB; the memory lives as long as `bytes` or a view of it.

    Huge pages make reading it a few per cent faster, so they are taken here, one by one; when `patience_s` were lost on
    slow ones, what is left will come in small pages as it is touched.

    Raises MemoryError, also for more than is free: Linux gives that, and ends whoever fills it.
    """

    def __init__(self, size: int, patience_s: float = PATIENCE_S) -> None:
        free = available_memory()
        if 0 < free < size:
            raise MemoryError(f"{size} bytes for weights, and {free} are free")
        private = {} if sys.platform == "win32" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
        try:
            self._memory = mmap.mmap(-1, size + HUGE_PAGE, **private)
        except OSError:
            raise MemoryError(f"{size} bytes for weights") from None
        whole = np.frombuffer(self._memory, np.uint8)
        self._start = -whole.ctypes.data % HUGE_PAGE
        self._released = 0
        self.bytes: npt.NDArray[np.uint8] = whole[self._start : self._start + size]
        if sys.platform == "linux":
            self._take_huge_pages(Patience(0.0005, patience_s))

    def _take_huge_pages(self, patience: Patience) -> None:
        with contextlib.suppress(OSError):  # a kernel without them
            self._memory.madvise(mmap.MADV_HUGEPAGE)
            for first in range(0, self.bytes.size, HUGE_PAGE):
                self.bytes[first : first + HUGE_PAGE : mmap.PAGESIZE] = 0
                if patience.is_over(HUGE_PAGE):
                    self._memory.madvise(mmap.MADV_NOHUGEPAGE)
                    return

    def release(self, end: int) -> None:
        """Give what lies before byte `end` back to the system, in whole huge pages; nobody may read it any more."""
        end = end // HUGE_PAGE * HUGE_PAGE
        if sys.platform == "linux" and end > self._released:
            self._memory.madvise(mmap.MADV_DONTNEED, self._start + self._released, end - self._released)
            self._released = end
