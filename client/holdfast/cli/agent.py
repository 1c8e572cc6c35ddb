"""`holdfast agent`."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import click

from holdfast.addresses import DEFAULT_TARGET, check_address
from holdfast.cli.common import fail, metrics_option, set_up_logs, set_up_tracing, state_dir
from holdfast.cli.late import asyncio
from holdfast.cli.settings import Daemon, Several
from holdfast.units import parse_duration


def _read_seconds(context: click.Context, parameter: click.Parameter, text: str | None) -> float:
    try:
        return 0 if text is None else parse_duration(text).total_seconds()
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from error


def _read_target(context: click.Context, parameter: click.Parameter, target: str) -> str:
    try:
        return check_address(target)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from error


def _read_urls(context: click.Context, parameter: click.Parameter, urls: tuple[str, ...]) -> tuple[str, ...]:
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise click.BadParameter(f"{url} is no http:// or https:// address", context, parameter)
    return urls


def _read_headers(
    context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> dict[str, str]:
    found = {}
    for text in texts:
        name, colon, value = text.partition(":")
        if not colon or not name.strip() or not value.strip().isprintable():
            raise click.BadParameter(f'"{text}" is not of the form NAME: VALUE', context, parameter)
        found[name.strip()] = value.strip()
    return found


def _read_labels(
    context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> dict[str, str]:
    for text in texts:
        if not text.partition("=")[0] or "=" not in text:
            raise click.BadParameter(f'"{text}" is not of the form NAME=VALUE', context, parameter)
    return dict(text.split("=", 1) for text in texts)


def _signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Events of the first and of the second SIGTERM or SIGINT."""
    stop, at_once = asyncio.Event(), asyncio.Event()

    def told() -> None:
        if stop.is_set():
            at_once.set()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told)
    return stop, at_once


@click.command("agent", cls=Daemon, secret=["notice_headers"])
@click.option(
    "--coordinator",
    default=DEFAULT_TARGET,
    show_default=True,
    envvar="HOLDFAST_SERVER",
    callback=_read_target,
    metavar="ADDRESS",
    help="host:port, or unix:/path; several of ip:port, with commas, where others stand by.",
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
@click.option(
    "--label",
    "labels",
    cls=Several,
    callback=_read_labels,
    metavar="NAME=VALUE",
    help="Shown with the node. May be repeated.",
)
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
    callback=_read_seconds,
    metavar="DURATION",
    help="Stop the workers after so long without a coordinator.  [default: never]",
)
@click.option(
    "--orphaned-after",
    callback=_read_seconds,
    metavar="DURATION",
    help="Workers end by themselves after so long without an agent.  [default: never]",
)
@click.option(
    "--workers-end-with-agent",
    is_flag=True,
    help="They do not outlive it, whatever it dies of, as in a container. When its stream breaks and it is not back "
    "soon, they are taken for gone, and go on elsewhere.",
)
@click.option(
    "--notice-file",
    "notice_files",
    cls=Several,
    type=click.Path(path_type=Path),
    help="When this file appears the machine is about to go away: the node is drained.",
)
@click.option(
    "--notice-url",
    "notice_urls",
    cls=Several,
    callback=_read_urls,
    metavar="URL",
    help="The same when this address no longer answers 404, as of a cloud's metadata.",
)
@click.option(
    "--notice-header",
    "notice_headers",
    cls=Several,
    callback=_read_headers,
    metavar='"NAME: VALUE"',
    help="Sent to --notice-url.",
)
@click.option(
    "--notice-deadline",
    default="120s",
    show_default=True,
    callback=_read_seconds,
    metavar="DURATION",
    help="How much time there is when a notice does not say, and after SIGTERM with --drain-on-term.",
)
@click.option(
    "--drain-on-term",
    is_flag=True,
    help="On SIGTERM drain the node first, then end with whatever still runs: for pods.",
)
@metrics_option
def command(
    coordinator: str,
    name: str,
    state_dir: Path,
    slots: int,
    labels: dict[str, str],
    address: str,
    cgroup: str,
    limit_memory: bool,
    stop_after_disconnect: float,
    orphaned_after: float,
    workers_end_with_agent: bool,
    notice_files: tuple[Path, ...],
    notice_urls: tuple[str, ...],
    notice_headers: dict[str, str],
    notice_deadline: float,
    drain_on_term: bool,
    metrics: str,
) -> None:
    """Run an agent. It may be killed at any time and started again: its workers run on, and are found again.

    On SIGTERM it ends, and its workers go on, unless --drain-on-term or --workers-end-with-agent is given.

    \b
    Examples:
      holdfast agent --coordinator 10.0.0.1:7070 --slots 8
      holdfast agent --notice-url http://169.254.169.254/latest/meta-data/spot/instance-action
      holdfast agent --drain-on-term --notice-deadline 25s
    """  # noqa: D301  click reads the backspaces
    try:
        from holdfast.exposition import AddressError
        from holdfast_agent.__main__ import serve
        from holdfast_agent.agent import AgentConfig
        from holdfast_agent.groups import GroupsError
        from holdfast_agent.notices import NoticeFile, NoticeUrl, Watcher
        from holdfast_agent.workdir import StateDirError
    except ModuleNotFoundError as error:
        fail(f"the agent is not installed here ({error.name}): pip install 'holdfast[agent]'")
    set_up_logs()
    set_up_tracing("holdfast-agent")
    watchers: list[Watcher] = [NoticeFile(path.absolute(), notice_deadline) for path in notice_files]
    watchers += [NoticeUrl(url, notice_deadline, notice_headers) for url in notice_urls]
    config = AgentConfig(
        coordinator,
        state_dir,
        name,
        slots,
        labels,
        address,
        foreground=workers_end_with_agent,
        cgroup=cgroup,
        limit_memory=limit_memory,
        stop_after_disconnect_s=stop_after_disconnect,
        orphaned_after_s=orphaned_after,
        notices=tuple(watchers),
    )

    async def run() -> None:
        stop, at_once = _signals()
        drain_s = notice_deadline if drain_on_term else None
        await serve(config, stop=stop, at_once=at_once, drain_s=drain_s, metrics=metrics)

    try:
        asyncio.run(run())
    except (StateDirError, GroupsError, AddressError) as error:
        fail(str(error))
