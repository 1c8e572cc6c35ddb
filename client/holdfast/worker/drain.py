"""`python -m holdfast.worker.drain DIRECTORY`: what an agent starts for workers that are gone.

Writes the name of each file that has reached its storage, one a line, below the directory of its scope. Exits with 0
when nothing is left, with 1 otherwise.
"""

import sys

from holdfast.storage.api import StorageError
from holdfast.worker.report import say
from holdfast.worker.spool import drain_directory


def main(directory: str) -> int:
    """Bring what is held in a directory, or below it, to its storage."""
    try:
        left = drain_directory(directory, lambda name: print(name, flush=True))
    except (OSError, StorageError) as error:
        say(f"{directory} could not be drained: {error}")
        return 1
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
