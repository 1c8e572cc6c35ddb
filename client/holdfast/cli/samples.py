"""`holdfast job samples`: the ledger of a job."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from holdfast.cli.common import (
    asynchronous,
    fail,
    output_option,
    printable,
    server_option,
    show_data,
    show_table,
)
from holdfast.cli.complete import job_argument
from holdfast.client import Client
from holdfast.v1 import job_pb2, worker_pb2
from holdfast.wire import NotFound

if TYPE_CHECKING:
    from holdfast.worker.ledger import Consumed

HEAD = ("DATA SET", "EPOCH", "RANK", "BATCHES", "SAMPLES")


@click.command("samples")
@job_argument
@server_option
@output_option
@asynchronous
async def command(job_id: str, server: str, output: str) -> None:
    """Show what a job has consumed, by data set, epoch and rank: what its newest commit says.

    \b
    Example:
      holdfast job samples c7mk2xq9pd
    """  # noqa: D301  click reads the backspaces
    async with Client(server) as client:
        records = await _newest(client, await client.get_job(job_id))
    try:
        lines = ledger_of(records)
    except ValueError as error:
        fail(f"job {job_id}: {error}")
    if not lines:
        click.echo(f"{job_id} has committed nothing of a data set", err=True)
    if output in ("json", "yaml"):
        show_data({"samples": [line._asdict() for line in lines]}, output)
    elif output == "name":
        for name in dict.fromkeys(line.data for line in lines):
            click.echo(printable(name))
    else:
        show_table(HEAD, map(row, lines))


async def _newest(client: Client, job: job_pb2.Job) -> list[worker_pb2.CommitRecord]:
    """The newest commit of the gang, or of each rank that has one."""
    own = job.spec.restart.scope == job_pb2.RESTART_SCOPE_RANK

    async def newest(rank: int | None) -> worker_pb2.CommitRecord | None:
        try:
            return (await client.get_checkpoint(job.id, rank=rank)).record
        except NotFound:
            return None

    found = await asyncio.gather(*map(newest, range(job.spec.world_size) if own else (None,)))
    return [record for record in found if record is not None]


def ledger_of(records: Sequence[worker_pb2.CommitRecord]) -> "list[Consumed]":
    """What commits say that was consumed. Raises ValueError when one of their cursors is none."""
    from holdfast.worker.ledger import consumed

    cursors = {shard.rank: shard.cursor for record in records for shard in record.shards}
    return consumed(cursors, records[0].world_size) if records else []


def row(line: "Consumed") -> list[str]:
    """One line of the table."""
    epoch = str(line.first_epoch)
    if line.last_epoch > line.first_epoch:
        epoch = f"{line.first_epoch} to {line.last_epoch}, each"
    return [
        line.data,
        epoch,
        str(line.rank),
        f"{line.batches} of {line.of_batches}",
        f"{line.samples} of {line.of_samples}",
    ]
