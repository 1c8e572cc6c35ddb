"""Where a worker's checkpoints lie: from its identity to the storage they are written to and read from."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator

from holdfast.storage.api import Storage, Writer
from holdfast.storage.local import LocalStorage
from holdfast.storage.places import open_storage, switched
from holdfast.worker.checkpoint import Checkpoints, Owner
from holdfast.worker.identity import Identity
from holdfast.worker.layout import attempt_of, step_of
from holdfast.worker.spool import SpooledStorage

_LOCAL_SPOOL = os.path.join(".holdfast", "spool")


def owner(identity: Identity, rank: int) -> Owner:
    """Whose checkpoints those of a rank are."""
    return Owner(identity.job_id, rank, identity.attempt)


@contextlib.contextmanager
def claimed(identity: Identity) -> Iterator[Identity]:
    """Be the only process outside holdfast that keeps checkpoints in this place. Raises StorageError.

    A directory is locked. Elsewhere nothing is, so the attempt is made a number of its own there: two processes do
    not write one file, and of two that commit the same step the one that was started first is told so.
    """
    storage = for_reading(identity, 0)
    if isinstance(storage, LocalStorage):
        with storage.claim():
            yield identity
    else:
        storage.close()
        yield identity._replace(attempt=time.time_ns() // 1_000_000)


def for_writing(identity: Identity, drained: Callable[[str], bool]) -> Storage:
    """The place of this rank's own checkpoints. Raises StorageError.

    One that is not a directory has a spool on this machine for when it is away; see `spool.SpooledStorage`.
    """
    below = _below(identity, identity.rank)
    writer = Writer(identity.rank, identity.attempt)
    storage = open_storage(_uri(identity), below, writer, os.environ)
    if isinstance(storage, LocalStorage):
        return storage
    spool = LocalStorage(os.path.abspath(identity.spool_dir or _LOCAL_SPOOL), below, writer)
    dead = identity.attempt if identity.local_rank == 0 else 0
    return SpooledStorage(storage, spool, f"rank-{identity.rank:05}.", drained, dead)


def for_reading(identity: Identity, rank: int) -> Storage:
    """The place of a rank's checkpoints. Raises StorageError."""
    return open_storage(_uri(identity), _below(identity, rank), None, os.environ)


@contextlib.contextmanager
def of_another_job(identity: Identity) -> Iterator[tuple[Checkpoints, int | None]]:
    """The checkpoints that HOLDFAST_RESUME_FROM names, and the step, if it names one. Raises StorageError.

    Those of independent ranks lie in a directory for each, and every rank takes its own.
    """
    uri, step = split_step(identity.resume_from)
    below = _rank_directory(identity.rank) if identity.independent else ""
    with contextlib.closing(open_storage(uri, below, None, os.environ)) as storage:
        yield Checkpoints(Owner("", identity.rank, 0), storage), step


def split_step(uri: str) -> tuple[str, int | None]:
    """The directory of checkpoints that a URI names, and the step, if it names one of them."""
    parent, _, last = uri.rstrip("/").rpartition("/")
    step = step_of(last)
    return (uri, None) if step is None else (parent or ".", step)


def written_by(name: str) -> tuple[int | None, int | None]:
    """The step and the attempt that a shard with this name is of."""
    return step_of(name.partition("/")[0]), attempt_of(name)


def _uri(identity: Identity) -> str:
    return switched(identity.checkpoint_uri, os.environ)


def _below(identity: Identity, rank: int) -> str:
    return f"{identity.job_id}/{_rank_directory(rank)}" if identity.independent else identity.job_id


def _rank_directory(rank: int) -> str:
    return f"rank-{rank:05}"
