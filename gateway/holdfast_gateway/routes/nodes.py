"""Nodes."""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from holdfast.units import parse_duration
from holdfast_gateway.answers import answer
from holdfast_gateway.docs import DURATION, gives
from holdfast_gateway.parts import PageSize, PageToken, Use
from holdfast_gateway.problems import invalid
from holdfast_gateway.streams import all_nodes, respond

Reason = Annotated[str, Query(max_length=200, description="Shown beside the node.")]
Within = Annotated[
    str, Query(description="A duration, e.g. 90s or 5m.", json_schema_extra={"pattern": DURATION})
]

router = APIRouter(tags=["nodes"])


@router.get("/nodes", **gives("ListNodesResponse"))
async def list_nodes(parts: Use, page_size: PageSize = 100, page_token: PageToken = "") -> Response:
    """List the nodes by name."""
    return answer(await parts.client.list_nodes_page(size=page_size, token=page_token))


@router.get("/nodes/stream", **gives(None))
async def stream_nodes(request: Request, parts: Use) -> Response:
    """Stream all nodes: `node` each, `ready`, then `node` and `deleted` as they change."""
    await parts.client.list_nodes_page(size=1)
    return respond(request, parts, "nodes", all_nodes(parts))


@router.get("/nodes/{name}", **gives("Node"))
async def get_node(name: str, parts: Use) -> Response:
    """Look at a node."""
    return answer(await parts.client.get_node(name))


@router.delete("/nodes/{name}", status_code=204, **gives(None, 204))
async def forget_node(name: str, parts: Use) -> Response:
    """Forget a lost node. An agent that comes back under its name is new."""
    await parts.client.forget_node(name)
    return Response(status_code=204)


@router.post("/nodes/{name}/cordon", **gives("Node"))
async def cordon_node(name: str, parts: Use, reason: Reason = "") -> Response:
    """Have a node take no new work; what runs there goes on."""
    return answer(await parts.client.cordon_node(name, reason))


@router.post("/nodes/{name}/uncordon", **gives("Node"))
async def uncordon_node(name: str, parts: Use) -> Response:
    """Have a node take new work again."""
    return answer(await parts.client.uncordon_node(name))


@router.post("/nodes/{name}/drain", **gives("Node"))
async def drain_node(name: str, parts: Use, within: Within = "2m", reason: Reason = "") -> Response:
    """Cordon a node and move its work elsewhere after a checkpoint."""
    try:
        time: timedelta = parse_duration(within)
    except ValueError as error:
        raise invalid(f"within: {error}", [("within", str(error))]) from error
    return answer(await parts.client.drain_node(name, within=time, reason=reason))
