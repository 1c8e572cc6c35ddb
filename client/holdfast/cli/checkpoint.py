"""`holdfast checkpoint`."""

import click

from holdfast.cli.common import (
    Column,
    age,
    asynchronous,
    output_option,
    server_option,
    short_size,
    show,
)
from holdfast.client import Client

COLUMNS = (
    Column("STEP", lambda c: str(c.step)),
    Column("RANK", lambda c: str(c.rank) if c.HasField("rank") else "all"),
    Column("ATTEMPT", lambda c: str(c.attempt)),
    Column("SHARDS", lambda c: str(c.shard_count)),
    Column("SIZE", lambda c: short_size(c.size_bytes)),
    Column("AGE", lambda c: age(c.committed_at)),
    Column("WHERE", lambda c: c.uri, wide=True),
)


@click.group()
def command() -> None:
    """See committed checkpoints."""


@command.command("list")
@click.argument("job_id")
@server_option
@output_option
@asynchronous
async def list_checkpoints(job_id: str, server: str, output: str) -> None:
    """List the committed checkpoints of a job, newest first.

    \b
    Example:
      holdfast checkpoint list c7mk2xq9pd -o wide
    """  # noqa: D301  click reads the backspaces
    async with Client(server) as client:
        checkpoints = [checkpoint async for checkpoint in client.list_checkpoints(job_id)]
    show(checkpoints, output, key="checkpoints", columns=COLUMNS, name=lambda c: f"step-{c.step:010d}")
