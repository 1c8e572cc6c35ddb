"""What the shell completes: ids of jobs, names of nodes, ranks, steps, contexts.

The coordinator is asked, and has 300 ms to answer (HOLDFAST_COMPLETION_TIMEOUT), page by page; what came until then is
shown. When it is away, or anything else is wrong, there is nothing to show: whoever presses Tab wants no error.
"""

from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from holdfast.client import Client
    from holdfast.v1 import job_pb2

WITHIN = "300ms"
MOST = 200
"""So many are shown, the newest first: nobody reads more."""

Found = list[CompletionItem]
Ask = Callable[["Client", click.Context, str, Found], Coroutine[Any, Any, None]]
Complete = Callable[[click.Context, click.Parameter, str], Found]


def _completer(ask: Ask) -> Complete:
    """Make what click calls from what asks the coordinator, which adds to a list as it learns."""

    def complete(context: click.Context, _parameter: click.Parameter, incomplete: str) -> Found:
        found: Found = []
        with suppress(Exception):
            import asyncio

            asyncio.run(_within_time(ask, context, incomplete, found))
        return found[:MOST]

    return complete


async def _within_time(ask: Ask, context: click.Context, incomplete: str, found: Found) -> None:
    import asyncio
    import os

    from holdfast import contexts
    from holdfast.client import Client
    from holdfast.units import parse_duration

    within = parse_duration(os.environ.get("HOLDFAST_COMPLETION_TIMEOUT") or WITHIN)
    server = context.params.get("server") or contexts.resolve(None).address
    client = Client(server)
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(within.total_seconds()):
                await ask(client, context, incomplete, found)
    finally:
        await client.close()


def _jobs(which: Callable[["job_pb2.Job"], bool]) -> Complete:
    async def ask(client: "Client", context: click.Context, incomplete: str, found: Found) -> None:
        from holdfast.cli.common import enum_word
        from holdfast.v1 import job_pb2

        given = context.params.get("job_ids") or ()
        async for job in client.list_jobs():
            if job.id.startswith(incomplete) and job.id not in given and which(job):
                word = enum_word(job_pb2.JobState.Name(job.state))
                found.append(CompletionItem(job.id, help=f"{job.spec.name}, {word}"))
                if len(found) >= MOST:
                    return

    return _completer(ask)


def _is_live(job: "job_pb2.Job") -> bool:
    from holdfast.client import TERMINAL

    return job.state not in TERMINAL


def _job_id(context: click.Context) -> str:
    """The job that the line names; behind an option that has no value yet click has only put it aside."""
    found = context.params.get("job_id") or context.params.get("where") or context.args[0]
    return str(found)


async def _nodes(client: "Client", _context: click.Context, incomplete: str, found: Found) -> None:
    async for node in client.list_nodes():
        if node.name.startswith(incomplete):
            used = f"{node.slots_used} of {node.capacity.slots} slots used"
            found.append(CompletionItem(node.name, help=used))


async def _lost_nodes(client: "Client", _context: click.Context, incomplete: str, found: Found) -> None:
    from holdfast.v1 import node_pb2

    async for node in client.list_nodes():
        if node.name.startswith(incomplete) and node.state == node_pb2.NODE_STATE_LOST:
            found.append(CompletionItem(node.name, help=node.reason))


async def _ranks(client: "Client", context: click.Context, incomplete: str, found: Found) -> None:
    from holdfast.cli.common import enum_word
    from holdfast.v1 import job_pb2

    before, comma, last = incomplete.rpartition(",")
    job = await client.get_job(_job_id(context))
    for worker in job.workers:
        if str(worker.rank).startswith(last):
            word = enum_word(job_pb2.WorkerState.Name(worker.state))
            found.append(CompletionItem(f"{before}{comma}{worker.rank}", help=f"{worker.node}, {word}"))


async def _steps(client: "Client", context: click.Context, incomplete: str, found: Found) -> None:
    seen = set()
    async for checkpoint in client.list_checkpoints(_job_id(context)):
        step = str(checkpoint.step)
        if step.startswith(incomplete) and step not in seen:
            seen.add(step)
            found.append(CompletionItem(step, help=checkpoint.pin))


complete_jobs = _jobs(lambda _: True)
complete_live_jobs = _jobs(_is_live)
complete_nodes = _completer(_nodes)
complete_lost_nodes = _completer(_lost_nodes)
complete_ranks = _completer(_ranks)
complete_steps = _completer(_steps)


def complete_contexts(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> Found:
    """Names out of the config file."""
    from holdfast import contexts
    from holdfast.config_files import ConfigError

    try:
        config = contexts.read_config(contexts.config_path())
    except ConfigError:
        return []
    named = config.servers.items()
    return [CompletionItem(name, help=server) for name, server in named if name.startswith(incomplete)]


job_argument = click.argument("job_id", shell_complete=complete_jobs)
live_job_argument = click.argument("job_id", shell_complete=complete_live_jobs)
node_argument = click.argument("name", metavar="NODE", shell_complete=complete_nodes)
lost_node_argument = click.argument("name", metavar="NODE", shell_complete=complete_lost_nodes)
