"""`holdfast coordinator`."""

import asyncio
import signal
from pathlib import Path

import click

from holdfast import wire
from holdfast.cli.common import fail, metrics_option, set_up_logs, state_dir
from holdfast.units import parse_duration


@click.command()
@click.option(
    "--listen",
    default=wire.DEFAULT_TARGET,
    show_default=True,
    envvar="HOLDFAST_LISTEN",
    metavar="ADDRESS",
    help="host:port (port 0: any free one), or unix:/path.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    default=lambda: state_dir("coordinator"),
    show_default="~/.local/state/holdfast/coordinator",
    help="Where it keeps its state. Start it again on the same one, and it carries on.",
)
@click.option(
    "--insecure", is_flag=True, help="Listen beyond loopback without TLS, on a network that you trust."
)
@click.option(
    "--lost-after",
    default="10s",
    show_default=True,
    help="A node is lost after this long without a word from it.",
)
@metrics_option
def command(listen: str, state_dir: Path, lost_after: str, metrics: str, *, insecure: bool) -> None:
    """Run a coordinator. It may be killed at any time and started again: no worker is touched.

    \b
    Examples:
      holdfast coordinator
      holdfast coordinator --listen 10.0.0.1:7070 --insecure
      holdfast coordinator --metrics 9464
    """  # noqa: D301  click reads the backspaces
    try:
        lost_after_ms = round(parse_duration(lost_after).total_seconds() * 1000)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--lost-after") from error
    try:
        from holdfast.exposition import AddressError
        from holdfast_coordinator.__main__ import serve
        from holdfast_coordinator.app import CoordinatorConfig, ListenError
        from holdfast_coordinator.store.api import StoreError
    except ModuleNotFoundError as error:
        fail(f"the coordinator is not installed here ({error.name}): pip install 'holdfast[coordinator]'")
    set_up_logs()
    config = CoordinatorConfig(
        listen, state_dir, insecure=insecure, lost_after_ms=lost_after_ms, metrics=metrics
    )

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        ready = click.style("holdfast coordinator", bold=True)
        await serve(config, stop=stop, ready=lambda at: click.echo(f"{ready} listens on {at}", err=True))

    try:
        asyncio.run(run())
    except (ListenError, AddressError, StoreError) as error:
        fail(str(error))
