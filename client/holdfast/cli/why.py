"""`holdfast job why`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from holdfast.cli.common import (
    asynchronous,
    enum_word,
    output_option,
    printable,
    server_option,
    show_data,
    time_shares,
    to_dict,
)
from holdfast.cli.complete import job_argument
from holdfast.cli.late import api, job_pb2

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp


@click.command("why")
@job_argument
@click.option(
    "--last", type=click.IntRange(1, 1_000), default=10, show_default=True, help="Incidents to tell."
)
@server_option
@output_option
@asynchronous
async def command(job_id: str, server: str, output: str, last: int) -> None:
    """Tell what happened to a job: what ended its attempts, what was done about it, what it cost. Times are UTC.

    \b
    Examples:
      holdfast job why c7mk2xq9pd
      holdfast job why c7mk2xq9pd --last 1
      holdfast job why c7mk2xq9pd -o json
    """  # noqa: D301  click reads the backspaces
    async with api.Client(server) as client:
        story = await client.explain_job(job_id, incidents=last)
    if output in ("json", "yaml"):
        show_data(to_dict(story), output)
    elif output == "name":
        click.echo(story.summary.job_id)
    else:
        for line in lines(story):
            click.echo(line)


def lines(story: job_pb2.JobStory) -> Iterator[str]:
    """The story in plain words."""
    found = story.summary
    state = enum_word(job_pb2.JobState.Name(found.state))
    yield printable(f"{found.job_id}  {found.name}  {state}: {found.reason}")
    restarts = "1 restart" if found.restarts == 1 else f"{found.restarts} restarts"
    yield f"{restarts}{_in_vain(found)}"
    if found.HasField("goodput"):
        yield f"time went into {time_shares(found)}"
    if story.left_out:
        left_out = "1 older incident is" if story.left_out == 1 else f"{story.left_out} older incidents are"
        yield f"\n{left_out} left out; see more with --last"
    for incident in story.incidents:
        yield ""
        yield from _incident(incident)
    if story.notes:
        yield "\nalso"
        for note in story.notes:
            rank = f" rank {note.rank}:" if note.HasField("rank") else ""
            yield printable(f"  {_time(note.at)} {note.kind}{rank} {note.message}")


def _in_vain(found: job_pb2.JobSummary) -> str:
    """The steps that were done for nothing: again, or, of a job that did not succeed, lost with it."""
    count = found.steps_redone
    if not count:
        return ""
    over = found.state in (job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_STOPPED)
    steps = "1 step" if count == 1 else f"{count} steps"
    return f", {steps} {'not kept' if over else 'done again'}, all ranks together"


def _incident(incident: job_pb2.Incident) -> Iterator[str]:
    of_rank = f" of rank {incident.of_rank}" if incident.HasField("of_rank") else ""
    yield f"{_time(incident.at)} attempt {incident.attempt}{of_rank} ended"
    for name, said in (
        ("why", incident.cause),
        ("with it", incident.fell),
        ("decided", incident.decided),
        ("cost", incident.cost),
    ):
        if said:
            yield printable(f"  {name.ljust(7)}  {said}")
    for line in incident.evidence.splitlines():
        yield printable(f"           | {line}")


def _time(stamp: Timestamp) -> str:
    return stamp.ToDatetime().strftime("%Y-%m-%d %H:%M:%S")
