"""The formats of shards: how many samples there are, and opening them. Nothing is ever unpickled.

| file         | a sample is                                             | a batch is          |
|--------------|---------------------------------------------------------|---------------------|
| .npy         | a row of the array                                      | an array            |
| .npz         | a row of each of its arrays                             | a dict of arrays    |
| .safetensors | a row of each of its tensors                            | a dict of arrays    |
| .jsonl       | a line that is not blank                                | a list of dicts     |
| .parquet     | a row of the table                                      | a dict of arrays    |

Counting reads headers, but for jsonl, whose lines are counted. What lies uncompressed in its file is mapped when it is
opened; compressed npz and parquet are decoded into memory.
"""

import io
import json
import mmap
import re
import threading
from collections.abc import Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from holdfast.data.columns import Arrays, Column, Content, Lines, column
from holdfast.data.errors import DataError

if TYPE_CHECKING:
    from zipfile import ZipInfo

SUFFIXES = (".npy", ".npz", ".safetensors", ".jsonl", ".parquet")

_BROKEN = (ValueError, KeyError, TypeError, EOFError)
_MAX_HEADER_BYTES = 100_000_000
_LOCAL_HEADER = 30  # of a zip member, before its name
_LENGTHS = {(1, 0): 2, (2, 0): 4}
"""By version of npy: of so many bytes is what says how long the header is."""
_HEADER = re.compile(
    rb"\{'descr': '([^'\\]+)', 'fortran_order': (True|False), 'shape': \(([0-9]+,|[0-9]+(?:, [0-9]+)+|)\), \}\s*"
)
_evaluating = threading.Lock()
_DTYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8",
    "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8",
}  # fmt: skip


class Header(NamedTuple):
    """What a shard says that it holds."""

    samples: int
    layout: tuple[tuple[str, str, tuple[int, ...]], ...]
    """Name, dtype and shape of a row of each array; the same in all shards of a data set."""


class _Layout(NamedTuple):
    """An array in a file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int


def suffix_of(file: str) -> str:
    """The format of a file, by its name; empty when it is no shard."""
    base = file.rpartition("/")[2]
    return next((suffix for suffix in SUFFIXES if base.endswith(suffix) and base[0] not in "._"), "")


def examine(file: str, content: IO[bytes]) -> Header:
    """Count the samples of a shard. Raises DataError when it is none."""
    with _Naming(file):
        match suffix_of(file):
            case ".npy":
                return _header(file, {"": _npy(file, content)})
            case ".npz":
                return _header(file, {name: _npy(file, member) for name, member in _members(content)})
            case ".safetensors":
                return _header(file, _safetensors(file, content))
            case ".jsonl":
                return Header(sum(len(starts) for starts, _ in _line_places(content)), ())
            case _:
                return _examine_parquet(file, content)


def open_shard(file: str, path: str) -> Content:
    """Open a shard that lies at `path`. Raises DataError when it is none, OSError when it cannot be read."""
    with _Naming(file), open(path, "rb") as content:  # noqa: PTH123  pathlib is one more import to pay for
        suffix = suffix_of(file)
        if suffix == ".parquet":
            return _open_parquet(file, path)
        mapped = memoryview(mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ))
        match suffix:
            case ".npy":
                return _mapped(file, mapped, {"": _npy(file, content)})
            case ".npz":
                return _open_npz(file, content, mapped)
            case ".safetensors":
                return _mapped(file, mapped, _safetensors(file, content))
            case _:
                places = list(_line_places(content))
                starts, ends = (np.concatenate([place[side] for place in places]) for side in (0, 1))
                return Lines(file, mapped, starts, ends, starts.nbytes + ends.nbytes)


class _Naming:
    """Says which file it was that could not be understood."""

    def __init__(self, file: str) -> None:
        self._file = file

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None and (isinstance(error, _BROKEN) or _is_of_zip(error)):
            raise DataError(
                f"{self._file} is no {suffix_of(self._file)[1:]} file that can be read: {error}"
            ) from error


def _is_of_zip(error: BaseException) -> bool:
    import zipfile
    import zlib

    return isinstance(error, zipfile.BadZipFile | zlib.error)


def _header(file: str, arrays: Mapping[str, _Layout]) -> Header:
    if not arrays:
        raise DataError(f"{file} holds no array")
    lengths = {name: layout.shape[0] for name, layout in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{file}: its arrays must be of one length, not {lengths}")
    layout = tuple(sorted((name, each.dtype.str, each.shape[1:]) for name, each in arrays.items()))
    return Header(next(iter(lengths.values())), layout)


def _mapped(file: str, mapped: memoryview, arrays: Mapping[str, _Layout]) -> Arrays:
    return Arrays(file, {name: _map(mapped, each) for name, each in arrays.items()}, 0)


def _map(mapped: memoryview, layout: _Layout) -> Column:
    return column(np.ndarray(layout.shape, layout.dtype, mapped, layout.offset))


# npy and npz


def _npy(file: str, content: IO[bytes]) -> _Layout:
    """Read the header of an array. Its data begin where the reading has stopped."""
    version = np.lib.format.read_magic(content)
    if version not in _LENGTHS:
        raise DataError(f"{file} is npy of version {version[0]}.{version[1]}; save it as 1.0 or 2.0")
    size = content.read(_LENGTHS[version])
    text = content.read(int.from_bytes(size, "little"))
    shape, fortran, dtype = _npy_header(version, size + text)
    if dtype.hasobject:
        raise DataError(
            f"{file} holds Python objects, which are never unpickled; save it as numbers, or jsonl"
        )
    if not shape or (fortran and len(shape) > 1):
        what = "is in Fortran's order" if shape else "is a single number"
        raise DataError(
            f"{file}: an array {what}; save np.ascontiguousarray of one whose rows are the samples"
        )
    if dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64)) == 0:
        raise DataError(f"{file}: its rows are empty; remove the array, or give its rows something to hold")
    return _Layout(dtype, shape, content.tell())


def _npy_header(version: tuple[int, int], header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether it is in Fortran's order, and dtype.

    numpy reads a header as Python code, which Python 3.11 cannot do in several threads at once: sometimes it raises
    SystemError. So what numpy writes is read here, and the rest, such as fields with names, by one thread at a time.
    """
    found = _HEADER.fullmatch(header, _LENGTHS[version])
    if found is not None:
        descr, fortran, shape = (group.decode() for group in found.groups())
        return tuple(int(n) for n in shape.split(",") if n.strip()), fortran == "True", np.dtype(descr)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with _evaluating:
        return read(io.BytesIO(header))


def _members(content: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    import zipfile

    with zipfile.ZipFile(content) as archive:
        for info in archive.infolist():
            with archive.open(info) as member:
                yield info.filename.removesuffix(".npy"), member


def _open_npz(file: str, content: IO[bytes], mapped: memoryview) -> Arrays:
    import zipfile

    columns: dict[str, Column] = {}
    held = 0
    with zipfile.ZipFile(content) as archive:
        for info in archive.infolist():
            with archive.open(info) as member:
                layout = _npy(file, member)
                name = info.filename.removesuffix(".npy")
                if info.compress_type == zipfile.ZIP_STORED:
                    columns[name] = _map(mapped, layout._replace(offset=_begin(mapped, info) + layout.offset))
                    continue
                array: np.ndarray[Any, Any] = np.empty(layout.shape, layout.dtype)
                _fill(member, array.reshape(-1).view(np.uint8).data)
                columns[name] = column(array)
                held += array.nbytes
    return Arrays(file, columns, held)


def _begin(mapped: memoryview, info: "ZipInfo") -> int:
    """Where the data of a member begin that is stored as it is."""
    head = info.header_offset
    lengths = mapped[head + _LOCAL_HEADER - 4 : head + _LOCAL_HEADER]
    return head + _LOCAL_HEADER + sum(int.from_bytes(lengths[at : at + 2], "little") for at in (0, 2))


def _fill(content: IO[bytes], buffer: memoryview) -> None:
    while buffer:
        data = content.read(min(len(buffer), 1 << 20))
        if not data:
            raise EOFError("it ends too early")
        buffer[: len(data)], buffer = data, buffer[len(data) :]


# safetensors


def _safetensors(file: str, content: IO[bytes]) -> dict[str, _Layout]:
    """Read the header. Its format is small enough, and the library would load what it is asked for."""
    length = int.from_bytes(content.read(8), "little")
    if not 2 <= length <= _MAX_HEADER_BYTES:
        raise ValueError(f"its header would have {length} bytes")
    arrays = {}
    for name, each in json.loads(content.read(length)).items():
        if name == "__metadata__":
            continue
        if each["dtype"] not in _DTYPES:
            known = ", ".join(_DTYPES)
            raise DataError(
                f"{file}: the tensor {name!r} is of {each['dtype']}, which numpy has not; use one of {known}"
            )
        dtype, shape = np.dtype(_DTYPES[each["dtype"]]), tuple(each["shape"])
        begin, end = each["data_offsets"]
        if end - begin != dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
            raise ValueError(f"the tensor {name!r} is of {end - begin} bytes, which do not fit its shape")
        if not shape:
            raise DataError(
                f"{file}: the tensor {name!r} is a single number; a sample is a row of each tensor"
            )
        arrays[name] = _Layout(dtype, shape, 8 + length + begin)
    return arrays


# jsonl


def _line_places(content: IO[bytes]) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Begins and ends of the lines that are not blank, some at a time."""
    begin = offset = 0
    last = b""
    while data := content.read(1 << 23):
        (found,) = np.nonzero(np.frombuffer(data, np.uint8) == ord("\n"))
        if len(found):
            ends = found + offset
            starts = np.concatenate([[begin], ends[:-1] + 1])
            yield _not_blank(data, last, offset, starts, ends)
            begin = int(ends[-1]) + 1
        last = data[-1:]
        offset += len(data)
    if offset > begin and not (offset - begin == 1 and last == b"\r"):
        yield np.array([begin]), np.array([offset])


def _not_blank(
    data: bytes, last: bytes, offset: int, starts: np.ndarray[Any, Any], ends: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Leave out lines with nothing in them. `last` is the byte before `data`, which begin at `offset`."""
    before = np.frombuffer(last + data if last else b"\n" + data, np.uint8)[ends - offset]
    ends = ends - (before == ord("\r"))
    kept = ends > starts
    return starts[kept], ends[kept]


# parquet


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            "parquet shards need pyarrow, which is not installed: pip install 'holdfast[parquet]'"
        ) from error
    return pyarrow.parquet


def _examine_parquet(file: str, content: IO[bytes]) -> Header:
    found = _parquet().ParquetFile(content)
    layout = tuple((field.name, str(field.type), ()) for field in found.schema_arrow)
    if not layout:
        raise DataError(f"{file} holds no column")
    return Header(found.metadata.num_rows, layout)


def _open_parquet(file: str, path: str) -> Arrays:
    table = _parquet().read_table(path, partitioning=None)
    columns = {}
    held = 0
    for field in table.schema:
        found = table[field.name]
        array = np.array(found.to_numpy())
        if found.null_count and array.dtype != found.slice(0, 0).to_numpy().dtype:
            raise DataError(
                f"{file}: the column {field.name!r} of type {field.type} has nulls, for which numpy has no value; "
                "fill them, or make it a column of floating point"
            )
        columns[field.name] = column(array)
        held += array.nbytes
    return Arrays(file, columns, held)


class Seekable(io.RawIOBase):
    """Part of a file that is not here, as a file: for what reads a little here and there."""

    def __init__(self, read_into: Any, size: int) -> None:
        """`read_into(buffer, offset)` fills the buffer with what stands at the offset."""
        self._read_into = read_into
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """See io.RawIOBase."""
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        """See io.RawIOBase."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """See io.RawIOBase."""
        view = memoryview(buffer).cast("B")
        size = max(0, min(len(view), self._size - self._at))
        if size:
            self._read_into(view[:size], self._at)
        self._at += size
        return size
