"""Nodes that are gone for good, as a real coordinator and its gateway forget them."""

import asyncio
import json

import httpx
import pytest

from holdfast.v1 import node_pb2
from holdfast_gateway.config import GatewayConfig
from holdfast_gateway.server import Gateway

pytest_plugins = ["tests.client.cli_fixtures"]

PATIENCE = 60


@pytest.fixture
def forget_after_ms():
    return 0


@pytest.fixture
def house_settings(forget_after_ms):
    return {"lost_after_ms": 2_000, "forget_after_ms": forget_after_ms}


async def until(changes, wanted):
    async with asyncio.timeout(PATIENCE):
        async for change in changes:
            if wanted(change):
                return


async def forgotten(client):
    """Why the node was forgotten, and who there is still."""
    why = [event.message async for event in client.list_events() if event.kind == "NodeForgotten"]
    return why, [node.name async for node in client.list_nodes()]


async def test_a_user_says_so(house, client, agent):
    gateway = Gateway(GatewayConfig("127.0.0.1:0", server=house.target))
    url = await gateway.start()
    changes = client.watch_nodes()
    try:
        async with (
            httpx.AsyncClient(base_url=url, timeout=PATIENCE) as rest,
            rest.stream("GET", "/nodes/stream") as told,
        ):
            refused = await rest.delete("/nodes/n1")
            assert refused.status_code == 409
            assert refused.json()["detail"].endswith(", not lost")
            await agent.close()
            await until(changes, lambda change: change.node.state == node_pb2.NODE_STATE_LOST)
            assert [(await rest.delete("/nodes/n1")).status_code for _ in range(2)] == [204, 404]
            await until(changes, lambda change: change.deleted == "n1")
            lines = told.aiter_lines()
            await until(lines, lambda line: line == "event: deleted")
            assert json.loads((await anext(lines)).removeprefix("data: ")) == {"name": "n1"}
            (why,), left = await forgotten(client)
            assert why.startswith("by its user; it was lost: not heard from for ")
            assert left == []
            again = type(agent)(house.target)
            await until(changes, lambda change: change.node.state == node_pb2.NODE_STATE_READY)
            await again.close()
    finally:
        await changes.aclose()
        await gateway.stop()


@pytest.mark.parametrize("forget_after_ms", [1])
async def test_time_is_enough(client, agent):
    changes = client.watch_nodes()
    await until(changes, lambda change: change.node.name == "n1")
    await agent.close()
    await until(changes, lambda change: change.deleted == "n1")
    await changes.aclose()
    why, left = await forgotten(client)
    assert why[-1].startswith("lost for ")
    assert left == []
