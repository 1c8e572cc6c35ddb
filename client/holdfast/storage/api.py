"""What holdfast needs of a place that keeps files: the protocol that every storage keeps.

A storage is a place named by a URI; the names of its files are paths below it, with '/' between their parts. Two
kinds of writing are all there is. `put` makes a file that is whole or not there, under a name that only its writer
uses. `update` changes a small file that several processes may change at once. What either returns from is durable.

Everything here raises OSError when the place cannot do it: FileNotFoundError for what is not there, and
`Unreachable` when the place could not be asked at all, so that it may work later.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from os import SEEK_CUR, SEEK_END, SEEK_SET
from typing import NamedTuple, Protocol, Self


class Unreachable(OSError):  # noqa: N818  it says what the place is
    """The storage could not be asked: no connection, no answer in time, or it said that it is in trouble."""


class StorageError(Exception):
    """The place cannot be what it is asked to be. The message says why, and what to do."""


class Writer(NamedTuple):
    """Who writes: names what is half done, and tells what dead attempts of the same rank left half done."""

    rank: int
    attempt: int


class Entry(NamedTuple):
    """One file that is there."""

    name: str
    size: int
    version: str
    """Changes when the content does: an ETag, or the time of the last change. Empty where there is no such thing."""


class Body(Protocol):
    """What a file is to hold."""

    @property
    def size(self) -> int:
        """How many bytes."""

    def pieces(self) -> Iterator[tuple[int, memoryview]]:
        """Every byte once, as (offset, data), in an order of the body's own.

        The memory of a piece does not change before the whole body is written. It may be asked for again.
        """


class Reader(Protocol):
    """One file, open for reading. Several threads may use it at once."""

    size: int
    path: str | None
    """Where on this machine it can be mapped; None when it is elsewhere."""
    version: str
    """That of its `Entry` when it was opened."""

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer with what stands at `offset`. Raises EOFError when the file ends before."""

    def close(self) -> None:
        """Let go of it."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class Storage(Protocol):
    """A place that keeps files. Several threads may use it at once."""

    uri: str

    def put(self, name: str, body: Body) -> None:
        """Make the file, or replace it. When it returns the file is durable.

        When it raises the file is what it was or what it was to be, whole in either case: an answer may be lost.
        """

    def update(self, name: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """Replace what the file holds by what `change` makes of it, with no other update in between.

        `change` gets None when there is no file, and returns None to leave all as it is. It may be called again,
        with what another process wrote meanwhile.
        """

    def read(self, name: str) -> bytes:
        """What the file holds."""

    def open(self, name: str) -> Reader:
        """Open it for reading."""

    def names(self) -> list[str]:
        """What lies at the top, files and directories; empty when the place does not exist yet."""

    def files(self, under: str = "") -> list[Entry]:
        """Every file below `under`, at any depth, sorted by name."""

    def rename(self, name: str, new: str) -> None:
        """Give a small file another name, in place of what had it."""

    def delete(self, names: Iterable[str]) -> None:
        """Remove files, those that are there. When it returns they stay removed."""

    def close(self) -> None:
        """Let go of everything, and remove what this writer left half done."""


class Bytes:
    """A small file's body."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def pieces(self) -> Iterator[tuple[int, memoryview]]:
        """See `Body`."""
        yield 0, memoryview(self._data)


class Gathered:
    """A body's pieces as one file in order, to be read and sought in; none of them is copied before it is read.

    All of them are asked for before the first is read: a body may know its head only after its tail.
    """

    def __init__(self, body: Body) -> None:
        """Raises ValueError when the pieces leave a gap, overlap, or are not of the body's size."""
        pieces = sorted((piece for piece in body.pieces() if len(piece[1])), key=lambda piece: piece[0])
        end = 0
        for offset, data in pieces:
            if offset != end:
                raise ValueError(f"a body's pieces should go on at byte {end}, not at {offset}")
            end += len(data)
        if end != body.size:
            raise ValueError(f"a body of {body.size} bytes has pieces of {end}")
        self.size = end
        self._offsets = [offset for offset, _ in pieces]
        self._pieces = [data for _, data in pieces]
        self._at = 0

    def views(self, start: int, end: int) -> Iterator[memoryview]:
        """What stands from `start` to `end`, piece by piece."""
        first = max(bisect_right(self._offsets, start) - 1, 0)
        for offset, data in zip(self._offsets[first:], self._pieces[first:], strict=True):
            if offset >= end:
                return
            yield data[max(start - offset, 0) : end - offset]

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes, or what is left."""
        end = self.size if size < 0 else min(self._at + size, self.size)
        data = b"".join(self.views(self._at, end))
        self._at = end
        return data

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        """As any file does."""
        self._at = offset + {SEEK_SET: 0, SEEK_CUR: self._at, SEEK_END: self.size}[whence]
        return self._at

    def tell(self) -> int:
        """As any file does."""
        return self._at


def checked(name: str, place: str) -> str:
    """The name itself. Raises StorageError when it is no name below the place."""
    if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise StorageError(f"{name!r} is no name below {place}")
    return name
