"""Doing things ahead in threads, and handing out what came of them in order."""

import atexit
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_LAST_WAIT = 1.0
"""How many seconds the end of the program waits for threads that are in the middle of something."""


class Prefetch(Generic[T]):
    """Makes calls in threads, at most `ahead` of what was taken. One thread takes.

    What a call raises is raised where its result would have been taken.
    """

    def __init__(self, calls: Iterator[Callable[[], T]], threads: int, ahead: int) -> None:
        self._calls = calls
        self._ahead = ahead
        self._changed = threading.Condition()
        self._calling = threading.Lock()
        """One thread at a time asks for a call. That may take long, and nobody waits for it who only wants a result."""
        self._next = 0
        self._taken = 0
        self._end: int | None = None
        self._results: dict[int, tuple[T | None, BaseException | None]] = {}
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._work, name=f"holdfast-data-{n}", daemon=True)
            for n in range(threads)
        ]
        _running.add(self)
        for thread in self._threads:
            thread.start()

    def take(self) -> T | None:
        """The next result, when it is there; None after the last one."""
        with self._changed:
            while self._taken not in self._results:
                if self._end == self._taken:
                    return None
                self._changed.wait()
            result, error = self._results.pop(self._taken)
            self._taken += 1
            self._changed.notify_all()
        if error is not None:
            raise error
        return result

    def stop(self) -> None:
        """Make no more calls. Threads end when they come to know it."""
        with self._changed:
            self._stopped = True
            self._results.clear()
            self._changed.notify_all()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the threads have ended."""
        for thread in self._threads:
            thread.join(timeout)

    def _work(self) -> None:
        while (job := self._take_call()) is not None:
            number, call = job
            try:
                outcome: tuple[T | None, BaseException | None] = call(), None
            except BaseException as error:  # noqa: BLE001  it is raised where it can be handled
                outcome = None, error
            del job, call
            with self._changed:
                if self._stopped:
                    return
                self._results[number] = outcome
                self._changed.notify_all()

    def _take_call(self) -> tuple[int, Callable[[], T]] | None:
        with self._calling:
            with self._changed:
                while not self._stopped and self._end is None and self._next >= self._taken + self._ahead:
                    self._changed.wait()
                if self._stopped or self._end is not None:
                    return None
                number = self._next
                self._next += 1
            try:
                return number, next(self._calls)
            except StopIteration:
                self._finish(number)
            except BaseException as error:  # noqa: BLE001  it is raised where it can be handled
                self._finish(number + 1, error)
            return None

    def _finish(self, end: int, error: BaseException | None = None) -> None:
        """There are so many results; the last is that the next call could not be had."""
        with self._changed:
            if error is not None:
                self._results[end - 1] = None, error
            self._end = end
            self._changed.notify_all()


# A forked child has the locks as they were, and none of the threads.
_running: "weakref.WeakSet[Prefetch[Any]]" = weakref.WeakSet()
os.register_at_fork(after_in_child=_running.clear)


@atexit.register
def _stop_all() -> None:
    """A thread that still works while the interpreter is taken down can crash it."""
    for each in list(_running):
        each.stop()
    for each in list(_running):
        each.join(_LAST_WAIT)
