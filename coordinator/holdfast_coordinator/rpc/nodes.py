"""NodeService."""

from google.rpc import code_pb2

from holdfast.v1 import node_pb2, node_pb2_grpc
from holdfast_coordinator import codec
from holdfast_coordinator.core.model import Node
from holdfast_coordinator.core.state import State
from holdfast_coordinator.engine import Engine, NotLeadingError
from holdfast_coordinator.rpc import paging
from holdfast_coordinator.rpc.errors import Context, abort, abort_refused


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
        return node_pb2.ListNodesResponse(nodes=nodes, next_page_token=token)

    async def GetNode(self, request: node_pb2.GetNodeRequest, context: Context) -> node_pb2.GetNodeResponse:
        def ask(state: State) -> node_pb2.Node | None:
            node = state.nodes.get(request.name)
            return self._view(state, node) if node else None

        try:
            node = await self._engine.read(ask)
        except NotLeadingError as error:
            await abort_refused(context, error)
        if node is None:
            message = f"there is no node {request.name}"
            await abort(context, code_pb2.NOT_FOUND, message, remedy="list the nodes to see their names")
        return node_pb2.GetNodeResponse(node=node)

    def _view(self, state: State, node: Node) -> node_pb2.Node:
        used = len(state.on_node.get(node.name, ())) + len(node.strays)
        engine = self._engine
        return codec.node_to_proto(node, used, engine.heard_at(node.name), engine.preloads_of(node))
