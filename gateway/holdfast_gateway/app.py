"""The app put together: guard, figures, routes, errors, the dashboard's files."""

from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.types import ASGIApp

from holdfast import __version__
from holdfast.client import Client
from holdfast_gateway import docs, pages, problems
from holdfast_gateway.boards import Boards
from holdfast_gateway.config import GatewayConfig
from holdfast_gateway.guard import Guard
from holdfast_gateway.metrics import Measured, Metrics
from holdfast_gateway.parts import Parts, only_known
from holdfast_gateway.routes import events, jobs, logs, nodes, service

ROUTERS = (jobs.router, logs.router, events.router, nodes.router, service.router)


class _App(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """Describe the routes; made once."""
        if not self.openapi_schema:
            made = get_openapi(title="holdfast", version=__version__, routes=self.routes)
            self.openapi_schema = docs.complete(made)
        return self.openapi_schema


def _routed() -> _App:
    app = _App(
        title="holdfast",
        docs_url=None,  # its page would come from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(only_known)],
    )
    problems.install(app)
    for router in ROUTERS:
        app.include_router(router)
    return app


def description() -> dict[str, Any]:
    """Give the OpenAPI description, with nothing running."""
    return _routed().openapi()


def make_app(config: GatewayConfig, client: Client, static: Path = pages.STATIC) -> ASGIApp:
    """Put it together. The client stays the caller's to close."""
    app = _routed()
    app.state.parts = Parts(config, client, Metrics(), Boards(client))
    app.state.routes = [route for router in ROUTERS for route in router.routes]
    pages.install(app, static)
    measured = Measured(app, app.state.parts.metrics)
    return Guard(measured, config.host_names, config.cors_origins)
