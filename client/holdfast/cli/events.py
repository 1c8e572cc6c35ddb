"""`holdfast events`."""

import click

from holdfast.cli.common import Column, asynchronous, output_option, server_option, show
from holdfast.cli.complete import complete_jobs
from holdfast.client import Client
from holdfast.v1 import job_pb2


def said(event: job_pb2.Event) -> str:
    """What happened, why, and what is done about it."""
    return f"{event.message}; {event.outcome}" if event.outcome else event.message


COLUMNS = (
    Column("TIME", lambda e: e.at.ToDatetime().strftime("%H:%M:%S.%f")[:-3]),
    Column("JOB", lambda e: e.job_id or "-"),
    Column("NODE", lambda e: e.node or "-", wide=True),
    Column("RANK", lambda e: str(e.rank) if e.HasField("rank") else "-"),
    Column("ATTEMPT", lambda e: str(e.attempt or "-"), wide=True),
    Column("EVENT", lambda e: e.kind),
    Column("WHY", said),
)


@click.command()
@click.argument("job_id", default="", metavar="[JOB_ID]", shell_complete=complete_jobs)
@server_option
@output_option
@asynchronous
async def command(job_id: str, server: str, output: str) -> None:
    """Print what happened and why, oldest first: of one job, or of everything. Times are UTC.

    \b
    Examples:
      holdfast events
      holdfast events c7mk2xq9pd -o json
    """  # noqa: D301  click reads the backspaces
    async with Client(server) as client:
        if job_id:
            await client.get_job(job_id)
        events = [event async for event in client.list_events(job_id)]
    show(events, output, key="events", columns=COLUMNS, name=lambda e: e.kind)
