"""`holdfast job`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from holdfast.cli.common import (
    Column,
    Showings,
    age,
    asynchronous,
    enum_word,
    fail,
    metrics,
    output_option,
    printable,
    server_option,
    set_up_tracing,
    short_seconds,
    show,
    show_data,
    show_table,
    time_shares,
    to_dict,
    trace_from_environment,
    watch_option,
)
from holdfast.cli.complete import job_argument, live_job_argument
from holdfast.cli.curves import command as curves
from holdfast.cli.delete import delete, purge
from holdfast.cli.exits import EXIT
from holdfast.cli.job_options import apply_flags, explain, spec_options
from holdfast.cli.late import api, asyncio, job_pb2, wire
from holdfast.cli.logs import command as logs
from holdfast.cli.plan import show_plan
from holdfast.cli.resume_from import resolve_resume_from
from holdfast.cli.samples import command as samples
from holdfast.cli.watching import Lines, follow_option, watch_list
from holdfast.cli.why import command as why
from holdfast.units import parse_duration


def state_word(job: job_pb2.Job) -> str:
    """running, pending, and so on."""
    return enum_word(job_pb2.JobState.Name(job.state))


def committed(job: job_pb2.Job) -> str:
    """The last committed step, or a dash."""
    return str(job.last_committed_step) if job.HasField("last_committed_step") else "-"


def worker_state(worker: job_pb2.Worker) -> str:
    """running, waiting, and so on; and whether it hangs."""
    word = enum_word(job_pb2.WorkerState.Name(worker.state))
    return f"{word}, hangs" if worker.HasField("hang") else word


def hang(worker: job_pb2.Worker) -> str:
    """What it hangs in, and for how long, or a dash."""
    if not worker.HasField("hang"):
        return "-"
    found = worker.hang
    where = f", in {found.where}" if found.where else ""
    return f"{found.section} for {age(found.since)}{where}{', stopped by a signal' if found.stopped else ''}"


def straggler(worker: job_pb2.Worker) -> str:
    """How slow it is, while it is, and how often it was."""
    score = f"{worker.straggler_score:.1f}" if worker.HasField("straggler_score") else "-"
    strikes = "1 strike" if worker.strikes == 1 else f"{worker.strikes} strikes"
    return f"{score} ({strikes})" if worker.strikes else score


DEGRADED = (
    "degraded: files of the newest checkpoint lie on their nodes alone, because the storage could not be reached; "
    "they go there when it can"
)


def code_of(job: job_pb2.Job) -> EXIT:
    """The exit code that tells how a job has ended."""
    match job.state:
        case job_pb2.JOB_STATE_SUCCEEDED:
            return EXIT.OK
        case job_pb2.JOB_STATE_STOPPED:
            return EXIT.STOPPED
        case _:
            return EXIT.FAILED


COLUMNS = (
    Column("JOB", lambda j: j.id),
    Column("NAME", lambda j: j.spec.name),
    Column("STATE", state_word),
    Column("WORKERS", lambda j: str(j.spec.world_size)),
    Column("RESTARTS", lambda j: str(j.restarts)),
    Column("COMMITTED", committed),
    Column("AGE", lambda j: age(j.created_at)),
    Column("SCOPE", lambda j: enum_word(job_pb2.RestartScope.Name(j.spec.restart.scope)), wide=True),
    Column("REASON", lambda j: j.reason, wide=True),
)

WORKER_COLUMNS = (
    Column("RANK", lambda w: str(w.rank)),
    Column("STATE", worker_state),
    Column("NODE", lambda w: w.node or "-"),
    Column("PID", lambda w: str(w.pid or "-")),
    Column("ATTEMPT", lambda w: str(w.attempt)),
    Column("STEP", lambda w: str(w.step) if w.HasField("step") else "-"),
    Column("SECTION", lambda w: w.section or "-", wide=True),
    Column("HANGS", hang, wide=True),
    Column("SLOW", straggler, wide=True),
    Column("METRICS", metrics, wide=True),
    Column("LAST EXIT", lambda w: w.last_exit.message or "-"),
)


def _read_timeout(context: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    """Read --timeout into seconds."""
    if text is None:
        return None
    if context.params.get("wait") is False:
        raise click.UsageError("--timeout says how long to --wait; give both")
    try:
        return parse_duration(text).total_seconds()
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from error


timeout_option = click.option(
    "--timeout", callback=_read_timeout, metavar="DURATION", help="Wait no longer than this, e.g. 30m."
)


def waiting(command: Any) -> Any:
    """Add --wait and --timeout."""
    wait = click.option(
        "--wait",
        is_flag=True,
        is_eager=True,  # --timeout looks at it
        help="Wait until the job has ended; the exit code tells how it did.",
    )
    return wait(timeout_option(command))


@click.group()
def command() -> None:
    """Submit, list, watch, stop and delete jobs.

    \b
    Examples:
      holdfast job submit -n 4 -- python train.py
      holdfast job watch c7mk2xq9pd
      holdfast job why c7mk2xq9pd
    """  # noqa: D301  click reads the backspaces


command.add_command(delete)
command.add_command(purge)
command.add_command(curves)
command.add_command(logs)
command.add_command(samples)
command.add_command(why)


@command.command(context_settings={"allow_interspersed_args": False})
@click.option("-f", "--file", type=click.Path(path_type=Path), help="A job file; flags win over it.")
@spec_options
@click.option("--dry-run", is_flag=True, help="Submit nothing: say where each rank would be placed now.")
@waiting
@server_option
@output_option
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="[--] [COMMAND]...")
@asynchronous
async def submit(
    file: Path | None,
    argv: tuple[str, ...],
    server: str,
    output: str,
    *,
    dry_run: bool,
    wait: bool,
    timeout: float | None,
    **flags: Any,
) -> None:
    """Submit a job; print its id.

    \b
    Examples:
      holdfast job submit -f job.yaml
      holdfast job submit -n 8 --restart-scope rank -- python train.py --lr 0.1
      holdfast job submit -f job.yaml -n 16 --wait --timeout 2h
      holdfast job submit -f job.yaml --dry-run
    """  # noqa: D301  click reads the backspaces
    spec, where = job_pb2.JobSpec(world_size=1), None
    if file is not None:
        from holdfast.spec import SpecError, SpecFile

        try:
            found = SpecFile(file)
        except SpecError as error:
            fail(str(error), EXIT.USAGE)
        spec, where = found.part.to_proto(), found.where
    elif len(argv) == 1 and argv[0].endswith((".yaml", ".yml")):
        fail(f"{argv[0]} is a job file and no command; write -f {argv[0]}", EXIT.USAGE)
    apply_flags(spec, flags, argv)
    await resolve_resume_from(spec, server)
    async with api.Client(server) as client:
        try:
            if dry_run:
                show_plan(await client.plan_job(spec), output)
                return
            set_up_tracing("holdfast-cli")
            trace_from_environment(spec)
            job = await client.create_job(spec)
        except wire.InvalidSpec as error:
            fail(explain(error, flags, where), EXIT.USAGE)
        show_job(job, output) if output in ("json", "yaml") else click.echo(job.id)
        if wait:
            await wait_for(client, job.id, timeout)


@command.command("list")
@click.option("--state", "states", multiple=True, help="Only jobs in this state; may be repeated.")
@click.option("--name", default="", help="Only jobs of this name.")
@follow_option
@server_option
@output_option
@asynchronous
async def list_jobs(states: tuple[str, ...], name: str, server: str, output: str, *, again: bool) -> None:
    """List jobs, newest first.

    \b
    Examples:
      holdfast job list --state running --state pending
      holdfast job list --watch
      holdfast job list -o name
    """  # noqa: D301  click reads the backspaces
    known = {enum_word(state): number for state, number in job_pb2.JobState.items() if number}
    for state in states:
        if state not in known:
            raise click.BadParameter(f"{state} is none of {', '.join(known)}", param_hint="--state")
    async with api.Client(server) as client:
        wanted = [known[state] for state in states]
        if again:
            matches = lambda job: (not wanted or job.state in wanted) and name in ("", job.spec.name)  # noqa: E731
            await watch_list(client.watch_jobs(), Lines(output, COLUMNS, lambda job: job.id), "job", matches)
        jobs = [job async for job in client.list_jobs(states=wanted, name=name)]
    show(jobs, output, key="jobs", columns=COLUMNS, name=lambda job: job.id)


@command.command()
@job_argument
@watch_option
@server_option
@output_option
@asynchronous
async def get(job_id: str, server: str, output: str, *, again: bool) -> None:
    """Show a job and its workers.

    \b
    Examples:
      holdfast job get c7mk2xq9pd --watch
      holdfast job get c7mk2xq9pd -o json
    """  # noqa: D301  click reads the backspaces
    async with api.Client(server) as client:
        if not again:
            show_job(await client.get_job(job_id), output)
            return
        showings = Showings(output)
        async for job in client.watch_job(job_id):
            showings.begin()
            show_job(job, output, compact=True)


@command.command()
@job_argument
@timeout_option
@server_option
@output_option
@asynchronous
async def watch(job_id: str, timeout: float | None, server: str, output: str) -> None:
    """Print a line for every change of a job, until it has ended; the exit code tells how.

    \b
    Examples:
      holdfast job watch c7mk2xq9pd --timeout 2h
      holdfast job watch c7mk2xq9pd -o json
    """  # noqa: D301  click reads the backspaces
    async with api.Client(server) as client:
        await wait_for(client, job_id, timeout, form=output)


@command.command()
@live_job_argument
@click.option("--force", is_flag=True, help="SIGKILL at once.")
@waiting
@server_option
@asynchronous
async def stop(job_id: str, server: str, *, force: bool, wait: bool, timeout: float | None) -> None:
    """Ask a job to stop: after a last checkpoint of all its ranks, and within its --stop-grace.

    A program learns of it by run.should_stop. One that does not, gets SIGTERM; what is left when the grace is over,
    SIGKILL.

    \b
    Examples:
      holdfast job stop c7mk2xq9pd
      holdfast job stop c7mk2xq9pd --wait --timeout 1m
    """  # noqa: D301  click reads the backspaces
    async with api.Client(server) as client:
        job = await client.stop_job(job_id, force=force)
        if wait:
            code = await wait_for(client, job_id, timeout, leave=False)
            if code is not EXIT.STOPPED:
                raise click.exceptions.Exit(code)
        else:
            click.echo(f"{job.id} {state_word(job)}", err=True)


@command.command()
@job_argument
@click.option("--force", is_flag=True, help="SIGKILL at once; it goes on from the last commit.")
@waiting
@server_option
@asynchronous
async def restart(job_id: str, server: str, *, force: bool, wait: bool, timeout: float | None) -> None:
    """Have a job begin its next attempt, after a checkpoint of all its ranks.

    One that has failed, or was stopped, goes on from its last commit. Nothing of this is charged to its restart budget.

    \b
    Examples:
      holdfast job restart c7mk2xq9pd
      holdfast job restart c7mk2xq9pd --force --wait
    """  # noqa: D301  click reads the backspaces
    async with api.Client(server) as client:
        job = await client.restart_job(job_id, force=force)
        if wait:
            await wait_for(client, job_id, timeout)
        else:
            click.echo(printable(f"{job.id} {state_word(job)}: {job.reason}"), err=True)


@command.command()
@job_argument
@watch_option
@server_option
@output_option
@asynchronous
async def summary(job_id: str, server: str, output: str, *, again: bool) -> None:
    """Show a job in numbers: steps, throughput, restarts, steps redone, goodput.

    \b
    Examples:
      holdfast job summary c7mk2xq9pd --watch
      holdfast job summary c7mk2xq9pd -o json
    """  # noqa: D301  click reads the backspaces
    async with api.Client(server) as client:
        if not again:
            _show_summary(await client.job_summary(job_id), output)
            return
        showings = Showings(output)
        async for _ in client.watch_job(job_id):
            found = await client.job_summary(job_id)
            showings.begin()
            _show_summary(found, output, compact=True)


def _show_summary(found: job_pb2.JobSummary, form: str, *, compact: bool = False) -> None:
    if form in ("json", "yaml"):
        show_data(to_dict(found), form, compact=compact)
    elif form == "name":
        click.echo(found.job_id)
    else:
        show_table(["", ""], summary_rows(found))


def show_job(job: job_pb2.Job, form: str, *, compact: bool = False) -> None:
    """Print one job."""
    if form == "name":
        click.echo(job.id)
        return
    if form in ("json", "yaml"):
        show_data(to_dict(job), form, compact=compact)
        return
    click.echo(f"{job.id}  {job.spec.name}  {state_word(job)}: {printable(job.reason)}")
    click.echo(
        f"restarts {job.restarts}, last committed step {committed(job)}, created {age(job.created_at)} ago"
    )
    if job.degraded:
        click.echo(DEGRADED)
    click.echo()
    show(list(job.workers), form, key="workers", columns=WORKER_COLUMNS, name=lambda w: str(w.rank))


async def wait_for(
    client: api.Client, job_id: str, limit: float | None, *, form: str = "", leave: bool = True
) -> EXIT:
    """Wait until a job has ended. With a `form` print each change; with `leave`, exit with its code unless it is 0."""
    code = EXIT.OK
    told = ""
    showings = Showings(form)
    try:
        async with asyncio.timeout(limit):
            async for job in client.watch_job(job_id):
                line = f"{state_word(job)}{', degraded' if job.degraded else ''}: {job.reason}"
                if form in ("json", "yaml"):
                    showings.begin()
                    show_job(job, form, compact=True)
                elif form and line != told:
                    click.echo(state_word(job) if form == "name" else printable(line))
                told = line
                if job.state in api.TERMINAL:
                    code = code_of(job)
                    click.echo(f"{job.id} {printable(line)}", err=True)
    except TimeoutError as error:
        raise wire.DeadlineExceeded(f"job {job_id} has not ended within the timeout", "it goes on") from error
    if leave and code:
        raise click.exceptions.Exit(code)
    return code


def summary_rows(found: job_pb2.JobSummary) -> list[list[str]]:
    """A summary as rows of a table."""
    steps = f"{found.steps} of {found.total_steps}" if found.total_steps else str(found.steps)
    left = short_seconds(found.time_left.seconds) if found.HasField("time_left") else "-"
    rows = [
        ["state", enum_word(job_pb2.JobState.Name(found.state))],
        ["why", found.reason],
        ["workers", str(found.world_size)],
        ["steps", steps if found.HasField("steps") else "-"],
        ["steps/s, all ranks", f"{found.steps_per_second:.1f}" if found.steps_per_second else "-"],
        ["restarts", str(found.restarts)],
        ["steps redone", str(found.steps_redone)],
        ["committed step", str(found.last_committed_step) if found.HasField("last_committed_step") else "-"],
        ["elapsed", f"{found.elapsed.ToMilliseconds() / 1000:.1f} s"],
        ["time left", left],
        ["goodput", f"{found.goodput:.1%}" if found.HasField("goodput") else "-"],
        ["time went into", time_shares(found) if found.HasField("goodput") else "-"],
        ["metrics", metrics(found)],
    ]
    if found.degraded_commits:
        newest = ", the newest still is" if found.degraded else ""
        rows.append(["degraded checkpoints", f"{found.degraded_commits}{newest}"])
    return rows
