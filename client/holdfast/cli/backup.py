"""`holdfast backup`: the coordinator's state put aside, and taken up again."""

from __future__ import annotations

import os
import shlex
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from holdfast.cli.common import fail, set_up_logs, state_dir
from holdfast.cli.exits import EXIT
from holdfast.cli.store_options import other_store, read_store

if TYPE_CHECKING:
    from holdfast.worker.manifest import Commit as Manifest
    from holdfast_coordinator.core.model import Commit, Gang, Job
    from holdfast_coordinator.core.state import State
    from holdfast_coordinator.store.url import StoreUrl

FILE = "holdfast.db"
WHO = "holdfast backup"
"""Among the coordinators of a database; it never leads."""
_SCRATCH = "restoring"

state_option = click.option(
    "--state-dir",
    "place",
    type=click.Path(path_type=Path),
    default=lambda: state_dir("coordinator"),
    envvar="HOLDFAST_COORDINATOR_STATE_DIR",
    show_default="~/.local/state/holdfast/coordinator",
    help="Where the coordinator keeps its state.",
)


@click.group()
def command() -> None:
    """Put the coordinator's state aside, and take it up again, there or in another database.

    \b
    Examples:
      holdfast backup create /backups/now.db
      holdfast backup restore /backups/now.db --state-dir /var/lib/holdfast/coordinator
      holdfast backup move --state-dir /var/lib/holdfast/coordinator --store-file /etc/holdfast/postgresql.url
    """  # noqa: D301  click reads the backspaces


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@state_option
@other_store
def create(file: Path, place: Path, store: str | None, store_file: Path | None) -> None:
    """Copy the coordinator's state to FILE, while it runs or not: from its state directory, or from PostgreSQL.

    The copy is one moment's state. Curves of metrics are not part of it. It is readable by you alone: a job's
    environment may hold secrets.

    \b
    Examples:
      holdfast backup create /backups/holdfast-$(date +%F).db
      holdfast backup create /backups/now.db --state-dir /var/lib/holdfast/coordinator
      holdfast backup create /backups/now.db --store-file /etc/holdfast/postgresql.url
    """  # noqa: D301  click reads the backspaces
    url = _database_if_named(store, store_file)
    source = place / FILE
    if url is None and not source.is_file():
        fail(f"{place} has no {FILE}: it is not the state directory of a coordinator", EXIT.NOT_FOUND)
    if file.exists():
        fail(f"{file} is there already; name another, or remove it")
    part = file.with_name(f"{file.name}.part")
    with _explained(f"{source if url is None else url} could not be copied to {file}"):
        try:
            if url is None:
                _copy(source, part)
            else:
                with _scratch(file.with_name(f"{file.name}.rows")) as scratch:
                    _fetch(url, scratch)
                    _copy(scratch / FILE, part)
            part.rename(file)
            _sync(file.parent)
        finally:
            part.unlink(missing_ok=True)
    click.echo(f"{file}: {file.stat().st_size} bytes", err=True)


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@state_option
@other_store
@click.option(
    "--skip-unreadable",
    is_flag=True,
    help="Jobs whose checkpoints can't be read from here go on from the newest that the backup knows.",
)
def restore(
    file: Path, place: Path, store: str | None, store_file: Path | None, *, skip_unreadable: bool
) -> None:
    """Make a state from the backup in FILE, for a coordinator to be started on: a state directory, or a new database.

    What was committed after the backup is read from the manifests of the jobs, so their storage has to be reachable
    from here, with the S3 settings that agents have. Jobs that lived go on from their newest commit, in a new attempt.

    \b
    Examples:
      holdfast backup restore /backups/now.db --state-dir /var/lib/holdfast/coordinator
      holdfast backup restore /backups/now.db --store-file /etc/holdfast/postgresql.url
    """  # noqa: D301  click reads the backspaces
    url = _database_if_named(store, store_file)
    if not file.is_file():
        fail(f"there is no backup {file}", EXIT.NOT_FOUND)
    if url is None and (place / FILE).exists():
        fail(f"{place} has a {FILE} already; name another --state-dir, or move that file away")
    with _explained(f"{file} could not be restored to {place if url is None else url}"):
        if url is None:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _scratch(place / _SCRATCH) as scratch:
                _copy(file, scratch / FILE)
                _catch_up(scratch, skip_unreadable=skip_unreadable)
                (scratch / FILE).rename(place / FILE)
                _sync(place)
        else:
            with TemporaryDirectory() as scratch:
                _copy(file, Path(scratch, FILE))
                _catch_up(Path(scratch), skip_unreadable=skip_unreadable)
                _put(Path(scratch), url)
    click.echo(f"holdfast coordinator --state-dir {place}" if url is None else _start())


@command.command()
@state_option
@other_store
def move(place: Path, store: str | None, store_file: Path | None) -> None:
    """Move the state of a coordinator that is stopped from its state directory into PostgreSQL.

    Nothing is lost by it: workers run on, and jobs go on as they were when a coordinator is started on the database.
    It must be new. The old state stays beside where it was, under a name at which no coordinator looks.

    \b
    Example:
      holdfast backup move --state-dir /var/lib/holdfast/coordinator --store-file /etc/holdfast/postgresql.url
    """  # noqa: D301  click reads the backspaces
    url = _database(store, store_file)
    if url is None:
        raise click.UsageError("name the database to move to, with --store or --store-file")
    if not (place / FILE).is_file():
        fail(f"{place} has no {FILE}: it is not the state directory of a coordinator", EXIT.NOT_FOUND)
    with _explained(f"the state in {place} could not be moved to {url}"):
        _put(place, url, put_away=True)
        _sync(place)
    click.echo(_start())


def _database(store: str | None, store_file: Path | None) -> StoreUrl | None:
    """The database that is named. Ends the command where nothing here can read it."""
    try:
        import holdfast_coordinator.store.url  # noqa: F401
    except ModuleNotFoundError as error:
        fail(f"the coordinator is not installed here ({error.name}): pip install 'holdfast[coordinator]'")
    set_up_logs()
    return read_store(store, store_file)


def _database_if_named(store: str | None, store_file: Path | None) -> StoreUrl | None:
    """The same, unless a state directory is named: what is typed counts more than what the environment says."""
    if not _is_typed("place"):
        return _database(store, store_file)
    if _is_typed("store") or _is_typed("store_file"):
        raise click.UsageError("--state-dir and a database are two places; give one of them")
    return _database(None, None)


def _is_typed(option: str) -> bool:
    return click.get_current_context().get_parameter_source(option) is ParameterSource.COMMANDLINE


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """End the command with what went wrong."""
    from holdfast_coordinator.store.api import StoreError

    try:
        yield
    except (OSError, sqlite3.Error, StoreError) as error:
        fail(f"{what}: {error}")


def _start() -> str:
    """What starts a coordinator there; what the environment names it is not repeated, for it may be secret."""
    for option in filter(_is_typed, ("store", "store_file")):
        value = shlex.quote(str(click.get_current_context().params[option]))
        return f"holdfast coordinator --{option.replace('_', '-')} {value}"
    return "holdfast coordinator"


def _fetch(url: StoreUrl, directory: Path) -> None:
    """Make a state directory of what a database holds. Raises StoreError."""
    from holdfast_coordinator.store.postgres import PostgresStore
    from holdfast_coordinator.store.sqlite import SqliteStore

    with closing(PostgresStore(url, WHO)) as source, closing(SqliteStore(directory)) as target:
        target.fill(source.rows())


def _put(directory: Path, url: StoreUrl, *, put_away: bool = False) -> None:
    """Have a database hold what a state directory does. Raises StoreError."""
    from holdfast_coordinator.store.postgres import PostgresStore
    from holdfast_coordinator.store.sqlite import SqliteStore

    with closing(SqliteStore(directory)) as source, closing(PostgresStore(url, WHO)) as target:
        target.fill(source.rows())
        if put_away:
            source.put_away()


@contextmanager
def _scratch(scratch: Path) -> Iterator[Path]:
    """A directory for a state that nobody may lead with yet."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch)


def _copy(source: Path, target: Path) -> None:
    """Copy a database as of one moment, durably. Raises OSError, sqlite3.Error."""
    target.unlink(missing_ok=True)
    os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    reading = f"{source.resolve().as_uri()}?mode=ro"
    with closing(sqlite3.connect(reading, uri=True)) as before, closing(sqlite3.connect(target)) as after:
        before.backup(after)
        after.execute("PRAGMA journal_mode=DELETE")  # one file, whatever the source was
        (found,) = after.execute("PRAGMA quick_check").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(f"{source} is damaged ({found})")
    with target.open("rb") as file:
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _catch_up(directory: Path, *, skip_unreadable: bool) -> None:
    """Have the state know what was committed since, and use no number again. Raises StoreError."""
    from holdfast_coordinator.core import recovery
    from holdfast_coordinator.core.events import BackupRestored, LeaderElected
    from holdfast_coordinator.core.state import Settings
    from holdfast_coordinator.core.step import step
    from holdfast_coordinator.store.sqlite import SqliteStore

    store = SqliteStore(directory)
    try:
        state = store.load(Settings())
        commits = _commits(state, skip_unreadable=skip_unreadable)
        at = time.time_ns() // 1_000_000
        elected = step(state, LeaderElected(at, recovery.fresh(state.epoch, at)))
        known = step(state, BackupRestored(at, commits))
        store.commit([*elected.writes, *known.writes], epoch=state.epoch)
    finally:
        store.close()


def _commits(state: State, *, skip_unreadable: bool) -> dict[tuple[str, int], tuple[Commit, ...]]:
    """What the manifests tell of, by job and gang. Ends the command where that can't be known."""
    from holdfast.cli.backup_manifests import UnreadableError, newer

    found: dict[tuple[str, int], tuple[Commit, ...]] = {}
    unreadable = []
    for job in state.jobs.values():
        spec = job.spec
        try:
            for gang in state.gangs_of(job):
                rank, known = _rank(state, job, gang), gang.commit.step if gang.commit else None
                manifests = newer(job.id, spec.checkpoint_uri, spec.env, rank, known)
                found[job.id, gang.index] = tuple(_commit(each, gang) for each in manifests)
                since = len([each for each in manifests if known is None or each.step > known])
                if since:
                    whose = "" if rank is None else f", rank {rank}"
                    click.echo(f"job {job.id}{whose}: {since} commits since, the newest of step "
                               f"{manifests[0].step}", err=True)  # fmt: skip
        except UnreadableError as error:
            unreadable.append(f"job {job.id} ({spec.name}): {error}")
    for line in unreadable:
        click.echo(line, err=True)
    if unreadable and not skip_unreadable:
        fail(
            f"the checkpoints of {len(unreadable)} jobs can't be read from here, so that it is not known what they had "
            "committed: restore where they can, or add --skip-unreadable",
            EXIT.UNREACHABLE,
        )
    return found


def _rank(state: State, job: Job, gang: Gang) -> int | None:
    """The rank of a gang that commits by itself."""
    return None if state.gang_of(job, None) is not None else gang.index


def _commit(found: Manifest, gang: Gang) -> Commit:
    from holdfast_coordinator.core.model import Commit, Shard

    return Commit(
        job_id=found.job_id,
        gang=gang.index,
        step=found.step,
        attempt=found.attempt,
        at_ms=found.committed_at_ms,
        rank=found.rank,
        world_size=found.world_size,
        shards=tuple(Shard(**shard._asdict()) for shard in found.shards),
    )
