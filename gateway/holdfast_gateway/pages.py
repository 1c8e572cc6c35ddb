"""The dashboard's files, where they were built; and otherwise one page that says how."""

from pathlib import Path

from fastapi import FastAPI
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

STATIC = Path(__file__).with_name("static")

_NOT_BUILT = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>holdfast</title>
<h1>holdfast</h1>
<p>The gateway runs. The dashboard is not built here: run <code>make dashboard</code> in a checkout, with Node.js.</p>
<p>What there is: <a href="/openapi.json">the API</a>, <a href="/jobs">jobs</a>, <a href="/nodes">nodes</a>,
<a href="/events">events</a>.</p>
</html>
"""


def install(app: FastAPI, static: Path) -> None:
    """Serve them, behind all other routes."""
    if (static / "index.html").is_file():
        app.mount("/", StaticFiles(directory=static, html=True))
        return

    @app.get("/", include_in_schema=False)
    async def not_built() -> Response:
        return HTMLResponse(_NOT_BUILT)
