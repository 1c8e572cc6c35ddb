"""`holdfast agent`."""

import asyncio
import os
import signal
import socket
from pathlib import Path

import click

from holdfast import wire
from holdfast.cli.common import fail, pairs, set_up_logs, state_dir
from holdfast.units import parse_duration


@click.command()
@click.option(
    "--coordinator",
    default=wire.DEFAULT_TARGET,
    show_default=True,
    envvar="HOLDFAST_SERVER",
    metavar="ADDRESS",
    help="host:port, or unix:/path.",
)
@click.option("--name", default=socket.gethostname, show_default="the host name", help="Unique in the fleet.")
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    default=lambda: state_dir("agent"),
    show_default="~/.local/state/holdfast/agent",
    help="Where it keeps workers' logs and records. Each agent on a host needs one of its own.",
)
@click.option(
    "--slots",
    type=click.IntRange(min=0),
    default=lambda: os.cpu_count() or 1,
    show_default="the CPU count",
    help="How many workers it takes.",
)
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE")
@click.option(
    "--address",
    default="",
    show_default="that from which it reaches the coordinator",
    help="Where other nodes reach this one.",
)
@click.option(
    "--cgroup",
    default="auto",
    show_default=True,
    metavar="auto|off|DIRECTORY",
    help="Where each worker gets a control group of its own: below the agent's, nowhere, or below one delegated to it.",
)
@click.option(
    "--limit-memory", is_flag=True, help="No worker gets more memory than its job says that it needs."
)
@click.option(
    "--stop-after-disconnect",
    metavar="DURATION",
    help="Stop the workers after so long without a coordinator.  [default: never]",
)
@click.option(
    "--orphaned-after",
    metavar="DURATION",
    help="Workers end by themselves after so long without an agent.  [default: never]",
)
def command(
    coordinator: str,
    name: str,
    state_dir: Path,
    slots: int,
    labels: tuple[str, ...],
    address: str,
    cgroup: str,
    limit_memory: bool,
    stop_after_disconnect: str | None,
    orphaned_after: str | None,
) -> None:
    """Run an agent. It may be killed at any time and started again: its workers run on, and are found again.

    On SIGTERM it ends, and its workers go on.

    \b
    Example:
      holdfast agent --coordinator 10.0.0.1:7070 --slots 8
    """  # noqa: D301  click reads the backspaces
    try:
        from holdfast_agent.__main__ import serve
        from holdfast_agent.agent import AgentConfig
        from holdfast_agent.groups import GroupsError
        from holdfast_agent.workdir import StateDirError
    except ModuleNotFoundError as error:
        fail(f"the agent is not installed here ({error.name}): pip install 'holdfast[agent]'")
    set_up_logs()
    config = AgentConfig(
        coordinator,
        state_dir,
        name,
        slots,
        pairs(labels, "--label"),
        address,
        cgroup=cgroup,
        limit_memory=limit_memory,
        stop_after_disconnect_s=_seconds("--stop-after-disconnect", stop_after_disconnect),
        orphaned_after_s=_seconds("--orphaned-after", orphaned_after),
    )

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve(config, stop=stop)

    try:
        asyncio.run(run())
    except (StateDirError, GroupsError) as error:
        fail(str(error))


def _seconds(flag: str, text: str | None) -> float:
    try:
        return 0 if text is None else parse_duration(text).total_seconds()
    except ValueError as error:
        raise click.UsageError(f"{flag}: {error}") from error
