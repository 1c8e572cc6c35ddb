"""A place that is not here, for data sets: `s3://bucket/...` on a directory, which can become unreachable."""

import hashlib
import sys
import types

import pytest

from holdfast.storage.api import Unreachable
from holdfast.storage.local import LocalReader, LocalStorage


class Elsewhere:
    """What answers for every bucket. Stands in for `holdfast.storage.places`."""

    def __init__(self, top):
        self.top = top
        self.reachable = True
        self.opened = []
        self.answers = None
        """So many calls are still answered; None: all."""

    def open_storage(self, uri, below="", writer=None, env=None):
        assert uri.startswith("s3://")
        return _Bucket(self, str(self.top / uri.removeprefix("s3://")), below, writer)

    def switched(self, uri, env):
        if env.get("USE_S3") == "1" and "://" not in uri:
            return f"s3://{env['S3_BUCKET']}/{uri.strip('/')}"
        return uri

    def ask(self):
        if self.answers is not None:
            self.reachable = self.answers > 0
            self.answers -= 1
        if not self.reachable:
            raise Unreachable("s3 cannot be reached")


class _Bucket(LocalStorage):
    def __init__(self, place, *args):
        super().__init__(*args)
        self._place = place

    def open(self, name):
        self._place.ask()
        self._place.opened.append(name)
        return _Object(self._place, self._path(name))

    def files(self, under=""):
        self._place.ask()
        return [
            entry._replace(version=hashlib.md5(self.read(entry.name)).hexdigest())
            for entry in super().files(under)
        ]


class _Object(LocalReader):
    def __init__(self, place, path):
        super().__init__(path)
        self.path = None
        self._place = place

    def read_into(self, buffer, offset):
        self._place.ask()
        super().read_into(buffer, offset)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    place = Elsewhere(tmp_path / "elsewhere")
    module = types.ModuleType("holdfast.storage.places")
    module.open_storage, module.switched = place.open_storage, place.switched
    monkeypatch.setitem(sys.modules, "holdfast.storage.places", module)
    return place
