"""The curves of jobs, in an SQLite file of their own beside the state.

Nothing waits for them: their writes hold no lock that a commit of the state needs, and are not synced one by one. A
process that is killed loses what it had not written yet, a machine that fails the last seconds, and neither anything
else. The file is opened when it is first needed. When it can't be used, jobs run as ever.
"""

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, bindparam, delete, func, insert, select

from holdfast_coordinator.core.series import MOST_POINTS, Point, admitted, crowded_out
from holdfast_coordinator.store.api import StoreError, StoreTooNewError
from holdfast_coordinator.store.sqlite import connect, explained, make_file
from holdfast_coordinator.store.tables import curves, points

T = TypeVar("T")

FILE = "metrics.db"
SCHEMA = 1


@dataclass(slots=True)
class _Length:
    """Of a series: how many points it has, and when its newest is of."""

    count: int = 0
    last_ms: int = 0


class SqlitePoints:
    """The points of one state directory, which somebody else holds the lock of. For any thread."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        self._lock = threading.Lock()
        self._opened = ExitStack()
        self._connection: Connection | None = None
        self._lengths: dict[str, dict[str, _Length]] = {}
        """Of the jobs that points were added to."""

    def add(self, fresh: Mapping[str, Mapping[str, Iterable[Point]]]) -> None:
        """Add points by job and series, oldest first, and thin what is full. Raises StoreError: then none is added.

        Series beyond the bound are left out. A point that is not newer than the one before it is put behind that: the
        clock of another leader was ahead.
        """
        try:
            self._do(lambda connection: self._add(connection, fresh))
        except StoreError:
            self._lengths.clear()
            raise

    def read(self, job_id: str, names: Collection[str] = ()) -> dict[str, list[Point]]:
        """Give the series of a job, by name; of these names alone, if there are any. Raises StoreError."""
        query = select(points).where(points.c.job_id == job_id).order_by(points.c.series, points.c.at_ms)
        if names:
            query = query.where(points.c.series.in_(names))

        def ask(connection: Connection) -> dict[str, list[Point]]:
            found: dict[str, list[Point]] = {}
            for _, name, at_ms, step, value in connection.execute(query):
                found.setdefault(name, []).append(Point(at_ms, step, value))
            return found

        return self._do(ask)

    def jobs(self) -> list[str]:
        """The jobs that there are points of. Raises StoreError."""
        after = select(func.min(points.c.job_id)).where(points.c.job_id > bindparam("job"))

        def ask(connection: Connection) -> list[str]:
            found = [""]
            while (job_id := connection.scalar(after, {"job": found[-1]})) is not None:
                found.append(job_id)
            return found[1:]

        return self._do(ask)

    def forget(self, job_ids: Collection[str]) -> None:
        """Remove the points of jobs. Raises StoreError."""
        statement = delete(points).where(points.c.job_id == bindparam("job"))
        self._do(lambda connection: connection.execute(statement, [{"job": job_id} for job_id in job_ids]))
        for job_id in job_ids:
            self._lengths.pop(job_id, None)

    def close(self) -> None:
        """Let go of the file."""
        with self._lock, explained(self._path):
            self._connection = None
            self._opened.close()

    def _do(self, work: Callable[[Connection], T]) -> T:
        with self._lock, explained(self._path):
            if self._connection is None:
                self._connection = self._open()
            with self._connection.begin():
                return work(self._connection)

    def _open(self) -> Connection:
        make_file(self._path)
        with ExitStack() as opening:
            connection = opening.enter_context(
                connect(self._path, begin="BEGIN IMMEDIATE", synchronous="NORMAL")
            )
            with connection.begin():
                found = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
                if not found:
                    curves.create_all(connection, checkfirst=False)
                    connection.exec_driver_sql(f"PRAGMA user_version={SCHEMA}")
                elif found != SCHEMA:
                    raise StoreTooNewError(
                        f"{self._path} was written by a newer version of holdfast: "
                        "use that version, or remove this file"
                    )
            self._opened = opening.pop_all()
        return connection

    def _add(self, connection: Connection, fresh: Mapping[str, Mapping[str, Iterable[Point]]]) -> None:
        rows: list[dict[str, Any]] = []
        full: list[tuple[str, str, _Length]] = []
        for job_id, of_job in fresh.items():
            lengths = self._lengths_of(connection, job_id)
            for name in admitted(lengths, of_job):
                length = lengths.setdefault(name, _Length())
                for point in of_job[name]:
                    length.count += 1
                    length.last_ms = max(point.at_ms, length.last_ms + 1)
                    rows.append(_row(job_id, name, length.last_ms, point))
                if length.count > MOST_POINTS:
                    full.append((job_id, name, length))
        if rows:
            connection.execute(insert(points), rows)
        for job_id, name, length in full:
            length.count -= _thin(connection, job_id, name)

    def _lengths_of(self, connection: Connection, job_id: str) -> dict[str, _Length]:
        found = self._lengths.get(job_id)
        if found is None:
            query = select(points.c.series, func.count(), func.max(points.c.at_ms))
            query = query.where(points.c.job_id == job_id).group_by(points.c.series)
            rows: Sequence[Any] = connection.execute(query).all()
            found = self._lengths[job_id] = {name: _Length(count, last) for name, count, last in rows}
        return found


def _row(job_id: str, name: str, at_ms: int, point: Point) -> dict[str, Any]:
    return {"job_id": job_id, "series": name, "at_ms": at_ms, "step": point.step, "value": point.value}


def _thin(connection: Connection, job_id: str, name: str) -> int:
    """Remove what a series is too full for; gives how many that were."""
    of_series = (points.c.job_id == job_id, points.c.series == name)
    query = select(points.c.at_ms, points.c.step, points.c.value).where(*of_series).order_by(points.c.at_ms)
    goes = crowded_out([Point(*row) for row in connection.execute(query)])
    if goes:
        statement = delete(points).where(*of_series, points.c.at_ms == bindparam("at"))
        connection.execute(statement, [{"at": point.at_ms} for point in goes])
    return len(goes)
