"""A disk that fails: one of the operations at the seam of the storage, before it has an effect or after it."""

import os

OPERATIONS = (
    "make_dir",
    "create",
    "write",
    "sync",
    "close",
    "rename",
    "sync_dir",
    "remove",
    "remove_dir",
)


def error_of(code):
    return OSError(code, os.strerror(code))


class Failing:
    """Stands before the files of a `Recorder` and makes the operation number `at` fail."""

    def __init__(self, base, at, code, after):
        self.failed = None
        self._base = base
        self._at = at
        self._code = code
        self._after = after
        self._count = 0

    def heal(self):
        self._at = None

    def __getattr__(self, name):
        if name not in OPERATIONS:
            raise AttributeError(name)
        operate = getattr(self._base, name)

        def counted(*args):
            self._count += 1
            if self._count - 1 != self._at:
                return operate(*args)
            self.failed = name
            if name == "sync":
                self._base.lose(*args)  # what the kernel could not write back it forgets
            elif name == "close" or self._after:
                operate(*args)
            raise error_of(self._code)

        return counted
