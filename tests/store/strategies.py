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
from holdfast_coordinator.store.api import drained

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


_ITEMS = {kind: items(kind) for kind in (Job, Gang, Worker, Node, Prepared, Entry, Commit, Shard)}

_SHARDS = st.builds(replace, _ITEMS[Shard], local_only=st.booleans())


class _Past:
    """What is there, for the next write to make sense after it."""

    def __init__(self):
        self.state = State()
        self.commits = {}
        self.steps = dict.fromkeys(JOB_IDS, 0)

    def apply(self, write):
        self.state.apply([write])
        match write:
            case Append(Commit() as made):
                self.commits[made.job_id, made.gang, made.step] = made
            case DropHistory(job_id):
                self.commits = {key: made for key, made in self.commits.items() if key[0] != job_id}
            case DropCommit(job_id, gang, step):
                self.commits.pop((job_id, gang, step), None)
            case MarkDrained(job_id, gang, step, rank) if (job_id, gang, step) in self.commits:
                self.commits[job_id, gang, step] = drained(self.commits[job_id, gang, step], rank)

    def newest(self, job_id, gang):
        steps = [step for job, index, step in self.commits if (job, index) == (job_id, gang)]
        return self.commits[job_id, gang, max(steps)] if steps else None

    def has_checkpoints(self, job_id, gang):
        places = (*self.commits, *self.state.at_step)
        return any((job, index) == (job_id, gang) for job, index, _ in places)


@st.composite
def batches(draw):
    """What a leader of epoch 1 may commit: lists of writes, each of which makes sense after those before it."""
    made, past = [], _Past()
    for size in draw(st.lists(st.integers(0, 8), min_size=1, max_size=5)):
        batch = [] if made else [SetEpoch(1)]
        for _ in range(size):
            choice = draw(
                st.sampled_from((_put, _put, _delete, _entry, _prepare, _commit, _commit, _change, _drop))
            )
            for write in choice(draw, past):
                past.apply(write)
                batch.append(write)
        made.append(batch)
    return made


def _put(draw, past):
    kind = draw(st.sampled_from((Job, Gang, Gang, Worker, Node)))
    row, job_id, number = draw(_ITEMS[kind]), draw(st.sampled_from(JOB_IDS)), draw(st.sampled_from(RANKS))
    if kind is Job:
        # A request id belongs to one job; one that came without has an empty one.
        row = replace(row, id=job_id, request_id="" if job_id == "a" else f"request of {job_id}")
    elif kind is Gang:
        row = replace(row, job_id=job_id, index=number, commit=past.newest(job_id, number))
    elif kind is Node:
        row = replace(row, name=f"node-{number}")
    else:
        row = replace(row, job_id=job_id, rank=number)
    yield Put(row)


def _delete(draw, past):
    rows = [
        r for r in past.state.rows() if not isinstance(r, Gang) or not past.has_checkpoints(r.job_id, r.index)
    ]
    if rows:
        yield Delete(draw(st.sampled_from(rows)))


def _entry(draw, past):
    job_id = draw(st.sampled_from(("", *JOB_IDS)))
    yield Append(replace(draw(_ITEMS[Entry]), seq=past.state.next_seq, job_id=job_id))


def _prepare(draw, past):
    """Ranks of a gang prepare a step, beside or in the place of what they had prepared."""
    gangs = sorted(past.state.gangs)
    if not gangs:
        return
    job_id, gang = draw(st.sampled_from(gangs))
    past.steps[job_id] += draw(st.integers(1, 3))
    for rank in draw(st.lists(st.sampled_from(RANKS), min_size=1, unique=True)):
        for before in past.state.held_by(job_id, rank):
            if draw(st.booleans()):
                yield Delete(before)
        shard = replace(draw(_SHARDS), rank=rank)
        yield Put(
            replace(
                draw(_ITEMS[Prepared]),
                job_id=job_id,
                gang=gang,
                rank=rank,
                step=past.steps[job_id],
                shard=shard,
            )
        )


def _commit(draw, past):
    if draw(st.booleans()):
        yield from _prepare(draw, past)
    if not past.state.at_step:
        return
    job_id, gang, _ = draw(st.sampled_from(sorted(past.state.at_step)))
    step = min(step for job, index, step in past.state.at_step if (job, index) == (job_id, gang))
    held = past.state.at_step[job_id, gang, step]
    shards = tuple(held[rank].shard for rank in sorted(held))
    yield Append(replace(draw(_ITEMS[Commit]), job_id=job_id, gang=gang, step=step, shards=shards))
    yield from _gang_of(past, job_id, gang)


def _change(draw, past):
    """One commit is dropped, or a file of it drained: one that is there, often, and also one that never was."""
    job_id, gang = draw(st.sampled_from(JOB_IDS)), draw(st.sampled_from(RANKS))
    steps = [step for step in range(past.steps[job_id] + 1) if (job_id, gang, step) not in past.state.at_step]
    step = draw(st.sampled_from(steps))
    if draw(st.booleans()):
        yield DropCommit(job_id, gang, step)
    else:
        yield MarkDrained(job_id, gang, step, draw(st.sampled_from(RANKS)))
    yield from _gang_of(past, job_id, gang)


def _gang_of(past, job_id, gang):
    """The gang has what is the newest commit now."""
    if (job_id, gang) in past.state.gangs:
        yield Put(replace(past.state.gangs[job_id, gang], commit=past.newest(job_id, gang)))


def _drop(draw, past):
    job_id = draw(st.sampled_from(JOB_IDS))
    for row in list(past.state.rows()):
        if isinstance(row, Gang | Prepared) and row.job_id == job_id:
            yield Delete(row)
    yield DropHistory(job_id)
