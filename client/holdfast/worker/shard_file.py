"""One rank's file of a checkpoint: a safetensors file whose header also holds what is needed to verify it.

    8 bytes    length of the header, little-endian
    header     JSON: dtype, shape and place of every tensor; under "__metadata__" what holdfast adds, `Content`
    data       the tensors, one after the other

Every CHUNK_BYTES of a tensor have an xxh3_64 of their own, so that a file is verified while it is read, in any order
and by several threads, and a tensor without the rest of the file. One digest pins it all: that of the header.

The digests of the chunks have a fixed length, so the place of the data is known before they are, and the header is
written last: every byte is read from memory once, and is still in the processor's cache when it is written.
"""

import contextlib
import errno
import json
import mmap
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import xxhash

from holdfast.storage.api import Reader, StorageError
from holdfast.worker.errors import CheckpointCorrupt

Arrays = dict[str, np.ndarray[Any, Any]]

FORMAT = 2
CHUNK_BYTES = 8 << 20
PIECE_BYTES = 1 << 20
"""So much is hashed and then written; it has to fit the processor's cache."""

_METADATA_KEY = "holdfast"
DTYPES = {
    "bool": "BOOL", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64", "uint8": "U8", "uint16": "U16",
    "uint32": "U32", "uint64": "U64", "float16": "F16", "float32": "F32", "float64": "F64",
}  # fmt: skip
_NUMPY = {code: np.dtype(name) for name, code in DTYPES.items()}
_HEADER_LENGTH = struct.Struct("<Q")
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own bound
_DIGEST_CHARACTERS = 16
_ALIGNMENT = 8
# The kernel keeps no memory back for what may be written to, or a file larger than memory could not be mapped.
_PRIVATE = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0x4000)
_LOCAL_LANES = 4
_REMOTE_LANES = 8


class Place(NamedTuple):
    """Where a tensor stands in the file, and what it is."""

    dtype: "np.dtype[Any]"
    shape: tuple[int, ...]
    start: int
    """Bytes from the beginning of the file."""
    end: int
    digests: str
    """Of its chunks, 16 hex digits each."""


class ShardBody:
    """The file that holds some arrays. See `holdfast.storage.api.Body`.

    `digest` is the xxh3_64 of the header, known when all pieces were taken.
    """

    def __init__(self, arrays: Arrays, content: dict[str, Any]) -> None:
        """`content` is what the header says beside: JSON. Dtypes must be those of safetensors, arrays contiguous."""
        # The widest first, as safetensors does, so that every tensor is aligned to its own width.
        names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
        self._arrays = {name: arrays[name] for name in names}
        self._content = content
        self._digests = {name: "0" * (_DIGEST_CHARACTERS * _chunks(arrays[name].nbytes)) for name in names}
        self._start = len(self._header())
        self.size = self._start + sum(array.nbytes for array in arrays.values())
        self.digest = ""

    def pieces(self) -> Iterator[tuple[int, memoryview]]:
        """See `holdfast.storage.api.Body`. The header comes last."""
        offset = self._start
        for name, array in self._arrays.items():
            data = bytes_of(array)
            digests = []
            for chunk in range(0, len(data), CHUNK_BYTES):
                digest = xxhash.xxh3_64()
                for at in range(chunk, min(chunk + CHUNK_BYTES, len(data)), PIECE_BYTES):
                    piece = data[at : min(at + PIECE_BYTES, chunk + CHUNK_BYTES)]
                    digest.update(piece)
                    yield offset + at, piece
                digests.append(digest.hexdigest())
            self._digests[name] = "".join(digests)
            offset += len(data)
        header = self._header()
        self.digest = xxhash.xxh3_64_hexdigest(header)
        yield 0, memoryview(header)

    def _header(self) -> bytes:
        content = {**self._content, "chunk_bytes": CHUNK_BYTES, "xxh3_64": self._digests}
        fields: dict[str, Any] = {"__metadata__": {_METADATA_KEY: json.dumps(content, separators=(",", ":"))}}
        offset = 0
        for name, array in self._arrays.items():
            end = offset + array.nbytes
            fields[name] = {
                "dtype": DTYPES[array.dtype.name],
                "shape": array.shape,
                "data_offsets": (offset, end),
            }
            offset = end
        text = json.dumps(fields, separators=(",", ":")).encode()
        padding = -len(text) % _ALIGNMENT
        return _HEADER_LENGTH.pack(len(text) + padding) + text + b" " * padding


class ShardFile:
    """A file that `ShardBody` made, open for reading, its header verified."""

    def __init__(self, reader: Reader, name: str, size: int, digest: str) -> None:
        """`name` is for messages; `size` and `digest` are what was committed. Raises CheckpointCorrupt."""
        self._reader = reader
        self._name = name
        if reader.size != size:
            raise CheckpointCorrupt(name, None, f"{size} bytes", f"{reader.size} bytes")
        header = _read_header(reader, name)
        found = xxhash.xxh3_64_hexdigest(header)
        if found != digest:
            raise CheckpointCorrupt(name, None, f"header xxh3 {digest}", f"header xxh3 {found}")
        fields = json.loads(header[_HEADER_LENGTH.size :])
        self.content: dict[str, Any] = json.loads(fields.pop("__metadata__")[_METADATA_KEY])
        digests = self.content["xxh3_64"]
        self._chunk_bytes: int = self.content["chunk_bytes"]
        self.places = {
            tensor: Place(
                _NUMPY[field["dtype"]],
                tuple(field["shape"]),
                len(header) + field["data_offsets"][0],
                len(header) + field["data_offsets"][1],
                digests[tensor],
            )
            for tensor, field in fields.items()
        }

    @property
    def is_local(self) -> bool:
        """It is a file on this machine, which can be mapped."""
        return self._reader.path is not None

    @property
    def lanes(self) -> int:
        """How many threads read it best."""
        return lanes_for(self._reader)

    def load(self, names: Iterable[str] | None = None, *, lanes: int = 1) -> Arrays:
        """The arrays of these names, or all of them, verified while they are read, by `lanes` threads.

        Raises CheckpointCorrupt, naming the tensor.
        """
        arrays: Arrays = {}
        tasks: list[Callable[[], None]] = []
        for tensor in self.places if names is None else names:
            place = self.places[tensor]
            array = arrays[tensor] = np.empty(place.shape, place.dtype)
            tasks += self.reads(tensor, 0, bytes_of(array))
        run_all(tasks, lanes)
        return arrays

    def reads(self, tensor: str, start: int, into: memoryview) -> Iterator[Callable[[], None]]:
        """What to do, in any order and by several threads, to fill `into` with a tensor's bytes from `start` on.

        Only the chunks that these bytes are in are read, and verified. They raise CheckpointCorrupt.
        """
        end = start + len(into)
        before = start % self._chunk_bytes if into else 0
        for at in range(start - before, end, self._chunk_bytes):
            first, last = max(at, start), min(at + self._chunk_bytes, end)
            yield partial(self._read, tensor, at, first - at, into[first - start : last - start])

    def views(self, names: Iterable[str]) -> Arrays:
        """The arrays of these names as they lie in the file, mapped and not verified. It must be a local one.

        They can be written to, which changes this process's memory alone.
        """
        with open(str(self._reader.path), "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, _PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
        arrays: Arrays = {}
        for tensor in names:
            place = self.places[tensor]
            arrays[tensor] = np.ndarray(place.shape, place.dtype, mapped, place.start)
        return arrays

    def verify(self, names: Iterable[str] | None = None, *, lanes: int = 1) -> None:
        """Read every byte of these tensors, or of all. Raises CheckpointCorrupt, naming the tensor."""
        tasks: list[Callable[[], None]] = []
        for tensor in self.places if names is None else names:
            place = self.places[tensor]
            length = place.end - place.start
            tasks += [partial(self._check, tensor, at, None) for at in range(0, length, self._chunk_bytes)]
        run_all(tasks, lanes)

    def _read(self, tensor: str, at: int, skip: int, into: memoryview) -> None:
        """Read the chunk at `at`, and fill `into` with what stands in it after `skip` bytes."""
        place = self.places[tensor]
        length = min(self._chunk_bytes, place.end - place.start - at)
        if len(into) == length:
            self._check(tensor, at, into)
        else:
            chunk = memoryview(bytearray(length))
            self._check(tensor, at, chunk)
            into[:] = chunk[skip : skip + len(into)]

    def _check(self, tensor: str, at: int, into: memoryview | None) -> None:
        """Read the chunk at `at` of a tensor, and compare its digest."""
        place = self.places[tensor]
        length = min(self._chunk_bytes, place.end - place.start - at)
        step = PIECE_BYTES if self._reader.path else length  # a request for each piece would be slow
        scratch = memoryview(bytearray(min(step, length))) if into is None else None
        digest = xxhash.xxh3_64()
        for start in range(0, length, step):
            end = min(start + step, length)
            piece = into[start:end] if scratch is None else scratch[: end - start]  # type: ignore[index]
            with blaming(self._name, tensor, f"bytes {at} to {at + length} of the tensor"):
                self._reader.read_into(piece, place.start + at + start)
            digest.update(piece)
        number = at // self._chunk_bytes * _DIGEST_CHARACTERS
        expected, found = place.digests[number : number + _DIGEST_CHARACTERS], digest.hexdigest()
        if found != expected:
            where = f"in bytes {at} to {at + length} of the tensor"
            raise CheckpointCorrupt(self._name, tensor, f"xxh3 {expected} {where}", found)


@contextlib.contextmanager
def blaming(name: str, tensor: str | None, expected: str) -> Iterator[None]:
    """Raise CheckpointCorrupt for what shows that a file is not what was committed: it is gone, torn or unreadable."""
    try:
        yield
    except FileNotFoundError:
        raise CheckpointCorrupt(name, tensor, expected, "no file") from None
    except (EOFError, StorageError) as error:
        raise CheckpointCorrupt(name, tensor, expected, str(error)) from None
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise CheckpointCorrupt(name, tensor, expected, str(error)) from None


def lanes_for(reader: Reader) -> int:
    """How many threads read a file best."""
    return min(_LOCAL_LANES, os.cpu_count() or 1) if reader.path else _REMOTE_LANES


def bytes_of(array: np.ndarray[Any, Any]) -> memoryview:
    """The bytes of a contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8).data


def run_all(tasks: Sequence[Callable[[], None]], lanes: int) -> None:
    """Run every task, by so many threads at once. Raises the first error; tasks not begun by then are not run."""
    todo = iter(tasks)
    errors: list[BaseException] = []

    def work() -> None:
        for task in todo:  # the interpreter lock makes taking the next one atomic
            try:
                task()
            except BaseException as error:  # noqa: BLE001  raised where it was asked for
                errors.append(error)
            if errors:
                return

    threads = [
        Thread(target=work, name="holdfast-lane", daemon=True) for _ in range(min(lanes, len(tasks)) - 1)
    ]
    for thread in threads:
        thread.start()
    work()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _chunks(length: int) -> int:
    return -(-length // CHUNK_BYTES)


def _read_header(reader: Reader, name: str) -> bytes:
    """The 8 bytes of length and the JSON. Raises CheckpointCorrupt when they can't be."""
    length = _HEADER_LENGTH.size
    if reader.size >= length:
        prefix = bytearray(length)
        reader.read_into(memoryview(prefix), 0)
        length += _HEADER_LENGTH.unpack(prefix)[0]
    if not reader.size >= length <= _MAX_HEADER_BYTES:
        raise CheckpointCorrupt(name, None, f"a header of {length} bytes", f"a file of {reader.size} bytes")
    header = bytearray(length)
    reader.read_into(memoryview(header), 0)
    return bytes(header)
