"""Dataclass <-> row. Scalars are columns as they are; what is nested goes through JSON, typed by its annotations."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import Table

from holdfast_coordinator.core.effects import Row
from holdfast_coordinator.core.model import Commit, Entry, Gang, Job, Node, Prepared, Worker
from holdfast_coordinator.store import tables

T = TypeVar("T")

TABLES: dict[type, Table] = {
    Job: tables.jobs,
    Gang: tables.gangs,
    Worker: tables.workers,
    Node: tables.nodes,
    Prepared: tables.prepared,
    Entry: tables.entries,
    Commit: tables.commits,
}


def to_row(item: Row | Entry | Commit) -> dict[str, Any]:
    """Write a dataclass as the columns of its table."""
    return {field.name: _plain(getattr(item, field.name)) for field in dataclasses.fields(item)}


def key_of(item: Row | Entry | Commit) -> tuple[Any, ...]:
    """The primary key of its row."""
    return tuple(getattr(item, column.name) for column in TABLES[type(item)].primary_key)


def from_row(kind: type[T], row: Mapping[str, Any]) -> T:
    """Read a dataclass from the columns of its table."""
    return kind(**{name: _typed(hint, row[name]) for name, hint in _hints(kind).items()})


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _typed(hint: Any, value: Any) -> Any:
    """Give a plain value the type that the annotation asks for."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        (inner,) = (argument for argument in arguments if argument is not types.NoneType)
        return None if value is None else _typed(inner, value)
    if origin is tuple:
        return tuple(_typed(arguments[0], item) for item in value)
    if origin is Mapping:
        return {key: _typed(arguments[1], item) for key, item in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return hint(**{name: _typed(inner, value[name]) for name, inner in _hints(hint).items()})
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return hint(value)
    if hint is float:
        return float(value)  # JSON writes 2.0 as it likes
    return value


@cache  # type: ignore[arg-type]
def _hints(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}
