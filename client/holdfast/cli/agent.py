"""`holdfast agent`."""

import asyncio
import os
import signal
import socket
from pathlib import Path

import click

from holdfast import wire
from holdfast.cli.common import fail, pairs, set_up_logs, state_dir


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
def command(
    coordinator: str, name: str, state_dir: Path, slots: int, labels: tuple[str, ...], address: str
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
        from holdfast_agent.workdir import StateDirError
    except ModuleNotFoundError as error:
        fail(f"the agent is not installed here ({error.name}): pip install 'holdfast[agent]'")
    set_up_logs()
    config = AgentConfig(coordinator, state_dir, name, slots, pairs(labels, "--label"), address)

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve(config, stop=stop)

    try:
        asyncio.run(run())
    except StateDirError as error:
        fail(str(error))
