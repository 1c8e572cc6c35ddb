"""`holdfast top`."""

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

import click

from holdfast.cli.common import (
    asynchronous,
    coloured,
    output_option,
    read_duration,
    server_option,
    show_data,
    to_dict,
    with_source,
)
from holdfast.cli.screen import Screen
from holdfast.cli.top_view import Seen, frame
from holdfast.client import TERMINAL, Client
from holdfast.v1 import job_pb2
from holdfast.wire import HoldfastError, NotFound, Unreachable

ONCE_WIDTH = 10_000
"""What is not drawn on a terminal is not cut."""
ASKED_AT_ONCE = 16


@click.command()
@click.option("--once", is_flag=True, help="Print it once; also done where stdout is no terminal.")
@click.option(
    "--interval",
    callback=read_duration,
    default="1s",
    show_default=True,
    metavar="DURATION",
    help="How often the numbers are asked for.",
)
@click.option("--metric", default="loss", show_default=True, metavar="NAME", help="The one that is drawn.")
@server_option
@output_option
@asynchronous
async def command(interval: timedelta, metric: str, server: str, output: str, *, once: bool) -> None:
    """Watch the fleet: nodes, jobs, how fast they are, and the curve of the loss since this was started.

    q or Ctrl-C ends it. With -o json, yaml or name it prints once.

    \b
    Examples:
      holdfast top
      holdfast top --metric accuracy --interval 5s
      holdfast top --once -o json
    """  # noqa: D301  click reads the backspaces
    seen = Seen(server, metric)
    async with Client(server) as client:
        if not once and output in ("table", "wide") and sys.stdout.isatty():
            await _live(client, seen, max(interval.total_seconds(), 0.1))
            return
        seen.nodes = {node.name: node async for node in client.list_nodes()}
        seen.jobs = {job.id: job async for job in client.list_jobs()}
        await _ask(client, seen)
    if output in ("json", "yaml"):
        shown = seen.shown_jobs(time.time())
        data = {
            "nodes": [to_dict(node) for node in seen.nodes.values()],
            "summaries": [to_dict(seen.summaries[job.id]) for job in shown if job.id in seen.summaries],
        }
        show_data(data, output)
    elif output == "name":
        for job in seen.shown_jobs(time.time()):
            click.echo(job.id)
    else:
        for line in frame(seen, ONCE_WIDTH, None, time.time()):
            click.echo(line.text)


async def _live(client: Client, seen: Seen, interval: float) -> None:
    """Draw until it is to end, whenever something has changed."""
    screen = Screen(colour=coloured(sys.stdout))
    await client.clock_offset()  # whoever is not there is told of before the screen is taken
    with screen.held():
        work = [
            asyncio.ensure_future(part)
            for part in (
                _again_and_again(lambda: _watch_nodes(client, seen, screen), seen, screen, interval),
                _again_and_again(lambda: _watch_jobs(client, seen, screen), seen, screen, interval),
                _watch_numbers(client, seen, screen, interval),
                _draw(seen, screen),
            )
        ]
        try:
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for part in work:
                part.cancel()
            await asyncio.gather(*work, return_exceptions=True)
    for part in done:
        part.result()


async def _draw(seen: Seen, screen: Screen) -> None:
    """Draw at every stir, at most so often that the eye follows."""
    while not screen.ended.is_set():
        width, height = screen.size()
        screen.draw(frame(seen, width, height, time.time()))
        await screen.stirred.wait()
        if not screen.ended.is_set():
            await asyncio.sleep(0.05)
        screen.stirred.clear()


async def _again_and_again(
    watch: Callable[[], Coroutine[Any, Any, None]], seen: Seen, screen: Screen, interval: float
) -> None:
    """Watch for ever: a stream that ends, or that nobody answers, is begun anew."""
    while True:
        try:
            await watch()
        except Unreachable as error:
            seen.trouble = with_source(str(error))
            screen.stirred.set()
        await asyncio.sleep(interval)


async def _watch_nodes(client: Client, seen: Seen, screen: Screen) -> None:
    fresh = set()
    async for change in client.watch_nodes():
        match change.WhichOneof("change"):
            case "node":
                fresh.add(change.node.name)
                seen.nodes[change.node.name] = change.node
            case "deleted":
                seen.nodes.pop(change.deleted, None)
            case "ready":
                seen.nodes = {name: node for name, node in seen.nodes.items() if name in fresh}
        screen.stirred.set()


async def _watch_jobs(client: Client, seen: Seen, screen: Screen) -> None:
    fresh = set()
    async for change in client.watch_jobs():
        match change.WhichOneof("change"):
            case "job":
                fresh.add(change.job.id)
                seen.jobs[change.job.id] = change.job
            case "deleted":
                seen.forget(change.deleted)
            case "ready":
                for job_id in seen.jobs.keys() - fresh:
                    seen.forget(job_id)
        screen.stirred.set()


async def _watch_numbers(client: Client, seen: Seen, screen: Screen, interval: float) -> None:
    """Ask for the numbers of what is shown; say so when nobody answers, and go on."""
    while True:
        try:
            await client.clock_offset()  # also while there is no job to ask about
            await _ask(client, seen, screen.size()[1])
            seen.trouble = ""
        except HoldfastError as error:
            seen.trouble = with_source(str(error))
        screen.stirred.set()
        await asyncio.sleep(interval)


async def _ask(client: Client, seen: Seen, most: int | None = None) -> None:
    """Ask for the numbers of the jobs that are shown and can change, and of those that are new to us."""
    turns = asyncio.Semaphore(ASKED_AT_ONCE)

    async def ask(job: job_pb2.Job) -> None:
        try:
            async with turns:
                seen.note(await client.job_summary(job.id))
        except NotFound:  # deleted meanwhile
            seen.forget(job.id)

    def settled(job: job_pb2.Job) -> bool:
        known = seen.summaries.get(job.id)
        return known is not None and known.state in TERMINAL

    shown = seen.shown_jobs(time.time())[:most]
    await asyncio.gather(*(ask(job) for job in shown if not settled(job)))
