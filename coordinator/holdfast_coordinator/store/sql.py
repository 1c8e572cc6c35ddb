"""Reads and writes the tables over a connection. Nothing here is of one database; what is, is handed in."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from sqlalchemy import Connection, Executable, Table, and_, bindparam, delete, insert, select, tuple_, update

from holdfast_coordinator.core.effects import (
    Append,
    Delete,
    DropCommit,
    DropHistory,
    MarkDrained,
    Put,
    Row,
    SetEpoch,
    Write,
)
from holdfast_coordinator.core.model import Commit, Entry, Gang, Job, Node, Prepared, Worker
from holdfast_coordinator.core.state import Settings, State
from holdfast_coordinator.store.api import drained, fence
from holdfast_coordinator.store.rows import TABLES, Item, from_row, key_of, to_row
from holdfast_coordinator.store.tables import commits, entries, leader, prepared

Upsert = Callable[[Table], Executable]
"""Makes the statement that inserts rows of a table or replaces those with their keys: every database has its own."""

CommitKey = tuple[str, int, int]
"""Of a commit: its job, step and gang."""

_KINDS: tuple[type[Row], ...] = (Job, Gang, Worker, Node, Prepared)
_EPOCH = select(leader.c.epoch)
_NEWEST_SEQ = select(entries.c.seq).order_by(entries.c.seq.desc()).limit(1)


def read_state(connection: Connection, settings: Settings) -> State:
    """Everything. Raises ValueError."""
    state = State(settings)
    state.epoch = connection.scalar(_EPOCH) or 0
    state.next_seq = (connection.scalar(_NEWEST_SEQ) or 0) + 1
    for kind in _KINDS:
        table = TABLES[kind]
        oldest_first = (table.c.created_ms,) if kind is Job else ()
        for row in connection.execute(select(table).order_by(*oldest_first, *table.primary_key)).mappings():
            state.put(from_row(kind, row))
    return state


def read_entries(connection: Connection, job_id: str, after: int, limit: int) -> list[Entry]:
    """See Store.entries. Raises ValueError."""
    query = select(entries).where(entries.c.seq > after).order_by(entries.c.seq).limit(limit)
    if job_id:
        query = query.where(entries.c.job_id == job_id)
    return [from_row(Entry, row) for row in connection.execute(query).mappings()]


def read_commits(
    connection: Connection, job_id: str, limit: int, before: tuple[int, int] | None
) -> list[Commit]:
    """See Store.commits. Raises ValueError."""
    query = select(commits).where(commits.c.job_id == job_id)
    if before is not None:
        query = query.where(tuple_(commits.c.step, commits.c.gang) < before)
    query = query.order_by(commits.c.step.desc(), commits.c.gang.desc()).limit(limit)
    return [from_row(Commit, row) for row in connection.execute(query).mappings()]


def read_commit_upto(connection: Connection, job_id: str, gang: int, step: int) -> Commit | None:
    """See Store.commit_upto. Raises ValueError."""
    query = select(commits).where(commits.c.job_id == job_id, commits.c.gang == gang, commits.c.step <= step)
    row = connection.execute(query.order_by(commits.c.step.desc()).limit(1)).mappings().first()
    return from_row(Commit, row) if row is not None else None


def write(connection: Connection, upsert: Upsert, writes: Sequence[Write], epoch: int) -> None:
    """Apply the writes of a leader, in the transaction that the connection is in. Raises DeposedError."""
    stored = connection.scalar(_EPOCH) or 0
    begun = fence(stored, writes, epoch)
    if begun != stored:
        connection.execute(upsert(leader), [{"id": 1, "epoch": begun}])
    folded = _fold(writes)
    for key, ranks in folded.drained.items():
        _mark_drained(connection, key, ranks)
    for statement, rows in _statements(folded, upsert):
        # An expanding parameter takes its list only where there is one set of parameters.
        connection.execute(statement, rows if len(rows) > 1 else rows[0])


def _mark_drained(connection: Connection, key: CommitKey, ranks: Iterable[int]) -> None:
    """Change a commit that an earlier transaction made; one that is gone stays gone."""
    job_id, step, gang = key
    there = and_(commits.c.job_id == job_id, commits.c.step == step, commits.c.gang == gang)
    row = connection.execute(select(commits).where(there)).mappings().first()
    if row is not None:
        commit = from_row(Commit, row)
        for rank in ranks:
            commit = drained(commit, rank)
        connection.execute(update(commits).where(there).values(shards=to_row(commit)["shards"]))


@dataclass(slots=True)
class _Folded:
    """What a sequence of writes comes to: of several to one row, the last."""

    rows: dict[tuple[type, Any], Put | Delete] = field(default_factory=dict)
    dropped: dict[str, None] = field(default_factory=dict)
    dropped_commits: dict[CommitKey, None] = field(default_factory=dict)
    drained: dict[CommitKey, list[int]] = field(default_factory=dict)
    """Ranks of commits that earlier transactions made."""
    entries: list[Entry] = field(default_factory=list)
    commits: dict[CommitKey, list[Commit]] = field(default_factory=dict)
    """More than one under a key is refused by the database."""


def _fold(writes: Iterable[Write]) -> _Folded:
    folded = _Folded()
    for item in writes:
        match item:
            case Put(row) | Delete(row):
                folded.rows[type(row), key_of(row)] = item
            case Append(Entry() as entry):
                folded.entries.append(entry)
            case Append(Commit() as commit):
                folded.commits.setdefault(key_of(commit), []).append(commit)
            case DropHistory(job_id):
                folded.dropped[job_id] = None
                folded.drained = {key: ranks for key, ranks in folded.drained.items() if key[0] != job_id}
                folded.commits = {key: made for key, made in folded.commits.items() if key[0] != job_id}
            case DropCommit(job_id, gang, step):
                key = (job_id, step, gang)
                folded.commits.pop(key, None)
                folded.drained.pop(key, None)
                folded.dropped_commits[key] = None
            case MarkDrained(job_id, gang, step, rank):
                key = (job_id, step, gang)
                if key in folded.commits:
                    folded.commits[key] = [drained(made, rank) for made in folded.commits[key]]
                else:
                    folded.drained.setdefault(key, []).append(rank)
            case SetEpoch():
                pass
    return folded


def _statements(folded: _Folded, upsert: Upsert) -> Iterable[tuple[Executable, list[dict[str, Any]]]]:
    """One statement for a table and kind of change, with the parameters of all its rows."""
    puts: dict[Table, list[dict[str, Any]]] = {}
    deletes: dict[Table, list[dict[str, Any]]] = {}
    settled: dict[str, list[int]] = {}
    for item in folded.rows.values():
        row, table = item.row, TABLES[type(item.row)]
        if isinstance(item, Put):
            puts.setdefault(table, []).append(to_row(row))
        elif isinstance(row, Prepared):
            settled.setdefault(row.job_id, []).append(row.rank)
        else:
            deletes.setdefault(table, []).append(_key_parameters(table, row))
    for table, rows in deletes.items():
        yield _delete(table), rows
    for job_id, ranks in settled.items():
        for at in range(0, len(ranks), _RANKS_AT_ONCE):
            yield _SETTLE, [{"job": job_id, "ranks": ranks[at : at + _RANKS_AT_ONCE]}]
    for table, rows in puts.items():
        yield upsert(table), rows
    if folded.dropped:
        yield _DROP, [{"dropped": job_id} for job_id in folded.dropped]
    if folded.dropped_commits:
        names = [f"key_{column.name}" for column in commits.primary_key]
        yield _delete(commits), [dict(zip(names, key, strict=True)) for key in folded.dropped_commits]
    made = [commit for of_key in folded.commits.values() for commit in of_key]
    for table, items in ((entries, folded.entries), (commits, made)):
        if items:
            yield _insert(table), [to_row(item) for item in items]


# Statements are made once: making one costs more than a row.

_RANKS_AT_ONCE = 10_000  # databases have a limit of values in a statement
_SETTLE = delete(prepared).where(
    prepared.c.job_id == bindparam("job"), prepared.c.rank.in_(bindparam("ranks", expanding=True))
)
"""Every rank of a gang at once: one statement for each would be most of what a commit of 1,000 ranks costs."""
_DROP = delete(commits).where(commits.c.job_id == bindparam("dropped"))


@cache
def _insert(table: Table) -> Executable:
    return insert(table)


@cache
def _delete(table: Table) -> Executable:
    return delete(table).where(
        and_(*(column == bindparam(f"key_{column.name}") for column in table.primary_key))
    )


def _key_parameters(table: Table, item: Item) -> dict[str, Any]:
    return {f"key_{column.name}": getattr(item, column.name) for column in table.primary_key}
