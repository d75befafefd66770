"""Memory for weights: in huge pages as far as they come quickly, given back piece by piece."""

from __future__ import annotations

import mmap
import sys
import time

import numpy as np
import numpy.typing as npt

HUGE_PAGE = 2 << 20
"""Bytes of one where pages have 4 KB; elsewhere a number like any other."""
_SLOW_S = 0.0005
"""More CPU time than small pages take for the same bytes."""
_MOST_SLOW_S = 0.02


class Arena:
    """`size` bytes of zeros, beginning at a multiple of 2 MB; the memory lives as long as `bytes` or a view of it.

    Huge pages make reading it a few per cent faster. They are quick to get, too, but not always: a virtual machine's
    host takes back large blocks that lie free, and to bring 2 MB again can cost 5 ms. So they are asked for one by one,
    until 20 ms were lost to slow ones; what is left then comes in small pages when it is first touched.

    Raises MemoryError.
    """

    def __init__(self, size: int) -> None:
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
            self._take_huge_pages()

    def _take_huge_pages(self) -> None:
        slow_s = 0.0
        try:
            self._memory.madvise(mmap.MADV_HUGEPAGE)
            for first in range(0, self.bytes.size, HUGE_PAGE):
                begin = time.thread_time()
                self.bytes[first : first + HUGE_PAGE : mmap.PAGESIZE] = 0
                took = time.thread_time() - begin
                slow_s += took if took > _SLOW_S else 0
                if slow_s > _MOST_SLOW_S:
                    self._memory.madvise(mmap.MADV_NOHUGEPAGE)
                    return
        except OSError:  # a kernel without them
            return

    def release(self, end: int) -> None:
        """Give what lies before byte `end` back to the system, in whole huge pages; nobody may read it any more."""
        end = end // HUGE_PAGE * HUGE_PAGE
        if sys.platform == "linux" and end > self._released:
            self._memory.madvise(mmap.MADV_DONTNEED, self._start + self._released, end - self._released)
            self._released = end
