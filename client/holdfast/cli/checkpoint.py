"""`holdfast checkpoint`."""

from pathlib import Path
from typing import Any

import click

from holdfast.cli.common import (
    Column,
    age,
    asynchronous,
    fail,
    metrics,
    output_option,
    printable,
    server_option,
    short_size,
    show,
    show_data,
    show_table,
    to_dict,
)
from holdfast.cli.complete import complete_jobs, complete_ranks, complete_steps, job_argument
from holdfast.cli.drain import command as drain
from holdfast.cli.exits import EXIT
from holdfast.client import Client
from holdfast.v1 import job_pb2
from holdfast.worker.layout import directory

COLUMNS = (
    Column("STEP", lambda c: str(c.step)),
    Column("RANK", lambda c: str(c.rank) if c.HasField("rank") else "all"),
    Column("ATTEMPT", lambda c: str(c.attempt)),
    Column("SHARDS", lambda c: str(c.shard_count)),
    Column("SIZE", lambda c: short_size(c.size_bytes)),
    Column("AGE", lambda c: age(c.committed_at)),
    Column("PIN", lambda c: c.pin or "-"),
    Column("STATE", lambda c: "degraded" if c.degraded else "ok"),
    Column("METRICS", metrics, wide=True),
    Column("WHERE", lambda c: c.uri, wide=True),
)

SHARD_COLUMNS = (
    Column("RANK", lambda s: str(s.rank)),
    Column("FILE", lambda s: s.file),
    Column("SIZE", lambda s: short_size(s.size_bytes)),
    Column("DIGEST", lambda s: s.digest),
    Column("LIES", lambda s: "on its node" if s.local_only else "in the storage"),
    Column("METRICS", metrics),
    Column("CURSOR", lambda s: s.cursor or "-", wide=True),
)

rank_option = click.option(
    "--rank",
    type=click.IntRange(min=0),
    shell_complete=complete_ranks,
    help="Of this rank, where every rank commits by itself.",
)
step_argument = click.argument("step", type=click.IntRange(min=0), shell_complete=complete_steps)


@click.group()
def command() -> None:
    """List, look at, verify, pin, delete and drain committed checkpoints.

    \b
    Examples:
      holdfast checkpoint list c7mk2xq9pd
      holdfast checkpoint verify /shared/checkpoints --all
    """  # noqa: D301  click reads the backspaces


command.add_command(drain)


@command.command("list")
@job_argument
@server_option
@output_option
@asynchronous
async def list_checkpoints(job_id: str, server: str, output: str) -> None:
    """List the committed checkpoints of a job that are kept, newest first.

    \b
    Example:
      holdfast checkpoint list c7mk2xq9pd -o wide
    """  # noqa: D301  click reads the backspaces
    async with Client(server) as client:
        checkpoints = [checkpoint async for checkpoint in client.list_checkpoints(job_id)]
    show(checkpoints, output, key="checkpoints", columns=COLUMNS, name=lambda c: directory(c.step))


@command.command()
@job_argument
@click.argument("step", type=click.IntRange(min=0), required=False, shell_complete=complete_steps)
@rank_option
@click.option(
    "--download",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIRECTORY",
    help="Copy its files into this directory.",
)
@server_option
@output_option
@asynchronous
async def get(
    job_id: str, step: int | None, rank: int | None, download: Path | None, server: str, output: str
) -> None:
    """Show a checkpoint and its files, by default the newest of the job.

    \b
    Examples:
      holdfast checkpoint get c7mk2xq9pd
      holdfast checkpoint get c7mk2xq9pd 300 -o json
      holdfast checkpoint get c7mk2xq9pd 300 --download here
    """  # noqa: D301  click reads the backspaces
    async with Client(server) as client:
        found = await client.get_checkpoint(job_id, step, rank)
        job = await client.get_job(job_id)
    if output in ("json", "yaml"):
        show_data(to_dict(found), output)
    elif output == "name":
        click.echo(directory(found.checkpoint.step))
    else:
        _show_checkpoint(found, output)
    if download is not None:
        from holdfast.cli.checkpoint_files import copy, place_of

        copied = copy(place_of(job, found.record), found.record.step, download)
        click.echo(f"{copied} files are in {download / directory(found.record.step)}", err=True)


def _show_checkpoint(found: job_pb2.GetCheckpointResponse, form: str) -> None:
    checkpoint, record = found.checkpoint, found.record
    rows = [
        ["step", str(checkpoint.step)],
        ["attempt", str(checkpoint.attempt)],
        ["rank", str(checkpoint.rank) if checkpoint.HasField("rank") else "all"],
        ["world size", str(checkpoint.world_size)],
        ["committed", f"{age(checkpoint.committed_at)} ago"],
        ["size", f"{short_size(checkpoint.size_bytes)} in {checkpoint.shard_count} files"],
        ["metrics", metrics(checkpoint)],
        ["pinned as", checkpoint.pin or "-"],
        ["where", checkpoint.uri or "below the agents' state directories"],
        ["state", "degraded: files lie on their nodes alone" if checkpoint.degraded else "ok"],
    ]
    show_table(["", ""], rows)
    click.echo()
    show(list(record.shards), form, key="shards", columns=SHARD_COLUMNS, name=lambda s: str(s.file))


@command.command()
@job_argument
@step_argument
@rank_option
@server_option
@asynchronous
async def delete(job_id: str, step: int, rank: int | None, server: str) -> None:
    """Delete a checkpoint: not the newest, none that is being resumed from, and none that is pinned.

    \b
    Example:
      holdfast checkpoint delete c7mk2xq9pd 300
    """  # noqa: D301  click reads the backspaces
    async with Client(server) as client:
        job = await client.get_job(job_id)
        record = await client.delete_checkpoint(job_id, step, rank)
    if record is None:
        click.echo(f"step {step} is forgotten; a worker deletes its files with the next checkpoint", err=True)
    elif not job.spec.checkpoint_uri:
        click.echo(
            f"step {step} is forgotten; its files lie below the agents' state directories, and stay", err=True
        )
    else:
        from holdfast.cli.checkpoint_files import place_of, remove

        remove(place_of(job, record), record.step)
        click.echo(f"step {step} deleted", err=True)


@command.command()
@job_argument
@step_argument
@click.argument("name")
@rank_option
@server_option
@asynchronous
async def pin(job_id: str, step: int, name: str, rank: int | None, server: str) -> None:
    """Keep a checkpoint under a name, whatever the job's retention policy says.

    \b
    Example:
      holdfast checkpoint pin c7mk2xq9pd 300 before-the-spike
    """  # noqa: D301  click reads the backspaces
    if not name:
        raise click.UsageError("NAME is empty; to let go of a checkpoint, unpin it")
    async with Client(server) as client:
        await client.pin_checkpoint(job_id, step, name, rank)
    click.echo(f'step {step} is pinned as "{printable(name)}"', err=True)


@command.command()
@job_argument
@step_argument
@rank_option
@server_option
@asynchronous
async def unpin(job_id: str, step: int, rank: int | None, server: str) -> None:
    """Let go of a pinned checkpoint: from here on the job's retention policy decides about it.

    \b
    Example:
      holdfast checkpoint unpin c7mk2xq9pd 300
    """  # noqa: D301  click reads the backspaces
    async with Client(server) as client:
        await client.pin_checkpoint(job_id, step, "", rank)
    click.echo(f"step {step} is not pinned", err=True)


@command.command()
@click.argument("where", metavar="JOB_ID|WHERE", shell_complete=complete_jobs)
@click.option(
    "--step",
    type=click.IntRange(min=0),
    shell_complete=complete_steps,
    help="That of this step.  [default: the newest]",
)
@click.option("--all", "every", is_flag=True, help="Every one that is there.")
@server_option
@output_option
@asynchronous
async def verify(where: str, step: int | None, server: str, output: str, *, every: bool) -> None:
    """Read every byte of checkpoints and compare it with what was committed.

    WHERE is a directory or a URI: of one step, of a job, or above several jobs. No coordinator is asked then.

    \b
    Examples:
      holdfast checkpoint verify /shared/checkpoints --all
      holdfast checkpoint verify s3://bucket/prefix/c7mk2xq9pd --step 300
      holdfast checkpoint verify c7mk2xq9pd
    """  # noqa: D301  click reads the backspaces
    if every and step is not None:
        raise click.UsageError("--all looks at every step; leave --step away")
    from holdfast.cli.checkpoint_files import is_place, job_place, open_place, verified

    if is_place(where):
        place = open_place(where)
    else:
        async with Client(server) as client:
            place = job_place(await client.get_job(where))
    verdicts = verified(place, step, every=every)
    bad = [verdict for verdict in verdicts if not verdict.ok]
    _show_verdicts(verdicts, output)
    if not verdicts:
        which = "" if step is None else f" of step {step}"
        fail(f"there is no checkpoint{which} in {place.uri}", EXIT.NOT_FOUND)
    if bad:
        fail(f"{len(bad)} of {len(verdicts)} checkpoints in {place.uri} are not what was committed")


def _show_verdicts(verdicts: list[Any], form: str) -> None:
    if form == "name":
        for verdict in verdicts:
            click.echo(verdict.where)
    elif form in ("json", "yaml"):
        show_data({"verdicts": [verdict._asdict() for verdict in verdicts]}, form)
    elif verdicts:
        rows = [
            [
                verdict.where or ".",
                str(verdict.step) if verdict.step >= 0 else "-",
                "all" if verdict.rank is None else str(verdict.rank),
                str(verdict.files),
                short_size(verdict.bytes),
                "ok" if verdict.ok else f"CORRUPT: {verdict.problem}",
            ]
            for verdict in verdicts
        ]
        show_table(["CHECKPOINT", "STEP", "RANK", "FILES", "SIZE", "STATE"], rows)
