"""NodeService."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from google.rpc import code_pb2

from holdfast.v1 import node_pb2, node_pb2_grpc
from holdfast.wire import TIME_KEY
from holdfast_coordinator import codec
from holdfast_coordinator.core.events import (
    NodeCordonRequested,
    NodeDrainRequested,
    NodeForgetRequested,
    NodeRequest,
    NodeUncordonRequested,
)
from holdfast_coordinator.core.model import Node
from holdfast_coordinator.core.state import State
from holdfast_coordinator.engine import Engine, NotLeadingError, RefusedError
from holdfast_coordinator.rpc import paging, watches
from holdfast_coordinator.rpc.errors import Context, abort, abort_refused

DRAIN_WITHIN_MS = 120_000
"""Unless the request says otherwise."""


class NodeService(node_pb2_grpc.NodeServiceServicer):
    """What users see of nodes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def ListNodes(
        self, request: node_pb2.ListNodesRequest, context: Context
    ) -> node_pb2.ListNodesResponse:
        size = paging.size(request.page_size)
        (after,) = await paging.token(context, request.page_token, ("",))

        def ask(state: State) -> list[node_pb2.Node]:
            names = sorted(name for name in state.nodes if name > after)[: size + 1]
            return [self._view(state, state.nodes[name]) for name in names]

        try:
            nodes = await self._engine.read(ask)
        except NotLeadingError as error:
            await abort_refused(context, error)
        more, nodes = len(nodes) > size, nodes[:size]
        token = paging.encode([nodes[-1].name]) if more else ""
        context.set_trailing_metadata(((TIME_KEY, str(self._engine.clock.now_ns())),))
        return node_pb2.ListNodesResponse(nodes=nodes, next_page_token=token)

    async def GetNode(self, request: node_pb2.GetNodeRequest, context: Context) -> node_pb2.GetNodeResponse:
        return node_pb2.GetNodeResponse(node=await self._node(request.name, context))

    async def CordonNode(
        self, request: node_pb2.CordonNodeRequest, context: Context
    ) -> node_pb2.CordonNodeResponse:
        reason = await _checked(request.reason, context)
        event = NodeCordonRequested(self._engine.clock.now(), request.name, reason)
        return node_pb2.CordonNodeResponse(node=await self._changed(event, context))

    async def UncordonNode(
        self, request: node_pb2.UncordonNodeRequest, context: Context
    ) -> node_pb2.UncordonNodeResponse:
        event = NodeUncordonRequested(self._engine.clock.now(), request.name)
        return node_pb2.UncordonNodeResponse(node=await self._changed(event, context))

    async def DrainNode(
        self, request: node_pb2.DrainNodeRequest, context: Context
    ) -> node_pb2.DrainNodeResponse:
        reason = await _checked(request.reason, context)
        within_ms = request.within.ToMilliseconds() if request.HasField("within") else DRAIN_WITHIN_MS
        if within_ms < 0:
            await abort(
                context,
                code_pb2.INVALID_ARGUMENT,
                f"a node can't be empty within {within_ms} ms",
                remedy="give a duration of 0 or more",
            )
        event = NodeDrainRequested(self._engine.clock.now(), request.name, within_ms, reason)
        return node_pb2.DrainNodeResponse(node=await self._changed(event, context))

    async def ForgetNode(
        self, request: node_pb2.ForgetNodeRequest, context: Context
    ) -> node_pb2.ForgetNodeResponse:
        await self._done(NodeForgetRequested(self._engine.clock.now(), request.name), context)
        return node_pb2.ForgetNodeResponse()

    async def WatchNodes(
        self,
        request: node_pb2.WatchNodesRequest,  # noqa: ARG002  gRPC's signature
        context: Context,
    ) -> AsyncIterator[node_pb2.WatchNodesResponse]:
        def look(state: State, name: str) -> node_pb2.Node | None:
            node = state.nodes.get(name)
            return self._view(state, node) if node is not None else None

        async with aclosing(watches.told(context, watches.nodes(self._engine, look))) as told:
            async for change in told:
                yield change

    async def _changed(self, event: NodeRequest, context: Context) -> node_pb2.Node:
        """Have a request done, and show what has become of its node."""
        await self._done(event, context)
        return await self._node(event.node, context)

    async def _done(self, event: NodeRequest, context: Context) -> None:
        try:
            await self._engine.submit(event)
        except (RefusedError, NotLeadingError) as error:
            await abort_refused(context, error)

    async def _node(self, name: str, context: Context) -> node_pb2.Node:
        def ask(state: State) -> node_pb2.Node | None:
            node = state.nodes.get(name)
            return self._view(state, node) if node else None

        try:
            node = await self._engine.read(ask)
        except NotLeadingError as error:
            await abort_refused(context, error)
        if node is None:
            message = f"there is no node {name}"
            await abort(context, code_pb2.NOT_FOUND, message, remedy="list the nodes to see their names")
        return node

    def _view(self, state: State, node: Node) -> node_pb2.Node:
        used = len(state.on_node.get(node.name, ())) + len(node.strays)
        engine = self._engine
        return codec.node_to_proto(node, used, engine.heard_at(node.name), engine.preloads_of(node))


async def _checked(reason: str, context: Context) -> str:
    """A reason that fits into a line."""
    if len(reason) > codec.LONGEST_REASON or not reason.isprintable():
        message = f"the reason has {len(reason)} characters, or some that can't be shown"
        remedy = f"give one line of at most {codec.LONGEST_REASON} characters"
        await abort(context, code_pb2.INVALID_ARGUMENT, message, remedy=remedy)
    return reason
