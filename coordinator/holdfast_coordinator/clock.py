"""The time that a coordinator goes by."""

import time


class Clock:
    """Milliseconds since the Unix epoch that never jump: read once, then carried on by the monotonic clock."""

    def __init__(self) -> None:
        self._offset = time.time_ns() - time.monotonic_ns()

    def now(self) -> int:
        """Milliseconds since the Unix epoch."""
        return self.now_ns() // 1_000_000

    def now_ns(self) -> int:
        """The same in nanoseconds."""
        return time.monotonic_ns() + self._offset
