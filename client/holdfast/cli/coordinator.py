"""`holdfast coordinator`."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from holdfast.addresses import DEFAULT_TARGET
from holdfast.cli.common import fail, metrics_option, read_duration, set_up_logs, set_up_tracing, state_dir
from holdfast.cli.late import asyncio
from holdfast.cli.settings import Daemon
from holdfast.cli.store_options import read_store

if TYPE_CHECKING:
    from holdfast_coordinator.app import CoordinatorConfig

SHORTEST_LEASE_MS = 1_000
SHORTEST_LOST_AFTER = timedelta(seconds=2)


def _read_lost_after(context: click.Context, parameter: click.Parameter, text: str) -> timedelta | None:
    found = read_duration(context, parameter, text)
    if found is not None and found < SHORTEST_LOST_AFTER:
        message = f'"{text}" is too short: an agent is heard from once a second; give 2s or more'
        raise click.BadParameter(message, context, parameter)
    return found


@click.command("coordinator", cls=Daemon, secret=("store",))
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
    callback=_read_lost_after,
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
    "--forget-after",
    default="24h",
    show_default=True,
    callback=read_duration,
    metavar="DURATION",
    help="A node that has been lost for this long, and is not cordoned by a user, is forgotten; 0: never.",
)
@click.option(
    "--http",
    metavar="ADDRESS",
    help="Run a gateway as well (REST and the dashboard), e.g. on 127.0.0.1:8080; see `holdfast gateway`.",
)
@click.option(
    "--store",
    metavar="URL",
    help="Keep the state in PostgreSQL, where several coordinators may share it: one serves, the others stand by. "
    "postgresql://USER@HOST:5432/DATABASE, without a password.  [default: SQLite in the state directory]",
)
@click.option(
    "--store-file",
    type=click.Path(path_type=Path),
    help="A file that holds this URL, which then may have a password.",
)
@click.option(
    "--lease",
    default="6s",
    show_default=True,
    callback=read_duration,
    metavar="DURATION",
    help="With --store: how long after the last word of a coordinator that is gone another takes over.",
)
@metrics_option
def command(
    listen: str,
    state_dir: Path,
    lost_after: timedelta,
    gone_after: timedelta,
    forget_after: timedelta,
    http: str | None,
    store: str | None,
    store_file: Path | None,
    lease: timedelta,
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
      holdfast coordinator --store postgresql://holdfast@db.internal/holdfast
    """  # noqa: D301  click reads the backspaces
    lease_ms = _milliseconds(lease)
    if lease_ms < SHORTEST_LEASE_MS:
        raise click.BadParameter("is shorter than a second", param_hint="--lease")
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
        forget_after_ms=_milliseconds(forget_after),
        metrics=metrics,
        store=read_store(store, store_file),
        lease_ms=lease_ms,
    )

    try:
        asyncio.run(_run(serve, config, gateway))
    except ExceptionGroup as errors:
        failure = errors.exceptions[0]
        if isinstance(failure, ListenError | AddressError | StoreError):
            fail(str(failure))
        raise failure from None


async def _run(serve: Callable[..., Any], config: CoordinatorConfig, gateway: _Http | None) -> None:
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
