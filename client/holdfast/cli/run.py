"""`holdfast run`: a coordinator, an agent and a client in one process. The composition root of all three."""

from __future__ import annotations

import gc
import importlib.util
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar, cast

import click

from holdfast.cli import chaos, run_state
from holdfast.cli.common import (
    asynchronous,
    fail,
    find_server,
    set_up_logs,
    set_up_tracing,
    trace_from_environment,
)
from holdfast.cli.exits import EXIT
from holdfast.cli.job import code_of
from holdfast.cli.job_options import apply_flags, explain, spec_options
from holdfast.cli.late import api, asyncio, job_pb2, wire
from holdfast.cli.log_lines import widen
from holdfast.cli.resume_from import resolve_resume_from
from holdfast.cli.run_view import View, show_summary

if TYPE_CHECKING:
    from holdfast_agent.agent import Agent

T = TypeVar("T")

NEVER_LOST_MS = 365 * 86_400_000
"""The agent lives and dies with its coordinator. After a Ctrl-Z both were silent, and no worker is to pay for it."""
NODE = "localhost"
"""The one node; also when a run is resumed under another host name."""
SLOTS = 100_000
"""Room for all workers of any job: there is one, and what it asks for is what it gets."""
NEEDS = ("alembic", "grpc_health", "grpc_reflection", "prometheus_client", "sqlalchemy", "structlog")
"""What it imports on its way that the client alone does not bring."""


@click.command(context_settings={"allow_interspersed_args": False})
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
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="[--] [COMMAND]...")
@asynchronous
async def command(argv: tuple[str, ...], resume: str | None, plan: str | None, **flags: Any) -> None:
    """Run a training command on this machine, and keep it alive.

    State, logs and checkpoints go to .holdfast/runs/NAME. Ctrl-C stops gracefully; twice, at once.

    \b
    Examples:
      holdfast run -n 4 -- python train.py
      holdfast run -n 4 --restart-scope rank -- python train.py --lr 0.1
      holdfast run --resume
    """  # noqa: D301  click reads the backspaces
    kill = chaos.parse(plan) if plan is not None else None
    for name in NEEDS:  # now, and not when the run has a directory
        if importlib.util.find_spec(name) is None:
            fail(f"what runs jobs is not installed here ({name}): pip install 'holdfast[run]'")
    spec = None
    if resume is None:
        spec = job_pb2.JobSpec(world_size=1)
        apply_flags(spec, flags, argv)
        if spec.resume_from:
            await resolve_resume_from(spec, find_server())
        place = run_state.create(spec.name)
    else:
        _refuse_beside_resume(argv, flags)
        place = run_state.resume(resume)
    try:
        with place.open_log() as logs:
            code = await _run(place, spec, kill, logs)
    except wire.InvalidSpec as error:
        shutil.rmtree(place.path)
        fail(explain(error, flags), EXIT.USAGE)
    except asyncio.CancelledError:  # Ctrl-C while there was no job to stop, or once too often
        code = EXIT.INTERRUPTED
    raise click.exceptions.Exit(code)


def _refuse_beside_resume(argv: tuple[str, ...], flags: Mapping[str, Any]) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in flags.items() if value not in (None, ())]
    for extra in [*argv, *given][:1]:
        raise click.UsageError(f"--resume goes on with what the run began with; leave {extra} away")


async def _run(
    place: run_state.RunDir, spec: job_pb2.JobSpec | None, kill: chaos.Kill | None, logs: TextIO
) -> EXIT:
    from holdfast.allocator import keep_large_blocks

    keep_large_blocks()
    widen(sys.stdout)
    view, interrupts = View(), _Interrupts()
    _set_up_logs(logs, view)
    set_up_tracing("holdfast-run")
    async with _agent(place) as agent, _coordinator(place) as (client, failed):
        job = await (_begin(client, spec, place) if spec is not None else _find(client, place))
        workers = "1 worker" if job.spec.world_size == 1 else f"{job.spec.world_size} workers"
        view.note(f"run {place.name}: {workers}")
        await view.note_events(client, job.id, quietly=True)
        working = asyncio.create_task(agent.run())
        helpers = [asyncio.create_task(interrupts.obey(client, job.id, view))]
        if kill is not None:
            helpers.append(asyncio.create_task(chaos.wreak(kill, lambda: _targets(agent), view.note)))
        try:
            old = _shown_before(job)
            job = await _unless_broken(_show(client, job, view, old), failed, working)
        finally:
            if kill is not None and not helpers[-1].done():
                view.note("chaos: no worker came to that step")
            await _cancel(*helpers, working)
        summary = await client.job_summary(job.id)
    place.finish()
    if job.state == job_pb2.JOB_STATE_STOPPED and summary.HasField("last_committed_step"):
        view.note(f"{job.reason}; a run with --resume-from {place.name} goes on")
    await view.end()
    show_summary(summary, place.path, job.spec.checkpoint_uri)
    if job.state == job_pb2.JOB_STATE_FAILED:
        click.echo(f"Error: the job failed: {job.reason}", err=True)
    if job.state == job_pb2.JOB_STATE_STOPPED and interrupts.count:
        return EXIT.INTERRUPTED
    return code_of(job)


def _set_up_logs(logs: TextIO, view: View) -> None:
    # structlog imports rich for colourful tracebacks, of which a file gets none, and that takes as long as numpy does.
    hidden = "rich" not in sys.modules
    if hidden:
        sys.modules["rich"] = cast("Any", None)
    try:
        set_up_logs(logs, tell=view.note)
    finally:
        if hidden:
            del sys.modules["rich"]


def _address(place: run_state.RunDir) -> str:
    """Where the run's coordinator listens: in a directory that is its user's alone.

    From here the path is short, as that of a socket has to be. One that a killed run left there is taken over.
    """
    return f"unix:{(place.path / 'c.sock').relative_to(Path.cwd())}"


@asynccontextmanager
async def _coordinator(place: run_state.RunDir) -> AsyncIterator[tuple[api.Client, asyncio.Task[None]]]:
    """Run a coordinator that only this process can reach. The task ends when it breaks."""
    with _imports():
        from holdfast_coordinator.app import Coordinator, CoordinatorConfig
        from holdfast_coordinator.store.api import StoreError
    coordinator = Coordinator(
        CoordinatorConfig(
            _address(place),
            place.path / "coordinator",
            lost_after_ms=NEVER_LOST_MS,
            gone_after_ms=NEVER_LOST_MS,
        )
    )
    try:
        async with api.Client(await coordinator.start()) as client:
            failed = asyncio.create_task(coordinator.wait())
            try:
                yield client, failed
            finally:
                await _cancel(failed)
    except StoreError as error:
        fail(str(error))
    finally:
        await coordinator.stop()


@asynccontextmanager
async def _agent(place: run_state.RunDir) -> AsyncIterator[Agent]:
    """Make an agent ready, and end its workers with it. What starts workers comes up while the rest is imported."""
    with _imports():
        from holdfast_agent.agent import Agent, AgentConfig
        from holdfast_agent.workdir import StateDirError
    try:
        agent = Agent(
            AgentConfig(
                _address(place), place.path / "agent", NODE, SLOTS, foreground=True, archive_logs=False
            )
        )
    except StateDirError as error:
        fail(str(error))
    try:
        await agent.start()
        yield agent
    except StateDirError as error:
        fail(str(error))
    finally:
        await agent.stop(workers=True)


@contextmanager
def _imports() -> Iterator[None]:
    """Around the large imports: three quarters of a launch, and none of it is garbage ever."""
    gc.disable()
    try:
        yield
    except ModuleNotFoundError as error:
        fail(
            f"`holdfast run` needs the coordinator and the agent ({error.name}): pip install 'holdfast[run]'"
        )
    finally:
        gc.freeze()
        gc.enable()


async def _begin(client: api.Client, spec: job_pb2.JobSpec, place: run_state.RunDir) -> job_pb2.Job:
    spec.checkpoint_uri = spec.checkpoint_uri or str(place.path / "checkpoints")
    trace_from_environment(spec)
    return await client.create_job(spec, request_id=place.name)


async def _find(client: api.Client, place: run_state.RunDir) -> job_pb2.Job:
    jobs = [job async for job in client.list_jobs()]
    if not jobs:
        place.finish()
        fail(f"run {place.name} ended before its job was created; start it again")
    return jobs[0]


def _shown_before(job: job_pb2.Job) -> dict[int, int]:
    """Of every rank, the attempt whose output was shown when this run ran before."""
    return {worker.rank: worker.attempt for worker in job.workers if worker.HasField("started_at")}


async def _show(client: api.Client, job: job_pb2.Job, view: View, old: Mapping[int, int]) -> job_pb2.Job:
    """Show what becomes of a job until it has ended and all of its output is shown."""
    if job.state in api.TERMINAL:
        view.note("its job had ended already; there is nothing to resume")
        return job
    printing = asyncio.create_task(_print_logs(client, job.id, view, old))
    try:
        seen = (job.restarts, job.state, job.degraded)
        async for now in client.watch_job(job.id):
            if now.state == job_pb2.JOB_STATE_PENDING and now.reason != job.reason:
                view.note(now.reason)
            job = now
            view.progress(job)
            if (job.restarts, job.state, job.degraded) != seen:
                seen = (job.restarts, job.state, job.degraded)
                await view.note_events(client, job.id)
        await printing
    finally:
        await _cancel(printing)
    return job


async def _print_logs(client: api.Client, job_id: str, view: View, old: Mapping[int, int]) -> None:
    try:
        async for chunk in client.stream_logs(job_id, follow=True):
            if chunk.cursor.attempt > old.get(chunk.cursor.rank, 0):
                await view.show(chunk)
        await view.show_rests()
    except BrokenPipeError:
        view.note("nobody reads the output any more; stopping")
        await client.stop_job(job_id)


async def _unless_broken(work: Coroutine[Any, Any, T], *parts: asyncio.Task[None]) -> T:
    """Do the work, unless one of the parts that it stands on breaks."""
    doing = asyncio.ensure_future(work)
    try:
        await asyncio.wait({doing, *parts}, return_when=asyncio.FIRST_COMPLETED)
        for part in parts:
            if part.done() and not doing.done():
                fail(f"something inside broke: {part.exception()!r}; see holdfast.log of the run")
        return await doing
    finally:
        await _cancel(doing)


class _Interrupts:
    """Ctrl-C and SIGTERM: the first stops the job gracefully, the second at once, the third lets go of it."""

    def __init__(self) -> None:
        self.count = 0
        self._asked: asyncio.Queue[bool] = asyncio.Queue()
        self._obeyed = False
        self._main = asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._hear)

    async def obey(self, client: api.Client, job_id: str, view: View) -> None:
        """Stop the job when that is asked for. Before and after, asking ends the whole command."""
        self._obeyed = True
        try:
            while True:
                force = await self._asked.get()
                view.note("stopping at once" if force else "stopping; once more stops at once")
                await client.stop_job(job_id, force=force)
        except wire.HoldfastError as error:  # its store fails
            view.note(
                f"the job could not be told to stop: {error}; ending its workers, --resume goes on with it"
            )
            if self._main is not None:
                self._main.cancel()
        finally:
            self._obeyed = False

    def _hear(self) -> None:
        self.count += 1
        if self._obeyed and self.count <= 2:
            self._asked.put_nowait(self.count == 2)
        elif self._main is not None:
            self._main.cancel()


@dataclass(frozen=True, slots=True)
class _Target:
    """A worker as chaos sees it."""

    rank: int
    pid: int
    step: int | None


def _targets(agent: Agent) -> list[_Target]:
    return [_Target(w.key.rank, w.pid, w.reading.step) for w in agent.workers()]


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
