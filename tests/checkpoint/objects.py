"""A store of objects in memory of which requests fail: not done, done and the answer lost, or its client dead."""

from holdfast.storage.api import Entry, Unreachable


class Died(BaseException):
    """The process that asked is no more."""


class Objects:
    """What is there, and what one request after another may do to it, as an S3 server would."""

    def __init__(self):
        self.there = {}
        self.count = 0
        self.at = None
        self.fault = None

    def break_at(self, at, fault):
        """From now on request number `at` is "lost", its "answer lost", or its client "dies before" or "after" it."""
        self.count, self.at, self.fault = 0, at, fault

    @property
    def broke(self):
        return self.at is not None and self.count > self.at

    def request(self, effect):
        self.count += 1
        if self.at is None or self.count - 1 != self.at:
            return effect()
        if self.fault == "lost":
            raise Unreachable("timed out")
        if self.fault == "dies before":
            raise Died
        result = effect()
        if self.fault == "answer lost":
            raise Unreachable("timed out")
        assert result is None or self.fault == "dies after"
        raise Died


class ObjectReader:
    path = None

    def __init__(self, data):
        self._data = data
        self.size = len(data)

    def read_into(self, buffer, offset):
        if offset + len(buffer) > self.size:
            raise EOFError(f"it ends at byte {self.size}")
        buffer[:] = self._data[offset : offset + len(buffer)]

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class ObjectStorage:
    """See `holdfast.storage.api.Storage`. Every change of one object is one request, and there is no rename."""

    uri = "objects://place"

    def __init__(self, objects):
        self._objects = objects

    def put(self, name, body):
        data = bytearray(body.size)
        for offset, piece in body.pieces():
            data[offset : offset + len(piece)] = piece
        self._objects.request(lambda: self._objects.there.update({name: bytes(data)}))

    def update(self, name, change):
        after = change(self._objects.there.get(name))
        if after is not None:
            self._objects.request(lambda: self._objects.there.update({name: after}))

    def read(self, name):
        try:
            return self._objects.there[name]
        except KeyError:
            raise FileNotFoundError(name) from None

    def open(self, name):
        return ObjectReader(self.read(name))

    def names(self):
        return sorted({name.partition("/")[0] for name in self._objects.there})

    def files(self, under=""):
        prefix = f"{under}/" if under else ""
        there = sorted(self._objects.there.items())
        return [Entry(name, len(data), "") for name, data in there if name.startswith(prefix)]

    def rename(self, name, new):
        data = self.read(name)
        self._objects.request(lambda: self._objects.there.update({new: data}))
        self.delete([name])

    def delete(self, names):
        for name in list(names):
            self._objects.request(lambda name=name: self._objects.there.pop(name, None) and None)

    def close(self):
        pass
