"""Rows, and sequences of writes, made by hypothesis."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum

from hypothesis import strategies as st

from holdfast_coordinator.core.effects import (
    Append,
    Delete,
    DropCommit,
    DropHistory,
    MarkDrained,
    Put,
    SetEpoch,
)
from holdfast_coordinator.core.model import Commit, Entry, Gang, Job, Node, Prepared, Shard, Worker
from holdfast_coordinator.core.state import State

ROWS = (Job, Gang, Worker, Node, Prepared)
JOB_IDS = ("a", "b")
RANKS = (0, 1, 2)

SCALARS = {
    str: st.text(max_size=8),
    int: st.integers(-(2**63), 2**63 - 1),
    bool: st.booleans(),
    float: st.floats(allow_nan=False),
}


def values(hint):
    """Any value of an annotation of model.py."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return st.none() | values(next(a for a in arguments if a is not types.NoneType))
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=2).map(tuple)
    if origin is Mapping:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=2)
    if dataclasses.is_dataclass(hint):
        return items(hint)
    if issubclass(hint, StrEnum):
        return st.sampled_from(hint)
    return SCALARS[hint]


def items(kind):
    """Any dataclass of a kind."""
    hints = typing.get_type_hints(kind)
    return st.builds(kind, **{field.name: values(hints[field.name]) for field in dataclasses.fields(kind)})


_ITEMS = {kind: items(kind) for kind in (*ROWS, Entry, Commit, Shard)}

_SHARDS = st.builds(replace, _ITEMS[Shard], rank=st.sampled_from(RANKS), local_only=st.booleans())
_COMMITS = st.builds(
    replace,
    _ITEMS[Commit],
    gang=st.sampled_from(RANKS),
    shards=st.lists(_SHARDS, min_size=1, max_size=2).map(tuple),
)


@st.composite
def _row(draw, kind):
    """A row under one of few keys, so that rows meet."""
    row, job_id, number = draw(_ITEMS[kind]), draw(st.sampled_from(JOB_IDS)), draw(st.sampled_from(RANKS))
    if kind is Job:
        # A request id belongs to one job; one that came without has an empty one.
        return replace(row, id=job_id, request_id="" if job_id == "a" else f"request of {job_id}")
    if kind is Gang:
        return replace(row, job_id=job_id, index=number)
    if kind is Node:
        return replace(row, name=f"node-{number}")
    return replace(row, job_id=job_id, rank=number)


@st.composite
def batches(draw):
    """What a leader of epoch 1 may commit: lists of writes, each of which makes sense after those before it."""
    state, steps = State(), dict.fromkeys(JOB_IDS, 0)
    made = []
    for size in draw(st.lists(st.integers(0, 8), min_size=1, max_size=5)):
        batch = [] if made else [SetEpoch(1)]
        for _ in range(size):
            write = draw(_write(state, steps))
            state.apply([write])
            batch.append(write)
        made.append(batch)
    return made


@st.composite
def _write(draw, state, steps):
    choices = ("put", "put", "put", "delete", "entry", "commit", "commit", "drop", "drop commit", "drained")
    choice = draw(st.sampled_from(choices))
    there = list(state.rows())
    if choice == "delete" and there:
        return Delete(draw(st.sampled_from(there)))
    if choice == "entry":
        entry = draw(_ITEMS[Entry])
        return Append(replace(entry, seq=state.next_seq, job_id=draw(st.sampled_from(("", *JOB_IDS)))))
    if choice == "commit":
        job_id = draw(st.sampled_from(JOB_IDS))
        steps[job_id] += draw(st.integers(1, 3))
        return Append(replace(draw(_COMMITS), job_id=job_id, step=steps[job_id]))
    if choice in ("drop commit", "drained"):
        # One that is there, often; and also one that never was.
        job_id = draw(st.sampled_from(JOB_IDS))
        key = job_id, draw(st.sampled_from(RANKS)), draw(st.integers(0, steps[job_id]))
        return (
            DropCommit(*key) if choice == "drop commit" else MarkDrained(*key, draw(st.sampled_from(RANKS)))
        )
    if choice == "drop":
        return DropHistory(draw(st.sampled_from(JOB_IDS)))
    return Put(draw(st.sampled_from(ROWS).flatmap(_row)))
