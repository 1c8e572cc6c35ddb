"""The gateway itself."""

from fastapi import APIRouter
from starlette.responses import Response

from holdfast import __version__
from holdfast_gateway.answers import answer_text
from holdfast_gateway.docs import gives
from holdfast_gateway.metrics import MEDIA_TYPE
from holdfast_gateway.parts import Use

router = APIRouter(tags=["service"])


@router.get("/health", **gives({"status": str, "version": str}))
async def health(parts: Use) -> Response:
    """Say whether the coordinator can be reached and serves; 503 when not."""
    await parts.client.list_nodes_page(size=1)
    return answer_text(f'{{"status": "ok", "version": "{__version__}"}}')


@router.get("/metrics", **gives(MEDIA_TYPE))
async def metrics(parts: Use) -> Response:
    """Give the gateway's own figures, for Prometheus."""
    return Response(parts.metrics.exposition(), media_type=MEDIA_TYPE)
