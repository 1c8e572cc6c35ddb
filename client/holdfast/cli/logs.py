"""`holdfast job logs`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from holdfast.cli.common import asynchronous, fail, server_option
from holdfast.cli.complete import complete_ranks, job_argument
from holdfast.cli.exits import EXIT
from holdfast.cli.late import job_pb2
from holdfast.cli.log_lines import LinePrinter, widen
from holdfast.patterns import TooSlowError, within
from holdfast.units import parse_duration

if TYPE_CHECKING:
    from holdfast.log_wire import AnyChunk

MATCH_WITHIN_S = 5.0
"""A piece of a log, by --grep: a pattern may need longer than the stars do."""


def _read_ranks(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> list[int]:
    """Read --rank: numbers, also several with commas between them."""
    words = [word.strip() for text in texts for word in text.split(",")]
    for word in words:
        if not word.isdecimal() or int(word) >= 2**31:
            raise click.BadParameter(f'"{word}" is no rank; write e.g. 0 or 0,3', context, parameter)
    return list(dict.fromkeys(map(int, words)))


def _read_since(context: click.Context, parameter: click.Parameter, text: str | None) -> datetime | None:
    """Read --since: how long ago, or when; a time without a zone is one here."""
    if text is None:
        return None
    try:
        return datetime.now(UTC) - parse_duration(text)
    except (ValueError, OverflowError):
        pass
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        why = f'"{text}" is neither a duration nor a time; write e.g. 5m or 2026-03-01T09:30:00'
        raise click.BadParameter(why, context, parameter) from error


def _read_pattern(context: click.Context, parameter: click.Parameter, text: str) -> str:
    """Check --grep."""
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        why = f'"{text}" is no regular expression: {error}'
        raise click.BadParameter(why, context, parameter) from error
    return text


def _matching(chunks: Iterator[AnyChunk], pattern: str) -> list[AnyChunk]:
    """What the filter gives. Ends the command when the pattern takes too long to say."""
    try:
        with within(MATCH_WITHIN_S):
            return list(chunks)
    except TooSlowError:
        fail(
            f'--grep: "{pattern}" takes more than {MATCH_WITHIN_S:g} s on a piece of the log; '
            "write one that repeats no repetition",
            EXIT.USAGE,
        )


def _refuse_one_to_come(job: job_pb2.Job, ranks: list[int], attempt: int) -> None:
    """Say so when there is no such attempt, for nothing would look as if it had written nothing."""
    newest = max((each.attempt for each in job.workers if not ranks or each.rank in ranks), default=0)
    if attempt > newest:
        whose = f"rank {ranks[0]} of job {job.id}" if len(ranks) == 1 else f"job {job.id}"
        fail(f"{whose} has no attempt {attempt}; its newest is {newest}", EXIT.USAGE)


@click.command("logs")
@job_argument
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended.")
@click.option(
    "--rank",
    "ranks",
    multiple=True,
    callback=_read_ranks,
    shell_complete=complete_ranks,
    metavar="RANK[,RANK]...",
    help="Only these ranks; may be repeated.",
)
@click.option("--attempt", type=click.IntRange(min=0), default=0, help="Only this attempt.  [default: all]")
@click.option(
    "--since",
    callback=_read_since,
    metavar="DURATION|TIME",
    help="Only what was written since, e.g. 5m, or 2026-03-01T09:30.",
)
@click.option(
    "--tail",
    type=click.IntRange(min=0, max=2**31),
    metavar="LINES",
    help="Only the last lines of each worker's stdout, and of its stderr.",
)
@click.option(
    "--grep", default="", callback=_read_pattern, metavar="REGEX", help="Of these, only lines that match."
)
@server_option
@asynchronous
async def command(
    job_id: str,
    ranks: list[int],
    attempt: int,
    since: datetime | None,
    tail: int | None,
    grep: str,
    server: str,
    *,
    follow: bool,
) -> None:
    """Print what workers wrote, with the rank in front.

    What lies on a node that is gone comes from the archive in the job's checkpoint storage. When some of what was
    asked for is nowhere, stderr says so, and the exit code is 3.

    \b
    Examples:
      holdfast job logs c7mk2xq9pd
      holdfast job logs c7mk2xq9pd --follow --rank 0,3 --tail 20
      holdfast job logs c7mk2xq9pd --since 10m --grep 'loss=(nan|inf)'
    """  # noqa: D301  click reads the backspaces
    from holdfast.allocator import keep_large_blocks
    from holdfast.log_client import LogClient
    from holdfast.log_text import Filter

    keep_large_blocks()
    widen(sys.stdout)
    printer = LinePrinter()
    lines = Filter(grep) if grep else None
    came = False
    request = job_pb2.StreamLogsRequest(job_id=job_id, ranks=ranks, attempt=attempt, follow=follow, tail=tail)
    if since is not None:
        request.since.FromDatetime(since)
    async with LogClient(server) as client:
        async for chunk in client.chunks(request):
            came = True
            for found in [chunk] if lines is None else _matching(lines.add(chunk), grep):
                printer.write(found)
        if attempt and not came:
            _refuse_one_to_come(await client.get_job(job_id), ranks, attempt)
    for found in [] if lines is None else _matching(lines.finish(), grep):
        printer.write(found)
    printer.finish()
    if printer.away and not follow:
        raise click.exceptions.Exit(EXIT.UNREACHABLE)
