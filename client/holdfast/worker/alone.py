"""Committing without a coordinator: a world of one, outside holdfast. The files are the same."""

import time
from collections.abc import Callable

from holdfast.worker.manifest import Commit, Shard


class Alone:
    """Commits what it is given at once. The counterpart of `session.Link`."""

    def __init__(self, job_id: str, attempt: int, publish: Callable[[Commit], None]) -> None:
        """`publish` writes the manifest of a commit; here that is the commit."""
        self._job_id = job_id
        self._attempt = attempt
        self._publish = publish
        self._committed = -1

    def submit(self, step: int, shard: Shard) -> None:
        """Commit the shard. Raises OSError when it can't be."""
        now = time.time_ns() // 1_000_000
        self._publish(Commit(self._job_id, step, self._attempt, None, 1, now, (shard,)))
        self._committed = step

    def wait(self, step: int, timeout: float | None = None) -> bool:  # noqa: ARG002
        """True: it was answered at once."""
        return True

    def committed(self, step: int) -> bool:
        """The checkpoint of `step`, or of a later one, is committed."""
        return step <= self._committed

    def resume(self, timeout: float | None = None) -> Commit | None:  # noqa: ARG002
        """None: what was committed here is in its manifest or nowhere."""
        return None

    def save_failed(self, step: int, message: str) -> None:
        """Nobody else is to know."""

    def corrupt(self, step: int, message: str) -> None:
        """Nobody else is to know."""

    def drained(self, step: int, timeout: float) -> bool:  # noqa: ARG002
        """True: nobody else is to know."""
        return True

    def dropped(self, step: int) -> None:
        """Nobody else is to know."""

    def close(self) -> None:
        """Nothing to hang up."""

    def abandon(self) -> None:
        """Nothing to let go of."""
