"""`holdfast run`: a coordinator, an agent and a client in one process. The composition root of all three."""

import asyncio
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from holdfast.cli import chaos, run_state
from holdfast.cli.common import asynchronous, fail, set_up_logs
from holdfast.cli.exits import EXIT
from holdfast.cli.job import CODES
from holdfast.cli.job_options import apply_flags, default_name, explain, spec_options
from holdfast.cli.log_lines import LinePrinter
from holdfast.cli.run_view import View, show_summary
from holdfast.client import TERMINAL, Client
from holdfast.v1 import job_pb2
from holdfast.wire import InvalidSpec


@dataclass(frozen=True, slots=True)
class _Target:
    """A worker as chaos sees it."""

    rank: int
    pid: int
    step: int | None


@click.command()
@spec_options
@click.option(
    "--resume",
    is_flag=False,
    flag_value="",
    default=None,
    metavar="[NAME]",
    help="Go on with the run of this name, or the newest that has not ended.",
)
@click.option(
    "--chaos", "plan", metavar="PLAN", help="kill-worker@step=200[,rank=1]: SIGKILL a worker for you."
)
@click.argument("argv", nargs=-1, type=click.UNPROCESSED)
@asynchronous
async def command(argv: tuple[str, ...], resume: str | None, plan: str | None, **flags: Any) -> None:
    r"""Run a training command on this machine, and keep it alive.

    State, logs and checkpoints go to .holdfast/runs/NAME. Ctrl-C stops gracefully; twice, at once.

    \b
    Examples:
      holdfast run -n 4 -- python train.py
      holdfast run -n 4 --restart-scope rank -- python train.py --lr 0.1
      holdfast run --resume
    """
    kill = chaos.parse(plan) if plan else None
    spec = None
    if resume is None:
        spec = job_pb2.JobSpec()
        apply_flags(spec, flags, argv)
    elif argv:
        raise click.UsageError("--resume goes on with the command that the run began with; give none")
    if resume is None:
        place = run_state.create(flags["name"] or default_name(argv))
    else:
        place = run_state.resume(resume)
    with (place.path / "holdfast.log").open("a", buffering=1) as logs:
        set_up_logs(logs)
        code = await _run(place, spec, kill)
    raise click.exceptions.Exit(code)


async def _run(place: run_state.RunDir, spec: job_pb2.JobSpec | None, kill: chaos.Kill | None) -> EXIT:
    view = View()
    async with _everything(place, spec) as (client, agent):
        job = await (_begin(client, spec, place) if spec is not None else _find(client, place))
        view.note(f"run {place.name}, {job.spec.world_size} workers")
        _stop_on_signals(client, job.id, view)
        helpers = [asyncio.create_task(_print_logs(client, job.id, view))]
        if kill is not None:
            helpers.append(asyncio.create_task(chaos.wreak(kill, lambda: _targets(agent), view.note)))
        job = await _watch(client, job, view)
        await helpers[0]
        await _cancel(helpers)
        await view.note_events(client, job.id)
        view.end()
        summary = await client.job_summary(job.id)
    place.finish()
    show_summary(summary, place.path, job.spec.checkpoint_uri)
    if job.state == job_pb2.JOB_STATE_FAILED:
        click.echo(f"Error: the job failed: {job.reason}", err=True)
    return CODES[job.state]


@asynccontextmanager
async def _everything(
    place: run_state.RunDir, spec: job_pb2.JobSpec | None
) -> AsyncIterator[tuple[Client, Any]]:
    """Start a coordinator and an agent; end them, and every worker, when it is over."""
    try:
        from holdfast_agent.agent import Agent, AgentConfig
        from holdfast_agent.workdir import StateDirError
        from holdfast_coordinator.app import Coordinator, CoordinatorConfig
        from holdfast_coordinator.store.api import StoreError
    except ModuleNotFoundError as error:
        fail(
            f"`holdfast run` needs the coordinator and the agent ({error.name}): pip install 'holdfast[run]'"
        )
    sockets = Path(tempfile.mkdtemp(prefix="holdfast-"))
    coordinator = Coordinator(
        CoordinatorConfig(f"unix:{sockets}/coordinator.sock", place.path / "coordinator")
    )
    agent: Agent | None = None
    work: asyncio.Task[None] | None = None
    try:
        target = await coordinator.start()
        async with Client(target) as client:
            slots = spec.world_size if spec is not None else (await _find(client, place)).spec.world_size
            config = AgentConfig(target, place.path / "agent", slots=max(1, slots), foreground=True)
            agent = Agent(config)
            work = asyncio.create_task(agent.run())
            yield client, agent
    except (StoreError, StateDirError) as error:
        fail(str(error))
    finally:
        if work is not None:
            await _cancel([work])
        if agent is not None:
            await agent.stop(workers=True)
        await coordinator.stop()
        shutil.rmtree(sockets, ignore_errors=True)


async def _begin(client: Client, spec: job_pb2.JobSpec, place: run_state.RunDir) -> job_pb2.Job:
    spec.checkpoint_uri = spec.checkpoint_uri or str(place.path / "checkpoints")
    try:
        return await client.create_job(spec, request_id=place.name)
    except InvalidSpec as error:
        shutil.rmtree(place.path)
        fail(explain(error), EXIT.USAGE)


async def _find(client: Client, place: run_state.RunDir) -> job_pb2.Job:
    jobs = [job async for job in client.list_jobs()]
    if jobs:
        return jobs[0]
    return fail(f"run {place.name} ended before its job was created; start it again")


async def _watch(client: Client, job: job_pb2.Job, view: View) -> job_pb2.Job:
    """Show what becomes of a job until it has ended."""
    restarts, state = job.restarts, job.state
    async for job in client.watch_job(job.id):  # noqa: PLR1704, B020  the newest is what counts
        view.progress(job)
        if (job.restarts, job.state) != (restarts, state):
            restarts, state = job.restarts, job.state
            await view.note_events(client, job.id)
        if job.state in TERMINAL:
            break
    return job


async def _print_logs(client: Client, job_id: str, view: View) -> None:
    printer = LinePrinter(view.around)
    async for chunk in client.stream_logs(job_id, follow=True):
        printer.write(chunk)
    printer.finish()


def _stop_on_signals(client: Client, job_id: str, view: View) -> None:
    """Stop gracefully on the first Ctrl-C or SIGTERM, at once on the second."""
    loop = asyncio.get_running_loop()
    stopping: list[asyncio.Task[Any]] = []

    def stop() -> None:
        force = bool(stopping)
        view.note("stopping at once" if force else "stopping; once more stops at once")
        stopping.append(loop.create_task(client.stop_job(job_id, force=force)))

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)


def _targets(agent: Any) -> list[_Target]:
    return [_Target(w.key.rank, w.pid, w.reading.step) for w in agent.workers()]


async def _cancel(tasks: list["asyncio.Task[None]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
