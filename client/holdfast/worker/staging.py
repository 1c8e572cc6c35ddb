"""The copy that training waits for: what is saved is copied aside, and written while training goes on.

One buffer is used again and again. Memory that was touched before is several times as fast to copy into as fresh
memory, which the kernel has to find and clear first.
"""

import contextlib
import mmap
from typing import Any

import numpy as np

from holdfast.worker.shard_file import Arrays

_ALIGNMENT = 64


class Staging:
    """A buffer that grows to what it has to hold, and is kept."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None
        self._size = 0

    def copy(self, arrays: Arrays) -> Arrays:
        """Copies of these arrays, valid until the next call. Raises OSError when there is no memory for them."""
        places, size = {}, 0
        for name, array in arrays.items():
            places[name] = size
            size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        memory = self._reserve(size)
        copies: Arrays = {}
        for name, array in arrays.items():
            copy: np.ndarray[Any, Any] = np.ndarray(array.shape, array.dtype, memory, places[name])
            np.copyto(copy, array)
            copies[name] = copy
        return copies

    def _reserve(self, size: int) -> mmap.mmap:
        if self._memory is None or size > self._size:
            self._memory = None  # which is unmapped when the last copy that lies in it is gone
            self._size = max(size, mmap.PAGESIZE)
            self._memory = mmap.mmap(-1, self._size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            # Children have no use for it, and pages shared with them would cost the next copy a fault for each.
            for advice in (mmap.MADV_DONTFORK, mmap.MADV_HUGEPAGE):
                with contextlib.suppress(OSError):  # a kernel may have no huge pages
                    self._memory.madvise(advice)
        return self._memory
