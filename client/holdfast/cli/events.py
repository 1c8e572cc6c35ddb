"""`holdfast events`."""

from __future__ import annotations

import click

from holdfast.cli.common import Column, asynchronous, output_option, server_option, show
from holdfast.cli.complete import complete_jobs
from holdfast.cli.late import api, job_pb2
from holdfast.cli.watching import Lines, follow_option


def said(event: job_pb2.Event) -> str:
    """What happened, why, and what is done about it."""
    return f"{event.message}; {event.outcome}" if event.outcome else event.message


def _why(event: job_pb2.Event) -> str:
    """The same; of a node's own events with its name, for which only the wide table has a column."""
    return f"{event.node}: {said(event)}" if event.node and not event.job_id else said(event)


COLUMNS = (
    Column("TIME", lambda e: e.at.ToDatetime().strftime("%H:%M:%S.%f")[:-3]),
    Column("JOB", lambda e: e.job_id or "-"),
    Column("NODE", lambda e: e.node or "-", wide=True),
    Column("RANK", lambda e: str(e.rank) if e.HasField("rank") else "-"),
    Column("ATTEMPT", lambda e: str(e.attempt or "-"), wide=True),
    Column("EVENT", lambda e: e.kind),
    Column("WHY", _why),
)


@click.command()
@click.argument("job_id", default="", metavar="[JOB_ID]", shell_complete=complete_jobs)
@follow_option
@click.option("--after", default=0, metavar="SEQ", help="Only what came after the event of this seq.")
@server_option
@output_option
@asynchronous
async def command(job_id: str, server: str, output: str, after: int, *, again: bool) -> None:
    """Print what happened and why, oldest first: of one job, or of everything. Times are UTC.

    \b
    Examples:
      holdfast events
      holdfast events c7mk2xq9pd -o json
      holdfast events --watch --after 1200 -o json
    """  # noqa: D301  click reads the backspaces
    async with api.Client(server) as client:
        if job_id:
            await client.get_job(job_id)
        if again:
            lines = Lines(output, COLUMNS, lambda e: e.kind)
            there = (
                [event async for event in client.list_events(job_id, after=after)] if lines.is_table else []
            )
            if lines.is_table:
                lines.begin(there)
            async for event in client.watch_events(job_id, after=there[-1].seq if there else after):
                lines.add(event, event)
            return
        events = [event async for event in client.list_events(job_id, after=after)]
    show(events, output, key="events", columns=COLUMNS, name=lambda e: e.kind)
