"""`holdfast node`."""

from __future__ import annotations

import shlex
from datetime import timedelta

import click

from holdfast.cli.common import (
    Column,
    age,
    asynchronous,
    enum_word,
    output_option,
    printable,
    read_duration,
    server_option,
    short_size,
    show,
    show_data,
    to_dict,
)
from holdfast.cli.complete import lost_node_argument, node_argument
from holdfast.cli.late import api, asyncio, node_pb2, wire
from holdfast.cli.watching import Lines, follow_option, watch_list

LOOK_EVERY_S = 0.3
AGENT_PODS = "app.kubernetes.io/name=holdfast,app.kubernetes.io/component=agent"
"""The labels of agents' pods, as k8s/ has them."""


def state_words(node: node_pb2.Node) -> str:
    """ready, suspect or lost, and what it is cordoned for."""
    words = [enum_word(node_pb2.NodeState.Name(node.state))]
    if node.draining:
        words.append("draining")
    elif node.drained:
        words.append("drained")
    elif node.cordoned:
        words.append("cordoned")
    return ",".join(words)


def _why(node: node_pb2.Node) -> str:
    return f"{node.reason}; {node.cordon_reason}" if node.cordon_reason else node.reason


COLUMNS = (
    Column("NODE", lambda n: n.name),
    Column("STATE", state_words),
    Column("SLOTS", lambda n: f"{n.slots_used}/{n.capacity.slots}"),
    Column("CPUS", lambda n: f"{n.capacity.cpus:g}"),
    Column("MEMORY", lambda n: short_size(n.capacity.memory_bytes)),
    Column("GPUS", lambda n: str(n.capacity.gpus)),
    Column("HEARD", lambda n: age(n.last_heard_at)),
    Column("ADDRESS", lambda n: n.address, wide=True),
    Column("VERSION", lambda n: n.agent_version, wide=True),
    Column("REASON", _why),
)

reason_option = click.option(
    "--reason", default="", metavar="TEXT", help="Shown beside the node, and to its jobs."
)


PRELOADS = (
    Column("JOB", lambda p: p.job_id),
    Column("PRELOADED", lambda p: ",".join(p.modules)),
    Column("AS", lambda p: ("zygote" if p.forks else "spares") if p.pids else "-"),
    Column("PIDS", lambda p: ",".join(map(str, p.pids)) or "-"),
    Column("MEMORY", lambda p: short_size(p.memory_bytes)),
    Column("STARTED", lambda p: str(p.started)),
    Column("REASON", lambda p: p.reason),
)


@click.group()
def command() -> None:
    """See the nodes; take them out of service and back.

    \b
    Examples:
      holdfast node list
      holdfast node drain gpu-7 --wait
    """  # noqa: D301  click reads the backspaces


@command.command("list")
@follow_option
@server_option
@output_option
@asynchronous
async def list_nodes(server: str, output: str, *, again: bool) -> None:
    """List the nodes: what they have, and what is used of it.

    \b
    Examples:
      holdfast node list -o wide
      holdfast node list --watch
    """  # noqa: D301  click reads the backspaces
    async with api.Client(server) as client:
        if again:
            await watch_list(client.watch_nodes(), Lines(output, COLUMNS, lambda n: n.name), "node")
        nodes = [node async for node in client.list_nodes()]
    show(nodes, output, key="nodes", columns=COLUMNS, name=lambda n: n.name)


@command.command()
@node_argument
@server_option
@output_option
@asynchronous
async def get(name: str, server: str, output: str) -> None:
    """Show one node, and what it has preloaded for the warm starts of which job.

    \b
    Example:
      holdfast node get gpu-7 -o json
    """  # noqa: D301  click reads the backspaces
    async with api.Client(server) as client:
        node = await client.get_node(name)
    if output in ("json", "yaml"):
        show_data(to_dict(node), output)
        return
    show([node], output, key="nodes", columns=COLUMNS, name=lambda n: n.name)
    if output != "name" and node.preloads:
        click.echo()
        show(list(node.preloads), output, key="preloads", columns=PRELOADS, name=lambda p: p.job_id)


@command.command()
@node_argument
@reason_option
@server_option
@asynchronous
async def cordon(name: str, reason: str, server: str) -> None:
    """Have a node take no new work. What runs there goes on.

    \b
    Example:
      holdfast node cordon gpu-7 --reason "new disks on Monday"
    """  # noqa: D301  click reads the backspaces
    async with api.Client(server) as client:
        _tell(await client.cordon_node(name, reason))


@command.command()
@node_argument
@server_option
@asynchronous
async def uncordon(name: str, server: str) -> None:
    """Have a node take new work again.

    \b
    Example:
      holdfast node uncordon gpu-7
    """  # noqa: D301  click reads the backspaces
    async with api.Client(server) as client:
        _tell(await client.uncordon_node(name))


@command.command()
@node_argument
@click.option(
    "--deadline",
    "within",
    callback=read_duration,
    default="2m",
    show_default=True,
    metavar="DURATION",
    help="When the node is to be empty.",
)
@reason_option
@click.option("--wait", is_flag=True, help="Wait until nothing runs there.")
@click.option("--for-upgrade", is_flag=True, help="Wait, and then print how to replace the agent.")
@server_option
@asynchronous
async def drain(
    name: str, within: timedelta, reason: str, server: str, *, wait: bool, for_upgrade: bool
) -> None:
    """Move the work of a node elsewhere, after a checkpoint, and have it take no more.

    Jobs with a rank there stop at a step that all their ranks share, take a checkpoint, and go on from it on other
    nodes, at no charge to their restart budgets. Where no other node has room they wait for it. What has not stopped
    when three quarters of the time are over gets SIGTERM, and SIGKILL at the deadline.

    \b
    Examples:
      holdfast node drain gpu-7 --wait
      holdfast node drain gpu-7 --deadline 10m --reason "new disks"
      holdfast node drain gpu-7 --for-upgrade
    """  # noqa: D301  click reads the backspaces
    reason = reason or ("upgrade" if for_upgrade else "")
    async with api.Client(server) as client:
        node = await client.drain_node(name, within=within, reason=reason)
        if wait or for_upgrade:
            node = await _until_drained(client, node, within)
    _tell(node)
    if for_upgrade:
        _say_how_to_upgrade(node)


@command.command()
@lost_node_argument
@server_option
@asynchronous
async def forget(name: str, server: str) -> None:
    """Forget a lost node that is gone for good. An agent that comes back under its name is new.

    A coordinator does so by itself after a day (its --forget-after), but for nodes that a user cordoned.

    \b
    Example:
      holdfast node forget gpu-7
    """  # noqa: D301  click reads the backspaces
    async with api.Client(server) as client:
        await client.forget_node(name)
    click.echo(printable(f"{name} forgotten"), err=True)


async def _until_drained(client: api.Client, node: node_pb2.Node, within: timedelta) -> node_pb2.Node:
    """Look until nothing runs on a node, or nobody drains it any more."""
    name, grace = node.name, 30.0  # what is killed at the deadline takes a moment to be gone
    try:
        async with asyncio.timeout(within.total_seconds() + grace):
            while node.draining:
                await asyncio.sleep(LOOK_EVERY_S)
                node = await client.get_node(name)
    except TimeoutError as error:
        raise wire.DeadlineExceeded(
            f"node {name} is not empty at its deadline", "it is still being drained"
        ) from error
    return node


def _say_how_to_upgrade(node: node_pb2.Node) -> None:
    if not node.drained:
        raise wire.FailedPrecondition(
            f"node {node.name} is not drained any more", "somebody took it back into service; drain it again"
        )
    name = shlex.quote(node.name)
    click.echo(
        printable(f"{node.name} is empty, and takes no work. Replace its agent now; on Kubernetes, its pod:")
    )
    click.echo(f"  kubectl -n holdfast delete pod -l {AGENT_PODS} --field-selector spec.nodeName={name}")
    click.echo("When it is ready again:")
    click.echo(f"  holdfast node uncordon {name}")


def _tell(node: node_pb2.Node) -> None:
    why = f": {node.cordon_reason}" if node.cordon_reason else ""
    click.echo(printable(f"{node.name} {state_words(node)}{why}"), err=True)
