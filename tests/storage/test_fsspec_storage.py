"""What is particular to file systems that fsspec brings."""

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from holdfast.storage.api import Bytes, Unreachable, Writer
from holdfast.storage.fsspec_storage import FsspecStorage
from tests.storage.bodies import Pieces, noise
from tests.storage.object_store import ObjectStore, Stream


class LibraryError(Exception):
    """What a client library raises in words of its own."""


class Moody(MemoryFileSystem):
    """Fails as it is told; moves nothing onto what is there, as HDFS does."""

    protocol = "moody"
    store = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    error = None

    def _open(self, *args, **options):
        if self.error is not None:
            raise self.error
        return super()._open(*args, **options)

    def mv(self, old, new, **options):
        if self.exists(new):
            raise FileExistsError(new)
        self.cp_file(old, new)
        self.rm_file(old)


@pytest.fixture
def moody(monkeypatch):
    monkeypatch.setitem(_registry, "moody", Moody)
    yield FsspecStorage("moody://place")
    Moody.store.clear()
    Moody.pseudo_dirs[:] = [""]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionResetError("sig=secret"), Unreachable),
        (TimeoutError("sig=secret"), Unreachable),
        (OSError(113, "no route"), Unreachable),
        (LibraryError("https://account/?sig=secret"), Unreachable),
        (PermissionError(13, "not yours"), PermissionError),
        (OSError(28, "full"), OSError),
    ],
)
def test_trouble_is_told_in_the_words_of_all_storages(moody, monkeypatch, error, kind):
    moody.put("file", Bytes(b"1"))
    monkeypatch.setattr(Moody, "error", error)
    with pytest.raises(kind) as caught:
        moody.put("file", Bytes(b"2"))
    assert "secret" not in str(caught.value)
    monkeypatch.undo()
    assert moody.read("file") == b"1"
    assert moody.names() == ["file"]


def test_a_move_that_replaces_nothing(moody):
    moody.put("file", Bytes(b"1"))
    moody.put("file", Bytes(b"2"))
    moody.put("other", Bytes(b"3"))
    moody.rename("other", "file")
    assert moody.read("file") == b"3"
    assert len(Moody.store) == 1


def test_a_directory_that_is_pruned_while_it_is_written_to(tmp_path):
    storage, other = (FsspecStorage(f"file://{tmp_path}") for _ in range(2))
    other.put("a/old", Bytes(b"1"))

    class Slow(Pieces):
        def pieces(self):
            yield from super().pieces()
            other.delete(["a/old"])

    storage.put("a/new", Slow(b"2", []))
    assert storage.read("a/new") == b"2"


def test_an_attempt_removes_what_those_before_it_left(tmp_path):
    left = ["tmp.rank-00003.attempt-1.ab", "tmp.rank-00003.attempt-2.cd"]
    others = ["tmp.rank-00003.attempt-10.ab", "tmp.rank-00030.attempt-1.ab", "tmp.process-1.ab", "file"]
    for name in left + others:
        (tmp_path / name).write_bytes(b"half")
    storage = FsspecStorage(f"file://{tmp_path}", writer=Writer(3, 2))
    assert len(list(tmp_path.iterdir())) == 6
    storage.put("new", Bytes(b"1"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "new"])
    assert [entry.name for entry in storage.files()] == ["file", "new"]


def test_a_failure_halfway_leaves_no_temporary_file(tmp_path, monkeypatch):
    def full(fd):
        raise OSError(28, "full")

    storage = FsspecStorage(f"file://{tmp_path}")
    with pytest.raises(RuntimeError):
        storage.put("file", Pieces(b"12", [1], error=RuntimeError()))
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="full"):
        storage.put("file", Bytes(b"12"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("at", range(3))
def test_a_stream_that_breaks_makes_no_object(fsspec_objects_place, monkeypatch, at):
    """Closing it would make one of what has come."""
    storage = fsspec_objects_place.open("job-1")
    storage.put("file", Bytes(b"old"))
    sent = []
    upload = Stream._upload_chunk

    def breaks(stream, final=False):
        sent.append(final)
        if len(sent) > at:
            raise ConnectionResetError
        return upload(stream, final)

    monkeypatch.setattr(Stream, "_upload_chunk", breaks)
    with pytest.raises(Unreachable):
        storage.put("file", Bytes(noise(9 << 20)))
    assert storage.read("file") == b"old"
    assert len(ObjectStore.objects) == 1
