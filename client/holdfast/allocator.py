"""The C library's allocator, in processes through which large blocks pass."""

import contextlib
import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 8 * 2**20
"""Of what was freed, for what comes next; more is given back."""


def keep_large_blocks() -> None:
    """Have memory of large blocks used again, and not given back to the kernel after each of them.

    Otherwise every block of 128 KiB and more that passes, several times as each of its copies, costs a fault and the
    zeroing of each of its pages: more than all of its copying. Where the C library is not glibc, nothing is done.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, KEPT_BYTES)


def give_back() -> None:
    """Give what is free back to the kernel, now that no more large blocks come. Takes less than a millisecond."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
