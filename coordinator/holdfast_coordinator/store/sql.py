"""Reads and writes the tables over a connection. Nothing here is of one database; what is, is handed in."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from sqlalchemy import (
    Connection,
    Executable,
    Table,
    and_,
    bindparam,
    delete,
    insert,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.sql.elements import ColumnElement

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
from holdfast_coordinator.store.api import StoreError, fence
from holdfast_coordinator.store.rows import TABLES, Item, from_row, key_of, to_row
from holdfast_coordinator.store.tables import commits, entries, gangs, leader, metadata, shards

Upsert = Callable[[Table], Executable]
"""Makes the statement that inserts rows of a table or replaces those with their keys: every database has its own."""

Rows = tuple[Table, list[dict[str, Any]]]
"""Rows of a table, by column."""
ROWS_AT_ONCE = 1_000

Step = tuple[str, int, int]
"""What a gang does at a step, a commit at most: its job, index and step."""

_KINDS: tuple[type[Row], ...] = (Job, Worker, Node)
"""Rows that need nothing of another table."""
_EPOCH = select(leader.c.epoch)
_NEWEST_SEQ = select(entries.c.seq).order_by(entries.c.seq.desc()).limit(1)


def read_state(connection: Connection, settings: Settings) -> State:
    """Everything. Raises ValueError."""
    state = State(settings)
    state.epoch = read_epoch(connection)
    state.next_seq = (connection.scalar(_NEWEST_SEQ) or 0) + 1
    for kind in _KINDS:
        table = TABLES[kind]
        oldest_first = (table.c.created_ms,) if kind is Job else ()
        for row in connection.execute(select(table).order_by(*oldest_first, *table.primary_key)).mappings():
            state.put(from_row(kind, row))
    for row in connection.execute(select(gangs).order_by(*gangs.primary_key)).mappings():
        state.put(from_row(Gang, row, commit=_read_commit(connection, row)))
    for row in connection.execute(_PREPARED).mappings():
        state.put(from_row(Prepared, row))
    return state


def _read_commit(connection: Connection, gang: Mapping[Any, Any]) -> Commit | None:
    """The newest commit of a gang. Raises ValueError."""
    step = gang["commit"]
    if step is None:
        return None
    found = read_commit_upto(connection, gang["job_id"], gang["index"], step)
    if found is None or found.step != step:
        raise ValueError(f"a gang of job {gang['job_id']} has a commit of step {step} that is not there")
    return found


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
    return [_with_shards(connection, row) for row in connection.execute(query).mappings().all()]


def read_commit_upto(connection: Connection, job_id: str, gang: int, step: int) -> Commit | None:
    """See Store.commit_upto. Raises ValueError."""
    query = select(commits).where(commits.c.job_id == job_id, commits.c.gang == gang, commits.c.step <= step)
    row = connection.execute(query.order_by(commits.c.step.desc()).limit(1)).mappings().first()
    return _with_shards(connection, row) if row is not None else None


def _with_shards(connection: Connection, row: Mapping[Any, Any]) -> Commit:
    step = _step_parameters((row["job_id"], row["gang"], row["step"]))
    of_it = connection.execute(_SHARDS_OF_STEP, step).mappings()
    return from_row(Commit, row, shards=tuple(from_row(Prepared, each).shard for each in of_it))


def read_epoch(connection: Connection) -> int:
    """The epoch that has begun last."""
    return connection.scalar(_EPOCH) or 0


def write(connection: Connection, upsert: Upsert, writes: Sequence[Write], epoch: int, stored: int) -> None:
    """Apply the writes of a leader to a store of epoch `stored`, in the transaction that the connection is in.

    Raises DeposedError.
    """
    begun = fence(stored, writes, epoch)
    if begun != stored:
        _begin_epoch(connection, begun)
    folded = _fold(writes)
    for statement, rows in _statements(folded, upsert):
        connection.execute(statement, rows)
    for step, ranks in folded.drained.items():
        _mark_drained(connection, upsert, step, ranks)


def _begin_epoch(connection: Connection, epoch: int) -> None:
    if not connection.execute(update(leader).values(epoch=epoch)).rowcount:
        connection.execute(insert(leader), {"id": 1, "epoch": epoch})


def _mark_drained(connection: Connection, upsert: Upsert, step: Step, ranks: Iterable[int]) -> None:
    """Change shards of a commit; if it is gone, it stays gone."""
    for rank in ranks:
        row = connection.execute(_SHARD, {**_step_parameters(step), "of_rank": rank}).mappings().first()
        if row is not None:
            held = from_row(Prepared, row)
            held = replace(held, shard=replace(held.shard, local_only=False))
            connection.execute(upsert(shards), [to_row(held)])


@dataclass(slots=True)
class _Folded:
    """What a sequence of writes comes to: of several to one row, the last."""

    rows: dict[tuple[type, Any], Put | Delete] = field(default_factory=dict)
    shards: dict[Step, dict[int, Put | Delete]] = field(default_factory=dict)
    """Rows too, by rank."""
    commits: dict[Step, list[Commit]] = field(default_factory=dict)
    """More than one under a key is refused by the database."""
    drained: dict[Step, dict[int, None]] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    dropped: dict[Step, None] = field(default_factory=dict)
    dropped_jobs: dict[str, None] = field(default_factory=dict)

    def forget(self, step: Step) -> None:
        """Leave out a commit that does not stay."""
        self.shards.pop(step, None)
        self.commits.pop(step, None)
        self.drained.pop(step, None)


def _fold(writes: Iterable[Write]) -> _Folded:
    folded = _Folded()
    for item in writes:
        match item:
            case Put(Prepared() as row) | Delete(Prepared() as row):
                folded.shards.setdefault((row.job_id, row.gang, row.step), {})[row.rank] = item
            case Put(row) | Delete(row):
                folded.rows[type(row), key_of(row)] = item
            case Append(Entry() as entry):
                folded.entries.append(entry)
            case Append(Commit() as commit):
                folded.commits.setdefault((commit.job_id, commit.gang, commit.step), []).append(commit)
            case DropHistory(job_id):
                for step in {*folded.shards, *folded.commits, *folded.drained}:
                    if step[0] == job_id:
                        folded.forget(step)
                folded.dropped_jobs[job_id] = None
            case DropCommit(job_id, gang, step):
                folded.forget((job_id, gang, step))
                folded.dropped[job_id, gang, step] = None
            case MarkDrained(job_id, gang, step, rank):
                folded.drained.setdefault((job_id, gang, step), {})[rank] = None
            case SetEpoch():
                pass
    return folded


def _statements(folded: _Folded, upsert: Upsert) -> Iterable[tuple[Executable, list[dict[str, Any]]]]:
    """One statement for a table and kind of change, with the parameters of all its rows."""
    puts: dict[Table, list[dict[str, Any]]] = {}
    deletes: dict[Table, list[dict[str, Any]]] = {}
    of_shards = (item for of_step in folded.shards.values() for item in of_step.values())
    for item in (*folded.rows.values(), *of_shards):
        table = TABLES[type(item.row)]
        if isinstance(item, Put):
            puts.setdefault(table, []).append(to_row(item.row))
        else:
            deletes.setdefault(table, []).append(_key_parameters(table, item.row))
    for table, rows in deletes.items():
        yield _delete(table), rows
    for table in (commits, shards):
        if folded.dropped_jobs:
            yield _drop_job(table), [{"job": job_id} for job_id in folded.dropped_jobs]
        if folded.dropped:
            yield _drop_step(table), [_step_parameters(step) for step in folded.dropped]
    for table, rows in puts.items():
        yield upsert(table), rows
    made = [commit for of_step in folded.commits.values() for commit in of_step]
    for table, items in ((entries, folded.entries), (commits, made)):
        if items:
            yield _insert(table), [to_row(item) for item in items]


def read_rows(connection: Connection) -> Iterator[Rows]:
    """Everything in the database, as it is; nobody leads in what is made of it."""
    options = {"yield_per": ROWS_AT_ONCE}
    for table in metadata.sorted_tables:
        for some in connection.execute(select(table), execution_options=options).mappings().partitions():
            nobody = {"holder": None, "until_ms": None} if table is leader else {}
            yield table, [{**row, **nobody} for row in some]


def write_rows(connection: Connection, rows: Iterable[Rows]) -> int:
    """Put rows into tables that have none; returns how many. Raises StoreError for a database with a state."""
    if connection.execute(select(leader)).first() is not None:
        raise StoreError("there is a state in it already, or a coordinator that waits for one")
    count = 0
    for table, some in rows:
        connection.execute(_insert(table), some)
        count += len(some)
    return count


# Statements are made once: making one costs more than a row.


def _is_of_step(table: Table) -> ColumnElement[bool]:
    of_gang = and_(table.c.job_id == bindparam("job"), table.c.gang == bindparam("gang"))
    return and_(of_gang, table.c.step == bindparam("step"))


def _step_parameters(step: Step) -> dict[str, Any]:
    return dict(zip(("job", "gang", "step"), step, strict=True))


_PREPARED = (
    select(shards)
    .join(gangs, and_(gangs.c.job_id == shards.c.job_id, gangs.c.index == shards.c.gang))
    .where(or_(gangs.c.commit.is_(None), shards.c.step > gangs.c.commit))
    .order_by(shards.c.job_id, shards.c.rank)
)
"""The shards of no commit: what is above the newest."""
_SHARDS_OF_STEP = select(shards).where(_is_of_step(shards)).order_by(shards.c.rank)
_SHARD = select(shards).where(_is_of_step(shards), shards.c.rank == bindparam("of_rank"))


@cache
def _drop_step(table: Table) -> Executable:
    return delete(table).where(_is_of_step(table))


@cache
def _drop_job(table: Table) -> Executable:
    return delete(table).where(table.c.job_id == bindparam("job"))


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
