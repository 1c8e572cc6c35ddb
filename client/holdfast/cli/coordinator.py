"""`holdfast coordinator`."""

from __future__ import annotations

import signal
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import click

from holdfast.addresses import DEFAULT_TARGET
from holdfast.cli.common import fail, metrics_option, read_duration, set_up_logs, set_up_tracing, state_dir
from holdfast.cli.late import asyncio
from holdfast.cli.settings import Daemon


@click.command("coordinator", cls=Daemon)
@click.option(
    "--listen",
    default=DEFAULT_TARGET,
    show_default=True,
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
    callback=read_duration,
    metavar="DURATION",
    help="A node is lost after this long without a word from it.",
)
@click.option(
    "--gone-after",
    default="2s",
    show_default=True,
    callback=read_duration,
    metavar="DURATION",
    help="The same for a node whose workers end with its agent (`holdfast agent --workers-end-with-agent`), "
    "counted from when its stream broke.",
)
@click.option(
    "--http",
    metavar="ADDRESS",
    help="Run a gateway as well (REST and the dashboard), e.g. on 127.0.0.1:8080; see `holdfast gateway`.",
)
@metrics_option
def command(
    listen: str,
    state_dir: Path,
    lost_after: timedelta,
    gone_after: timedelta,
    http: str | None,
    metrics: str,
    *,
    insecure: bool,
) -> None:
    """Run a coordinator. It may be killed at any time and started again: no worker is touched.

    \b
    Examples:
      holdfast coordinator
      holdfast coordinator --http 127.0.0.1:8080
      holdfast coordinator --listen 10.0.0.1:7070 --insecure
      holdfast coordinator --metrics 9464
    """  # noqa: D301  click reads the backspaces
    try:
        from holdfast.exposition import AddressError
        from holdfast_coordinator.__main__ import serve
        from holdfast_coordinator.app import CoordinatorConfig, ListenError
        from holdfast_coordinator.store.api import StoreError
    except ModuleNotFoundError as error:
        fail(f"the coordinator is not installed here ({error.name}): pip install 'holdfast[coordinator]'")
    gateway = None if http is None else _Http(http, ListenError, insecure=insecure)
    set_up_logs()
    set_up_tracing("holdfast-coordinator")
    config = CoordinatorConfig(
        listen,
        state_dir,
        insecure=insecure,
        lost_after_ms=_milliseconds(lost_after),
        gone_after_ms=_milliseconds(gone_after),
        metrics=metrics,
    )

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        name = click.style("holdfast coordinator", bold=True)
        async with asyncio.TaskGroup() as both:

            def ready(at: str) -> None:
                click.echo(f"{name} listens on {at}", err=True)
                if gateway is not None:
                    both.create_task(gateway.serve(at, stop))

            both.create_task(serve(config, stop=stop, ready=ready))

    try:
        asyncio.run(run())
    except ExceptionGroup as errors:
        failure = errors.exceptions[0]
        if isinstance(failure, ListenError | AddressError | StoreError):
            fail(str(failure))
        raise failure from None


def _milliseconds(duration: timedelta) -> int:
    return round(duration.total_seconds() * 1000)


class _Http:
    """A gateway beside the coordinator."""

    def __init__(self, listen: str, failed: type[Exception], *, insecure: bool) -> None:
        """Ends the command when it can't be. What it raises later, when it can't listen, is a `failed`."""
        try:
            from holdfast_gateway.__main__ import serve
            from holdfast_gateway.config import GatewayConfig, ListenError
        except ModuleNotFoundError as error:
            fail(f"the gateway is not installed here ({error.name}): pip install 'holdfast[gateway]'")
        self._serve, self._config = serve, GatewayConfig(listen, insecure=insecure)
        self._raised, self._raise = ListenError, failed
        try:
            self._config.address()
        except ListenError as error:
            fail(str(error))

    async def serve(self, coordinator: str, stop: asyncio.Event) -> None:
        """Serve until `stop` is set."""
        name = click.style("holdfast gateway", bold=True)
        config = replace(self._config, server=coordinator)
        try:
            await self._serve(
                config, stop=stop, ready=lambda at: click.echo(f"{name} listens on {at}", err=True)
            )
        except self._raised as error:
            raise self._raise(str(error)) from error
