"""Dataclass <-> row.

Scalars are columns as they are; what is nested goes into JSON by its annotations, but for what has a table itself:
the row of a commit has none of its shards, that of a gang has the step of its commit. Reading is strict: a value
that is not of its annotated type, or a field too few or too many, is a ValueError, never a guess. Its message
holds no values: a job's environment may be secret.
"""

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar

from sqlalchemy import Table

from holdfast_coordinator.core.effects import Row
from holdfast_coordinator.core.model import Commit, Entry, Gang, Job, Node, Prepared, Worker
from holdfast_coordinator.store import tables

T = TypeVar("T")

Item = Row | Entry | Commit
Convert = Callable[[Any], Any]

TABLES: dict[type, Table] = {
    Job: tables.jobs,
    Gang: tables.gangs,
    Worker: tables.workers,
    Node: tables.nodes,
    Prepared: tables.shards,
    Entry: tables.entries,
    Commit: tables.commits,
}


def key_of(item: Item) -> Any:
    """The primary key of its row: a tuple, or the value alone where it is one column."""
    return _KEYS[type(item)](item)


def to_row(item: Item) -> dict[str, Any]:
    """Write a dataclass as the columns of its table."""
    row: dict[str, Any] = _WRITERS[type(item)](item)
    return row


def from_row(kind: type[T], row: Mapping[Any, Any], **given: object) -> T:
    """Read a dataclass from the columns of its table, and what was read from others. Raises ValueError."""
    item: T = _READERS[kind]({**row, **given})
    return item


@cache
def _fields(kind: Any) -> dict[str, Any]:
    """The fields of a dataclass and their annotations."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _of_optional(hint: Any) -> Any:
    """X of `X | None`."""
    (inner,) = (argument for argument in typing.get_args(hint) if argument is not types.NoneType)
    return inner


@cache
def _writer(hint: Any) -> Convert | None:
    """Make what writes a value of this annotation as plain data; None where it is plain already."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        some = _writer(_of_optional(hint))
        return some and (lambda value: None if value is None else some(value))
    if origin is tuple:
        element = _writer(arguments[0])
        return list if element is None else lambda value: [element(item) for item in value]
    if origin is Mapping:
        return dict
    if dataclasses.is_dataclass(hint):
        return _dataclass_writer(hint)
    if issubclass(hint, StrEnum):
        return attrgetter("value")
    return None


def _dataclass_writer(kind: Any) -> Convert:
    hints = {name: hint for name, hint in _fields(kind).items() if name != _FROM_OTHERS.get(kind)}
    names = tuple(hints)
    writers = {name: writer for name, hint in hints.items() if (writer := _writer(hint))}
    values_of = attrgetter(*names)

    def write(value: Any) -> dict[str, Any]:
        plain = dict(zip(names, values_of(value), strict=True))
        for name, writer in writers.items():
            plain[name] = writer(plain[name])
        return plain

    return write


@cache
def _reader(hint: Any) -> Convert:
    """Make what reads plain data as a value of this annotation."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        some = _reader(_of_optional(hint))
        return lambda value: None if value is None else some(value)
    if origin is tuple:
        element = _reader(arguments[0])
        return lambda value: tuple([element(item) for item in _checked(list, value)])
    if origin is Mapping:
        entry = _reader(arguments[1])
        return lambda value: {key: entry(item) for key, item in _checked(dict, value).items()}
    if dataclasses.is_dataclass(hint):
        return _dataclass_reader(hint)
    if issubclass(hint, StrEnum):
        member: Convert = hint
        return member
    if hint is float:
        # JSON knows one kind of number: a database may give 2 for 2.0.
        return lambda value: float(value) if type(value) is int else _checked(float, value)
    return lambda value: _checked(hint, value)


def _gang_writer() -> Convert:
    write_others = _dataclass_writer(Gang)

    def write(gang: Gang) -> dict[str, Any]:
        row: dict[str, Any] = write_others(gang)
        row["commit"] = gang.commit.step if gang.commit is not None else None
        return row

    return write


def _dataclass_reader(kind: Any) -> Convert:
    given = _FROM_OTHERS.get(kind)
    readers = {name: _as_it_is if name == given else _reader(hint) for name, hint in _fields(kind).items()}

    def read(value: Any) -> Any:
        if not isinstance(value, dict) or value.keys() != readers.keys():
            raise ValueError(f"it has not the fields of a {kind.__name__}")
        return kind(*[reader(value[name]) for name, reader in readers.items()])

    return read


def _as_it_is(value: Any) -> Any:
    return value


def _checked(kind: Any, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{type(value).__name__} in place of {kind.__name__}")
    return value


_FROM_OTHERS: dict[type, str] = {Gang: "commit", Commit: "shards"}
"""The field that is read from other tables."""
_KEYS: dict[type, Convert] = {
    kind: attrgetter(*(column.name for column in table.primary_key)) for kind, table in TABLES.items()
}
_WRITERS = {kind: _dataclass_writer(kind) for kind in TABLES} | {Gang: _gang_writer()}
_READERS = {kind: _dataclass_reader(kind) for kind in TABLES}
