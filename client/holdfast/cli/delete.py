"""`holdfast job delete` and `holdfast job purge`."""

import asyncio
import sys
from datetime import timedelta

import click

from holdfast.cli.common import (
    Column,
    age,
    asynchronous,
    enum_word,
    exit_code,
    output_option,
    printable,
    read_duration,
    server_option,
    show,
)
from holdfast.cli.complete import complete_jobs
from holdfast.cli.exits import EXIT
from holdfast.client import TERMINAL, Client
from holdfast.v1 import job_pb2
from holdfast.wire import DeadlineExceeded, HoldfastError

SHOWN = 10
"""Of the jobs that are asked about so many are named."""

ENDED = {enum_word(job_pb2.JobState.Name(state)): state for state in sorted(TERMINAL)}


@click.command()
@click.argument("job_ids", nargs=-1, required=True, metavar="JOB_ID...", shell_complete=complete_jobs)
@click.option("--stop-first", is_flag=True, help="Stop those that run, and wait until they have ended.")
@click.option("--force", is_flag=True, help="With --stop-first: SIGKILL at once.")
@click.option("--wait", is_flag=True, help="Wait until those that run have ended by themselves.")
@click.option(
    "--timeout",
    callback=read_duration,
    metavar="DURATION",
    help="With --stop-first or --wait: wait no longer than this, e.g. 30m.",
)
@server_option
@asynchronous
async def delete(
    job_ids: tuple[str, ...],
    server: str,
    timeout: timedelta | None,
    *,
    stop_first: bool,
    force: bool,
    wait: bool,
) -> None:
    """Forget ended jobs and their logs. Checkpoints stay where they are.

    \b
    Examples:
      holdfast job delete c7mk2xq9pd
      holdfast job delete c7mk2xq9pd --stop-first --timeout 5m
      holdfast job delete c7mk2xq9pd --stop-first --force
    """  # noqa: D301  click reads the backspaces
    if stop_first and wait:
        raise click.UsageError("--stop-first waits by itself; leave --wait away")
    if force and not stop_first:
        raise click.UsageError("--force says how to stop; give --stop-first, too")
    if timeout is not None and not (stop_first or wait):
        raise click.UsageError(
            "--timeout says how long to --wait, or to wait for --stop-first; give one of them"
        )
    limit = None if timeout is None else timeout.total_seconds()
    errors: list[HoldfastError] = []

    async def one(client: Client, job_id: str) -> None:
        try:
            if wait:
                async for _ in client.watch_job(job_id):
                    pass
            await client.delete_job(job_id, stop_first=stop_first, force=force)
            click.echo(f"{printable(job_id)} deleted", err=True)
        except HoldfastError as error:
            errors.append(error)

    try:
        async with Client(server) as client, asyncio.timeout(limit):
            await asyncio.gather(*(one(client, job_id) for job_id in dict.fromkeys(job_ids)))
    except TimeoutError as error:
        rest = "they are still stopping" if stop_first else "they go on"
        raise DeadlineExceeded("not all of them have ended within the timeout", rest) from error
    for other in errors[1:]:
        click.echo(f"Error: {printable(str(other))}", err=True)
    if errors:
        raise errors[0]


def _read_statuses(
    context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> list[job_pb2.JobState.ValueType]:
    """Read --status: words, also several with commas between them."""
    words = [word.strip() for text in texts for word in text.split(",")] or list(ENDED)
    for word in words:
        if word not in ENDED:
            raise click.BadParameter(
                f'"{word}" is none of {", ".join(ENDED)}; jobs that have not ended are never purged',
                context,
                parameter,
            )
    return [ENDED[word] for word in words]


COLUMNS = (
    Column("JOB", lambda j: j.id),
    Column("NAME", lambda j: j.spec.name),
    Column("STATE", lambda j: enum_word(job_pb2.JobState.Name(j.state))),
    Column("ENDED", lambda j: age(j.finished_at)),
    Column("AGE", lambda j: age(j.created_at), wide=True),
    Column("REASON", lambda j: j.reason),
)


@click.command()
@click.option(
    "--older-than",
    callback=read_duration,
    required=True,
    metavar="DURATION",
    help="Those that ended so long ago, e.g. 7d.",
)
@click.option(
    "--status",
    "--state",
    "states",
    multiple=True,
    callback=_read_statuses,
    metavar="STATE[,STATE]...",
    help="Only those that succeeded, failed, stopped; may be repeated.  [default: all three]",
)
@click.option("--name", default="", metavar="GLOB", help="Only those of such a name, e.g. 'sweep-*'.")
@click.option("--dry-run", is_flag=True, help="Show them, and delete nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@server_option
@output_option
@asynchronous
async def purge(
    older_than: timedelta,
    states: list[job_pb2.JobState.ValueType],
    name: str,
    server: str,
    output: str,
    *,
    dry_run: bool,
    yes: bool,
) -> None:
    """Forget jobs that ended long ago, and their logs; print which. Checkpoints stay where they are.

    \b
    Examples:
      holdfast job purge --older-than 7d --status succeeded,failed --dry-run
      holdfast job purge --older-than 24h --name 'sweep-*' --yes
    """  # noqa: D301  click reads the backspaces
    async with Client(server) as client:
        jobs = await client.purge_jobs(older_than=older_than, states=states, name=name, dry_run=True)
        if jobs and not dry_run:
            if not (yes or _agreed(jobs)):
                click.echo("nothing was deleted", err=True)
                raise click.exceptions.Exit(EXIT.FAILED)
            jobs = [job for job in jobs if await _gone(client, job)]
    show(jobs, output, key="jobs", columns=COLUMNS, name=lambda job: job.id)
    done = "would be deleted" if dry_run else "deleted"
    click.echo(f"{len(jobs)} {'job' if len(jobs) == 1 else 'jobs'} {done}", err=True)


def _agreed(jobs: list[job_pb2.Job]) -> bool:
    if not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask on; look with --dry-run, then give --yes")
    for job in jobs[:SHOWN]:
        word = enum_word(job_pb2.JobState.Name(job.state))
        click.echo(printable(f"{job.id}  {job.spec.name}  {word} {age(job.finished_at)} ago"), err=True)
    if len(jobs) > SHOWN:
        click.echo(f"and {len(jobs) - SHOWN} more", err=True)
    return click.confirm(f"Delete {len(jobs)} of them, with their logs?", err=True)


async def _gone(client: Client, job: job_pb2.Job) -> bool:
    """Delete a job, unless it was begun again meanwhile."""
    try:
        await client.delete_job(job.id)
    except HoldfastError as error:
        click.echo(f"{job.id} was left: {printable(str(error))}", err=True)
        if exit_code(error) is not EXIT.FAILED:
            raise
        return False
    return True
