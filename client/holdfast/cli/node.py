"""`holdfast node`."""

import click

from holdfast.cli.common import (
    Column,
    age,
    asynchronous,
    enum_word,
    output_option,
    server_option,
    short_size,
    show,
    show_data,
    to_dict,
)
from holdfast.client import Client
from holdfast.v1 import node_pb2

COLUMNS = (
    Column("NODE", lambda n: n.name),
    Column("STATE", lambda n: enum_word(node_pb2.NodeState.Name(n.state))),
    Column("SLOTS", lambda n: f"{n.slots_used}/{n.capacity.slots}"),
    Column("CPUS", lambda n: f"{n.capacity.cpus:g}"),
    Column("MEMORY", lambda n: short_size(n.capacity.memory_bytes)),
    Column("GPUS", lambda n: str(n.capacity.gpus)),
    Column("HEARD", lambda n: age(n.last_heard_at)),
    Column("ADDRESS", lambda n: n.address, wide=True),
    Column("VERSION", lambda n: n.agent_version, wide=True),
    Column("REASON", lambda n: n.reason),
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
    """See the nodes."""


@command.command("list")
@server_option
@output_option
@asynchronous
async def list_nodes(server: str, output: str) -> None:
    """List the nodes: what they have, and what is used of it.

    \b
    Example:
      holdfast node list -o wide
    """  # noqa: D301  click reads the backspaces
    async with Client(server) as client:
        nodes = [node async for node in client.list_nodes()]
    show(nodes, output, key="nodes", columns=COLUMNS, name=lambda n: n.name)


@command.command("get")
@click.argument("name")
@server_option
@output_option
@asynchronous
async def get_node(name: str, server: str, output: str) -> None:
    """Show a node, and what it has preloaded for the warm starts of which job.

    \b
    Example:
      holdfast node get node-a
    """  # noqa: D301  click reads the backspaces
    async with Client(server) as client:
        node = await client.get_node(name)
    if output in ("json", "yaml"):
        show_data(to_dict(node), output)
        return
    show([node], output, key="nodes", columns=COLUMNS, name=lambda n: n.name)
    if output != "name" and node.preloads:
        click.echo()
        show(list(node.preloads), output, key="preloads", columns=PRELOADS, name=lambda p: p.job_id)
