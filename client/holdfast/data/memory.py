"""Memory of batches, used again when nobody holds a batch any more that was made in it.

The kernel clears every page that it gives out, and that takes longer than it takes to copy the samples there. Whoever
holds a batch, or anything that shares its memory, holds a reference to the array that owns it: one that has none but
the one from here is free.
"""

import sys
import threading
from collections import deque
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_probe = deque([object()])
_UNUSED = sys.getrefcount(_probe[0])


class Memory:
    """Safe to use from several threads."""

    def __init__(self, kept: int) -> None:
        """So many arrays of a column are kept; it should be more than there are made and not yet dropped."""
        self._most = kept
        self._kept: dict[str, deque[Array]] = {}
        self._lock = threading.Lock()

    def rows(self, column: str, count: int, dtype: np.dtype[Any]) -> Array:
        """An array to be filled, of a column that has always about the same number of bytes."""
        if dtype.hasobject:
            return np.empty(count, dtype)
        size = count * dtype.itemsize
        with self._lock:
            kept = self._kept.setdefault(column, deque())
            if kept and len(kept[0]) >= size and sys.getrefcount(kept[0]) == _UNUSED:
                owner = kept.popleft()
            else:
                owner = np.empty(size, np.uint8)
                if len(kept) == self._most:
                    kept.popleft()
            kept.append(owner)
        return owner[:size].view(dtype)
