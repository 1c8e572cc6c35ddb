"""What tests put into storages."""

import random


def noise(size, seed=0):
    """So many bytes that no two places of them are alike."""
    return random.Random(seed).randbytes(size)


class Pieces:
    """A body whose pieces come in the order that is given, and that may fail on its way."""

    def __init__(self, data, ends, order=None, error=None):
        starts = [0, *ends]
        ends = [*ends, len(data)]
        self.size = len(data)
        self._pieces = [(start, memoryview(data)[start:end]) for start, end in zip(starts, ends, strict=True)]
        self._order = range(len(self._pieces)) if order is None else order
        self._error = error

    def pieces(self):
        for each in self._order:
            yield self._pieces[each]
        if self._error is not None:
            raise self._error
