"""`holdfast gateway`."""

from __future__ import annotations

import signal
import sys

import click

from holdfast.addresses import DEFAULT_TARGET
from holdfast.cli.common import fail, read_server, set_up_logs, set_up_tracing
from holdfast.cli.late import asyncio
from holdfast.cli.settings import Daemon, Several

DEFAULT_LISTEN = "127.0.0.1:8080"


@click.command("gateway", cls=Daemon)
@click.option(
    "--listen",
    default=DEFAULT_LISTEN,
    show_default=True,
    metavar="ADDRESS",
    help="host:port (port 0: any free one).",
)
@click.option(
    "--host-name",
    "host_names",
    cls=Several,
    metavar="NAME",
    help="A name, without a port, by which it is reached beside localhost and 127.0.0.1. May be repeated.",
)
@click.option(
    "--cors-origin",
    "cors_origins",
    cls=Several,
    metavar="ORIGIN",
    help="Pages of this origin may use it, e.g. https://portal.example. May be repeated.  [default: none]",
)
@click.option(
    "--insecure", is_flag=True, help="Listen beyond loopback without TLS, on a network that you trust."
)
@click.option(
    "--python",
    default=sys.executable,
    metavar="PATH",
    help="What runs the built-in example on the nodes.  [default: the Python that runs this]",
)
@click.option(
    "--server",
    envvar="HOLDFAST_SERVER",
    callback=read_server,
    metavar="ADDRESS",
    help=f"The coordinator: host:port, or unix:/path.  [default: that of the context, or {DEFAULT_TARGET}]",
)
def command(
    listen: str,
    host_names: tuple[str, ...],
    cors_origins: tuple[str, ...],
    insecure: bool,
    python: str,
    server: str,
) -> None:
    """Run a gateway: REST, server-sent events and the dashboard, over HTTP.

    \b
    Examples:
      holdfast gateway
      holdfast gateway --listen 10.0.0.1:8080 --host-name gpu-head --insecure
      curl -X POST http://127.0.0.1:8080/jobs -d '{"world_size": 4}'
    """  # noqa: D301  click reads the backspaces
    try:
        from holdfast_gateway.__main__ import serve
        from holdfast_gateway.config import GatewayConfig, ListenError
    except ModuleNotFoundError as error:
        fail(f"the gateway is not installed here ({error.name}): pip install 'holdfast[gateway]'")
    set_up_logs()
    set_up_tracing("holdfast-gateway")
    config = GatewayConfig(
        listen,
        server,
        insecure=insecure,
        host_names=frozenset(host_names),
        cors_origins=frozenset(cors_origins),
        python=python,
    )

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        ready = click.style("holdfast gateway", bold=True)
        await serve(config, stop=stop, ready=lambda at: click.echo(f"{ready} listens on {at}", err=True))

    try:
        asyncio.run(run())
    except ListenError as error:
        fail(str(error))
