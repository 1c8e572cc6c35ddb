"""An event loop in a thread of its own, for callers who have none: one for all of a process, while anybody holds it.

One for all, since gRPC wakes every loop of a process for whatever comes.
"""

import asyncio
import atexit
import os
import threading
from functools import partial

ENDING_S = 5.0
"""How long a process that exits waits for what its loop still does."""


class ForkedError(Exception):
    """This process was forked from one that had such a thread."""


class LoopThread:
    """The thread. It begins with the first holder and ends with the last."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # the collector may close what lets go, wherever it runs
        self._holders = 0
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._used = self._forked = False

    def hold(self) -> asyncio.AbstractEventLoop:
        """Begin to use the loop. Raises ForkedError."""
        with self._lock:
            if self._forked:
                raise ForkedError
            if self._thread is None:
                self._loop, self._stop = asyncio.new_event_loop(), asyncio.Event()
                live = partial(_live, self._loop, self._stop)
                self._thread = threading.Thread(target=live, name="holdfast-client", daemon=True)
                self._thread.start()
            self._holders += 1
            self._used = True
            return self._loop

    def let_go(self, *, wait: bool = True) -> None:
        """Use it no longer. The last one waits for the thread to end."""
        with self._lock:
            self._holders -= 1
            thread = None if self._holders else self._end()
        if wait and thread is not None:
            thread.join()

    def exit(self) -> None:
        """End while threads still can: an interpreter that goes on to its end freezes them."""
        with self._lock:
            thread = self._end()
        if thread is not None:
            thread.join(ENDING_S)

    def after_fork(self) -> None:
        """In the child: there is no thread, and gRPC hangs, or crashes though all was closed before the fork."""
        self._forked = self._used
        self._lock = threading.RLock()
        self._thread = None

    def _end(self) -> threading.Thread | None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        return thread


def _live(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(stop.wait())


SHARED = LoopThread()
atexit.register(SHARED.exit)
os.register_at_fork(after_in_child=SHARED.after_fork)
