"""Regular expressions that others wrote: given some time, and no more.

Python's matcher can take for ever on a line of a few dozen characters. While it does it answers signals, and nothing
else; so a timer that raises is the one thing that ends it, in a main thread.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class TooSlowError(Exception):
    """A pattern did not come to an end in its time."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise TooSlowError in the block when it takes longer. For main threads, and for blocks that only compute."""
    before = signal.signal(signal.SIGALRM, _raise)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _raise(_number: int, _frame: object) -> None:
    raise TooSlowError
