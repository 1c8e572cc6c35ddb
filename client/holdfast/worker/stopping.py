"""Requests to stop, as a training loop sees them: asked in time, at a step that all ranks of its gang share.

The link's thread hears the request, and answers with the step after the one that the loop is at. The loop, which looks
once a step, does not go past that step before it was told where its gang stops: there it waits, which takes as long as
a question to the coordinator, and no longer. So the ranks of a gang agree on a step that none of them has passed,
whether they go in lockstep or not; in a gang that does, who waits is at most one step ahead.

The loop sets its step and then looks at `asked`; the thread sets `asked` and then looks at the step. So whichever comes
first, a loop that the thread saw below the promised step sees the request when it gets there. Looking costs a loop two
attributes and no lock.
"""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from holdfast.worker.report import say

if TYPE_CHECKING:
    from holdfast.worker.session import Link

PATIENCE = 30.0
"""How many seconds a loop waits to be told where it stops: a coordinator that is away stops no training for longer."""


class Answer(NamedTuple):
    """The step that this rank's loop will not pass before it was told more."""

    step: int
    leaves: bool


class Stop:
    """What one worker was asked. Its own thread hears, the training loop looks."""

    def __init__(self, current_step: Callable[[], int]) -> None:
        self.asked = False
        """Whether there is anything to look at: all that a loop reads while there is not."""
        self.leaves = False
        """The program looks whether it should stop."""
        self.taken = False
        """The last checkpoint is."""
        self.reason = ""
        self._current_step = current_step
        self._changed = threading.Condition()
        self._until = 0.0
        self._promised: int | None = None
        self._at: int | None = None

    def hear(self, reason: str, seconds: float, at_step: int | None) -> Answer | None:
        """Take a request, also one that was heard before. Returns what to answer; None: nothing."""
        with self._changed:
            self.reason = reason
            self._until = time.monotonic() + seconds
            self.asked = True
            # Only now: see above.
            if self._promised is None:
                self._promised = self._current_step() + 1
            if at_step is not None and at_step >= self._promised:
                self._at = at_step
            self._changed.notify_all()
            return Answer(self._promised, self.leaves) if self._at is None else None

    def reached(self, step: int) -> bool:
        """Tell whether the loop has come to where it stops; waits there while that is not known yet."""
        if self._at is None:
            self._wait(step)
        return self._at is not None and step >= self._at

    def _wait(self, step: int) -> None:
        with self._changed:
            if self._promised is None or step < self._promised:
                return
            patience = min(PATIENCE, max(0.0, self._until - time.monotonic()))
            if (
                not self._changed.wait_for(lambda: self._at is not None, patience)
                and self._promised is not None
            ):
                say("it is not known yet at which step to stop; training goes on")
                self._promised = None  # the next request is answered anew
                self.asked = False

    @property
    def seconds_left(self) -> float:
        """Until SIGTERM."""
        return max(0.0, self._until - time.monotonic())


class Listener:
    """Opens the link to the agent behind the training loop's back: what it takes is slow to import."""

    def __init__(self, connect: "Callable[[], Link]") -> None:
        self._connect = connect
        self._link: Link | None = None
        self._thread: threading.Thread | None = None
        try:
            thread = threading.Thread(target=self._open, name="holdfast-listen", daemon=True)
            thread.start()
            self._thread = thread
        except RuntimeError:  # there is no thread to be had
            self._open()

    def link(self) -> "Link":
        """The link, as soon as it is there."""
        if self._thread is not None:
            self._thread.join()
        if self._link is None:
            self._open()
        assert self._link is not None
        return self._link

    def close(self) -> None:
        """Hang up."""
        self.link().close()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's connection."""
        if self._link is not None:
            self._link.abandon()

    def _open(self) -> None:
        self._link = self._connect()
