"""`holdfast health`: for what restarts, waits for or shows the daemons of one machine, such as Docker and Compose."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path
from urllib.parse import urlsplit

import click

from holdfast.cli.common import asynchronous, fail, printable, server_option, state_dir, with_source
from holdfast.cli.exits import EXIT
from holdfast.cli.late import wire

WITHIN_S = 5.0
SERVING = b"\x08\x01"
"""A grpc.health.v1.HealthCheckResponse that says so; the package with its classes is the coordinator's alone."""
SERVES, LIVES = b"", b"\n\x05alive"
"""HealthCheckRequests: of all that it serves, and of the service "alive", which standbys serve as well."""


@click.group()
def command() -> None:
    """Ask a daemon of this machine whether it is well: exit code 0, or a sentence and 3.

    \b
    Examples:
      holdfast health coordinator
    """  # noqa: D301  click reads the backspaces


@command.command()
@click.option("--alive", is_flag=True, help="Whether it lives, which a standby does as well.")
@server_option
@asynchronous
async def coordinator(server: str, *, alive: bool) -> None:
    """Whether the coordinator serves, by gRPC's health service. It does not while its disk is full.

    \b
    Examples:
      holdfast health coordinator
      holdfast health coordinator --alive
    """  # noqa: D301  click reads the backspaces
    import grpc

    async with wire.open_channel(server) as channel:
        check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/grpc.health.v1.Health/Check"
        )
        try:
            answer = await check(LIVES if alive else SERVES, timeout=WITHIN_S)
        except grpc.aio.AioRpcError as error:
            raise wire.from_rpc_error(error, server) from None
    if answer != SERVING:
        fail(with_source(f"the coordinator at {server} does not serve now; see its log"), EXIT.UNREACHABLE)


@command.command()
@click.option("--url", default="http://127.0.0.1:8080", show_default=True, metavar="URL")
def gateway(url: str) -> None:
    """Whether the gateway answers, be its coordinator there or not.

    \b
    Examples:
      holdfast health gateway --url http://127.0.0.1:8080
    """  # noqa: D301  click reads the backspaces
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.netloc:
        fail(f'"{printable(url)}" is no address of a gateway; write http://host:port', EXIT.USAGE)
    link = http.client.HTTPConnection(parts.netloc, timeout=WITHIN_S)
    try:
        link.request("GET", "/metrics")
        status = link.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        fail(f"the gateway at {printable(url)} does not answer: {error}", EXIT.UNREACHABLE)
    finally:
        link.close()
    if status != http.client.OK:
        fail(f"the gateway at {printable(url)} answers {status}; see its log", EXIT.UNREACHABLE)


@command.command()
@click.option(
    "--state-dir",
    "place",
    type=click.Path(path_type=Path),
    default=lambda: state_dir("agent"),
    show_default="~/.local/state/holdfast/agent",
    help="The agent's.",
)
def agent(place: Path) -> None:
    """Whether the agent minds its workers, be its coordinator there or not.

    \b
    Examples:
      holdfast health agent --state-dir /var/lib/holdfast/agent
    """  # noqa: D301  click reads the backspaces
    try:
        from holdfast_agent.workdir import StateDirError
        from holdfast_agent.worker_link import socket_path
    except ModuleNotFoundError as error:
        fail(f"the agent is not installed here ({error.name}): pip install 'holdfast[agent]'")
    try:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(WITHIN_S)
            link.connect(str(socket_path(place.absolute())))
            link.shutdown(socket.SHUT_WR)
            link.recv(1)  # it hangs up on who says nothing: its loop runs
    except (OSError, StateDirError) as error:
        fail(f"no agent minds {printable(str(place))}: {error}", EXIT.UNREACHABLE)
