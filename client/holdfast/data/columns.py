"""What a shard holds when it is open, and batches made of it.

An array is kept as rows of bytes. Rows of several shards then go into a batch by plain copying, whatever their type
and wherever they begin in their file (numpy would copy the whole of an array that is not aligned).
"""

import json
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from holdfast.data.errors import DataError
from holdfast.data.memory import Memory

Array = np.ndarray[Any, Any]
Indices = np.ndarray[Any, np.dtype[np.int64]]


WIDE = 4096
"""Rows of so many bytes are copied one by one: what Python takes for it is less than copying them twice."""

_scratch = threading.local()


class Column(NamedTuple):
    """One array of a shard. What it looks like is in `dtype` and `shape`, that of a row."""

    rows: Array
    """A row for each sample: of bytes, or of Python objects when `dtype` is that."""
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Arrays(NamedTuple):
    """A shard of arrays of one length. A single array that has no name is called ""."""

    file: str
    columns: dict[str, Column]
    held_bytes: int
    """Memory that it takes for as long as it is open; 0 when it is mapped."""


class Lines(NamedTuple):
    """A shard of JSON, one object a line."""

    file: str
    text: memoryview
    starts: Indices
    ends: Indices
    held_bytes: int


Content = Arrays | Lines


class Part(NamedTuple):
    """Rows of one shard."""

    content: Content
    rows: Indices


def column(array: Array) -> Column:
    """A column of an array that is C-contiguous, at any address."""
    shape = array.shape[1:]
    width = array.dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    if array.dtype.hasobject:
        return Column(array, array.dtype, shape)
    content = array.reshape(-1).view(np.uint8).data  # of times there is no buffer
    rows: Array = np.ndarray((len(array),), f"V{width}", content, strides=(width,))
    return Column(rows, array.dtype, shape)


def assemble(parts: Sequence[Part], places: Indices | None, memory: Memory) -> Any:
    """The rows of all parts, of which there is at least one; the i-th of them, counted through, at places[i].

    Without `places` they stay in the order in which they come. Gives what the shards hold: an array, a dict of
    arrays, or a list of dicts. Arrays are made in `memory`.
    """
    first = parts[0].content
    if isinstance(first, Lines):
        found = [_line(part.content, row) for part in parts for row in part.rows.tolist()]  # type: ignore[arg-type]
        if places is None:
            return found
        result: list[Any] = [None] * len(found)
        for place, line in zip(places.tolist(), found, strict=True):
            result[place] = line
        return result
    _compare(parts)
    arrays = {name: _join(name, parts, places, memory) for name in first.columns}
    return arrays[""] if arrays.keys() == {""} else arrays


def cut(batches: Any, start: int, stop: int) -> Any:
    """A batch of what `assemble` made of several."""
    if isinstance(batches, dict):
        return {name: array[start:stop] for name, array in batches.items()}
    return batches[start:stop]


def _compare(parts: Sequence[Part]) -> None:
    """Rows are copied without a look at them, so that they must be of one kind."""
    one, *others = ({name: each[1:] for name, each in part.content.columns.items()} for part in parts)  # type: ignore[union-attr]
    for other, part in zip(others, parts[1:], strict=True):
        if other != one:
            files = f"{parts[0].content.file} and {part.content.file}"
            raise DataError(f"{files} hold arrays of different names, types or shapes: {one} and {other}")


def _join(name: str, parts: Sequence[Part], places: Indices | None, memory: Memory) -> Array:
    columns: list[Column] = [part.content.columns[name] for part in parts]  # type: ignore[union-attr]
    like = columns[0]
    size = sum(len(part.rows) for part in parts)
    joined = memory.rows(name, size, like.rows.dtype)
    if places is None:
        _group(columns, parts, joined)
    elif like.dtype.hasobject or like.rows.dtype.itemsize < WIDE:
        grouped = _scratch_for(like.rows.dtype, size)
        _group(columns, parts, grouped)
        joined[places] = grouped
    else:
        _place(columns, parts, places, joined)
    return joined.view(like.dtype).reshape(size, *like.shape)


def _group(columns: Sequence[Column], parts: Sequence[Part], into: Array) -> None:
    """Copy the rows in the order in which they come, those of a shard at once."""
    start = 0
    for each, part in zip(columns, parts, strict=True):
        stop = start + len(part.rows)
        # clip: with "raise" numpy would go by way of a buffer, and every row is known to be there
        each.rows.take(part.rows, out=into[start:stop], mode="clip")
        start = stop


def _place(columns: Sequence[Column], parts: Sequence[Part], places: Indices, into: Array) -> None:
    """Copy the rows one by one, each to its place."""
    width = into.dtype.itemsize
    target = into.view(np.uint8).reshape(-1, width)
    place = iter(places.tolist())
    for each, part in zip(columns, parts, strict=True):
        rows = each.rows.view(np.uint8).reshape(-1, width)
        for row in part.rows.tolist():
            target[next(place)] = rows[row]


def _scratch_for(dtype: np.dtype[Any], size: int) -> Array:
    """Memory of this thread's, touched before, for what does not leave it."""
    if dtype.hasobject:
        return np.empty(size, dtype)
    width = dtype.itemsize
    have: Array | None = getattr(_scratch, "memory", None)
    if have is None or len(have) < size * width:
        have = _scratch.memory = np.empty(size * width, np.uint8)
    return have[: size * width].view(dtype)


def _line(lines: Lines, row: int) -> Any:
    text = lines.text[lines.starts[row] : lines.ends[row]]
    try:
        return json.loads(bytes(text))
    except ValueError as error:
        raise DataError(
            f"{lines.file}: the {row + 1}. line that is not blank is no JSON: {error}; write one object a line"
        ) from error
