"""A storage that is away when a test says so."""

import threading

from holdfast.storage.api import Unreachable
from tests.checkpoint.places import storage_at


class Away:
    """A directory behind a line that is cut while `gone`. See `holdfast.storage.api.Storage`."""

    def __init__(self, top, attempt=1, rank=0, files=None, *, gone=False):
        self.uri = f"{top}/job"
        self.gone = gone
        self.puts = 0
        self.asked = []  # (thread, operation) of those that were tried while it was gone
        self._there = storage_at(top, attempt, rank, files)

    def __getattr__(self, name):
        operate = getattr(self._there, name)

        def try_to(*args):
            if self.gone:
                self.asked.append((threading.current_thread().name, name))
                raise Unreachable("connection refused")
            self.puts += name == "put"
            return operate(*args)

        return try_to

    def close(self):
        self._there.close()
