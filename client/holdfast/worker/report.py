"""What the library has to tell a person, on stderr, where the job's log keeps it."""

import contextlib
import sys


def say(sentence: str) -> None:
    """Write one line. A stderr that is closed or full is no reason to stop training."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"holdfast: {sentence}\n")
        sys.stderr.flush()
