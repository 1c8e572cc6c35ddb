"""The files of checkpoints, from the command line: found, verified, copied, deleted."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from holdfast.cli.common import fail, printable
from holdfast.cli.exits import EXIT
from holdfast.cli.late import job_pb2, worker_pb2
from holdfast.storage.api import Storage, StorageError, Unreachable
from holdfast.storage.places import open_storage, switched
from holdfast.worker.layout import directory, manifest_name

if TYPE_CHECKING:
    from holdfast.worker.verify import Verdict

COPY_BYTES = 8 * 2**20


def is_place(where: str) -> bool:
    """Tell whether this is a directory or a URI, and not the id of a job."""
    return "://" in where or "/" in where or Path(where).exists()


def open_place(uri: str, below: str = "", env: Mapping[str, str] | None = None) -> Storage:
    """The storage at a URI, or below it. Ends the command when there can't be one."""
    with _explained():
        return open_storage(uri, below, None, {**os.environ, **(env or {})})


def job_place(job: job_pb2.Job) -> Storage:
    """Where the checkpoints of a job lie. Ends the command when only its nodes know."""
    return _place(job, job.id)


def place_of(job: job_pb2.Job, record: worker_pb2.CommitRecord) -> Storage:
    """Where the step directories of a commit's rank, or of all ranks, lie. Ends the command as `job_place` does."""
    by_rank = record.HasField("rank")
    return _place(job, f"{job.id}/rank-{record.rank:05}" if by_rank else job.id)


def verified(place: Storage, step: int | None, *, every: bool) -> list[Verdict]:
    """Verify the newest checkpoints of a place, those of a step, or all. Ends the command when it can't be read."""
    from holdfast.worker.verify import verify

    def tell(file: str) -> None:
        if sys.stderr.isatty():
            click.echo(f"reading {printable(file)}", err=True)

    with _explained():
        return verify(place, step, every=every, told=tell)


def copy(place: Storage, step: int, into: Path) -> int:
    """Copy the files of a step; returns how many. Ends the command when that can't be."""
    with _explained():
        entries = place.files(directory(step))
        for entry in entries:
            target = into / entry.name
            target.parent.mkdir(parents=True, exist_ok=True)
            with place.open(entry.name) as reader, target.open("wb") as file:
                for offset in range(0, reader.size, COPY_BYTES):
                    buffer = memoryview(bytearray(min(COPY_BYTES, reader.size - offset)))
                    reader.read_into(buffer, offset)
                    file.write(buffer)
    if not entries:
        fail(f"there is no {directory(step)} in {place.uri}", EXIT.NOT_FOUND)
    return len(entries)


def remove(place: Storage, step: int) -> None:
    """Delete the files of a step, first what makes them a checkpoint. Ends the command when that can't be."""
    inside = directory(step)
    with _explained():
        place.delete([manifest_name(step)])
        place.delete([entry.name for entry in place.files(inside)])


def _place(job: job_pb2.Job, below: str) -> Storage:
    if not job.spec.checkpoint_uri:
        fail(
            f"the checkpoints of job {job.id} lie below its agents' state directories: go there and give their path"
        )
    env = {**os.environ, **job.spec.env}
    with _explained():
        uri = switched(job.spec.checkpoint_uri, env)
    return open_place(uri, below, job.spec.env)


@contextmanager
def _explained() -> Iterator[None]:
    """End with one sentence when a storage does not do what it is asked to."""
    try:
        yield
    except Unreachable as error:
        fail(str(error), EXIT.UNREACHABLE)
    except (StorageError, OSError, EOFError) as error:
        fail(str(error))
