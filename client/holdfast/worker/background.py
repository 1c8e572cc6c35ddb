"""The thread that writes checkpoints while training goes on.

It has one checkpoint at a time, and tries it again until it is written or a newer one waits to take its place. What
else has to be done to a storage, removing what is no longer kept, is done by it between two checkpoints.
"""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from holdfast.worker.checkpoint import Packed
from holdfast.worker.report import say

FIRST_PAUSE = 1.0
LAST_PAUSE = 30.0
"""Seconds between two tries to write the same checkpoint."""

NICENESS = 10
"""Of the thread, as in nice(1)."""


class Save(NamedTuple):
    """One checkpoint to write. Its arrays stay as they are until it is written."""

    step: int
    packed: Packed


class BackgroundWriter:
    """Used by one thread, the training loop's; `write` and `failed` are called by its own.

    `write` makes a checkpoint durable and submits it. What it raises is told to `failed`; after an OSError it is tried
    again, after anything else it is not.
    """

    def __init__(self, write: Callable[[Save], None], failed: Callable[[Save, Exception], None]) -> None:
        self._write = write
        self._failed = failed
        self._changed = threading.Condition()
        self._save: Save | None = None
        self._hurried = False
        self._closed = False
        self._chores: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None

    def give(self, save: Save) -> None:
        """Begin to write a checkpoint. The one before it must be done with."""
        with self._changed:
            self._save, self._hurried = save, False
            try:
                self._wake()
            except RuntimeError as error:  # there is no thread to be had
                self._save = None
                self._tell(save, error)

    def later(self, chore: Callable[[], None]) -> None:
        """Do this when no checkpoint waits to be written. What it raises is reported."""
        with self._changed:
            self._chores.append(chore)
            with contextlib.suppress(
                RuntimeError
            ):  # no thread is to be had: the next checkpoint tries to get one
                self._wake()

    def hurry(self) -> None:
        """Let the checkpoint that is being written be the last try: another waits."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the checkpoint is written or given up. False when `timeout` seconds have gone by first."""
        with self._changed:
            return self._changed.wait_for(lambda: self._save is None, timeout)

    def close(self, timeout: float) -> None:
        """Do what is left to do, for at most `timeout` seconds; then nothing more is begun."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or (self._save is None and not self._chores), timeout)
            self._closed = True
            self._changed.notify_all()

    def _wake(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="holdfast-save", daemon=True)
            thread.start()
            self._thread = thread
        self._changed.notify_all()

    def _run(self) -> None:
        # Where training has use for every core it is to have them. A thread's niceness is its own on Linux, and goes
        # over to those that it starts to upload.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        # Neither a save nor a chore is kept in a variable here: while the thread sleeps it would keep the arrays.
        while self._next():
            if self._save is not None:
                self._try(self._save)
                with self._changed:
                    self._save = None
                    self._changed.notify_all()
            else:
                self._do(self._chores[0])
                with self._changed:
                    self._chores.popleft()
                    self._changed.notify_all()

    def _next(self) -> bool:
        """Wait for something to do. False when nothing more is to be begun."""
        with self._changed:
            self._changed.wait_for(lambda: self._save or self._chores or self._closed)
            return not self._closed

    def _do(self, chore: Callable[[], None]) -> None:
        try:
            chore()
        except Exception as error:  # noqa: BLE001  without this thread no checkpoint would be written any more
            say(f"old checkpoints could not be removed: {error}")

    def _try(self, save: Save) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                self._write(save)
            except OSError as error:
                self._tell(save, error)
            except Exception as error:  # noqa: BLE001  a checkpoint that can't be written is no reason to stop training
                self._tell(save, error)
                return
            else:
                return
            with self._changed:
                if self._changed.wait_for(lambda: self._hurried or self._closed, pause):
                    return
            pause = min(2 * pause, LAST_PAUSE)

    def _tell(self, save: Save, error: Exception) -> None:
        try:
            self._failed(save, error)
        except Exception as further:  # noqa: BLE001  see above
            say(f"that the checkpoint of step {save.step} failed could not be told: {further}")
