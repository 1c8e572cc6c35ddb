"""`holdfast doctor`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from holdfast.cli import doctor_checks as checks
from holdfast.cli.common import (
    asynchronous,
    coloured,
    output_option,
    printable,
    server_option,
    show_data,
    state_dir,
    with_source,
)
from holdfast.cli.doctor_checks import FAIL, OK, WARN, Finding
from holdfast.cli.exits import EXIT
from holdfast.cli.late import api, wire

PLACES = ("HOLDFAST_COORDINATOR_STATE_DIR", "HOLDFAST_AGENT_STATE_DIR")
COLOURS = {OK: "green", WARN: "yellow", FAIL: "red"}


def _place() -> str:
    """Where the daemon whose settings these are keeps its state; without any, what is above both."""
    return next((os.environ[name] for name in PLACES if os.environ.get(name)), state_dir(""))


@click.command()
@click.option(
    "--state-dir",
    "place",
    type=click.Path(path_type=Path),
    default=_place,
    show_default="the daemon's own setting, or ~/.local/state/holdfast",
    help="Where the coordinator or the agent of this machine keeps its state.",
)
@server_option
@output_option
@asynchronous
async def command(place: Path, server: str, output: str) -> None:
    """Look for what would keep holdfast from working here, and say what to do about it.

    Checks Python, the disk, ports, the coordinator, its clock, its agents, S3 where it is configured, and what an
    agent on this machine could use. Nothing is changed. The exit code is 1 when a check failed.

    \b
    Examples:
      holdfast doctor
      holdfast doctor --server 10.0.0.1:7070 -o json
    """  # noqa: D301  click reads the backspaces
    found = [checks.python(), checks.room(place), checks.fsync(place), *await _coordinator(server)]
    found.append(checks.worker_ports())
    if os.environ.get("USE_S3") or os.environ.get("S3_BUCKET"):
        found.append(checks.s3({"USE_S3": "1", **os.environ}))
    found += [checks.cgroups(), checks.py_spy()]
    if output in ("json", "yaml"):
        show_data({"checks": [finding._asdict() for finding in found]}, output)
    elif output == "name":
        for finding in found:
            click.echo(finding.check)
    else:
        for line in _lines(found):
            click.echo(line)
    if any(finding.state == FAIL for finding in found):
        raise click.exceptions.Exit(EXIT.FAILED)


async def _coordinator(server: str) -> list[Finding]:
    """Who answers there, whether it leads, and what it says of clocks and agents."""
    async with api.Client(server) as client:
        try:
            ahead = await client.clock_offset()
            nodes = [node async for node in client.list_nodes()]
        except wire.HoldfastError as error:
            nobody = isinstance(error, wire.Unreachable)
            remedy = error.remedy or "see its log"
            return [
                Finding("coordinator", FAIL, with_source(error.message), remedy),
                checks.port(server, answers=not nobody),
            ]
    return [
        Finding("coordinator", OK, with_source(f"the coordinator at {server} answers, and leads")),
        checks.port(server, answers=True),
        checks.clock(ahead),
        checks.agents(nodes, server),
    ]


def _lines(found: list[Finding]) -> Iterator[str]:
    width = max(len(finding.check) for finding in found)
    for finding in found:
        state = finding.state.ljust(4)
        if coloured(sys.stdout):
            state = click.style(state, fg=COLOURS[finding.state])
        yield f"{state}  {finding.check.ljust(width)}  {printable(finding.found)}"
        if finding.remedy:
            yield f"{' ' * (width + 8)}{printable(finding.remedy)}"
