"""Counting a data set: which shards it has, how many samples each, and what pins its content."""

# pathlib is one more import to pay for at every restart
# ruff: noqa: PTH118, PTH123

import io
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import IO, NamedTuple, cast

import xxhash

from holdfast.data.cache import cache_dir
from holdfast.data.digests import Digests
from holdfast.data.errors import DataError
from holdfast.data.formats import SUFFIXES, Header, Seekable, examine, suffix_of
from holdfast.data.prefetch import Prefetch
from holdfast.data.shards import DataIndex, ShardInfo
from holdfast.data.source import Source, is_local, open_place
from holdfast.storage.api import Entry, Reader, Storage

THREADS = 8
"""Shards that are counted at once: most of it is waiting for disk or network."""
_BUFFER = 1 << 16

Tell = Callable[[int, int], None]
"""Hears how many shards are counted, and of how many."""


class _Counted(NamedTuple):
    info: ShardInfo
    header: Header


def count_shards(source: Source, env: Mapping[str, str], tell: Tell = lambda _done, _of: None) -> DataIndex:
    """Count a data set. Reads local shards through, for their checksums; of those elsewhere, headers alone.

    Raises DataError when there is none, when its shards do not go together, or when one is no shard; OSError when
    they cannot be read.
    """
    storage = open_place(source.base, env)
    try:
        entries = _entries(source, storage)
        _check_formats(source, entries)
        digests = Digests(os.path.join(cache_dir(env), "digests"))
        calls: Iterator[Callable[[], _Counted]] = (
            partial(_count_local, source.base, entry, digests)
            if is_local(source.base)
            else partial(_count_remote, storage, entry)
            for entry in entries
        )
        counting = Prefetch(calls, min(THREADS, len(entries)), 2 * THREADS)
        shards: list[ShardInfo] = []
        first: _Counted | None = None
        try:
            while (counted := counting.take()) is not None:
                first = first or counted
                _check_layout(first, counted)
                shards.append(counted.info)
                tell(len(shards), len(entries))
        finally:
            counting.stop()
    finally:
        storage.close()
    return DataIndex(source.uri, tuple(shards))


def _entries(source: Source, storage: Storage) -> list[Entry]:
    if source.names is None:
        return [entry for entry in storage.files() if source.matches(entry.name)]
    entries = []
    known: dict[str, dict[str, Entry]] = {}
    for name in source.names:
        directory = name.rpartition("/")[0]
        if is_local(source.base):
            try:
                found: Entry | None = Entry(name, os.stat(os.path.join(source.base, name)).st_size, "")  # noqa: PTH116
            except FileNotFoundError:
                found = None
        else:
            if directory not in known:
                known[directory] = {entry.name: entry for entry in storage.files(directory)}
            found = known[directory].get(name)
        if found is None:
            raise DataError(f"{source.base}/{name} is not there; name files that are, or their directory")
        entries.append(found)
    return entries


def _check_formats(source: Source, entries: list[Entry]) -> None:
    known = ", ".join(SUFFIXES)
    for entry in entries:
        if not suffix_of(entry.name):
            raise DataError(f"{source.base}/{entry.name} is of no format that is known; known are {known}")
    formats = sorted({suffix_of(entry.name) for entry in entries})
    if not formats:
        raise DataError(f"{source.uri}: there is no shard; shards are files whose names end in {known}")
    if len(formats) > 1:
        raise DataError(
            f"{source.uri} holds shards of several formats, {' and '.join(formats)}; "
            f"say which are meant, e.g. {source.base}/*{formats[0]}"
        )


def _check_layout(first: _Counted, other: _Counted) -> None:
    if first.header.layout != other.header.layout:
        raise DataError(
            f"the shards {first.info.file} and {other.info.file} do not hold the same: "
            f"{_said(first.header)}, and {_said(other.header)}"
        )


def _said(header: Header) -> str:
    return ", ".join(f"{name} {dtype} {shape}".strip() for name, dtype, shape in header.layout)


def _count_local(base: str, entry: Entry, digests: Digests) -> _Counted:
    path = os.path.join(base, entry.name)
    with open(path, "rb") as content:
        header = examine(entry.name, content)
        size = os.fstat(content.fileno()).st_size
    return _Counted(ShardInfo(entry.name, header.samples, size, digests.of(path)), header)


def _count_remote(storage: Storage, entry: Entry) -> _Counted:
    with storage.open(entry.name) as reader:
        digest = f"etag:{reader.version}" if reader.version else ""
        if suffix_of(entry.name) == ".jsonl":
            hashing = _Hashing(reader)
            header = examine(entry.name, io.BufferedReader(hashing, _BUFFER))
            digest = hashing.digest.hexdigest()
        else:
            content = io.BufferedReader(Seekable(reader.read_into, reader.size), _BUFFER)
            header = examine(entry.name, cast("IO[bytes]", content))
        return _Counted(ShardInfo(entry.name, header.samples, reader.size, digest), header)


class _Hashing(Seekable):
    """A file that is read from its beginning to its end, and its checksum."""

    def __init__(self, reader: Reader) -> None:
        super().__init__(reader.read_into, reader.size)
        self.digest = xxhash.xxh3_64()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """See io.RawIOBase."""
        size = super().readinto(buffer)
        self.digest.update(buffer[:size])
        return size
