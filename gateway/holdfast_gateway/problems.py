"""Errors as application/problem+json (RFC 9457): what is wrong, where, and what to do about it."""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Route

from holdfast import wire
from holdfast.spec import SpecError

MEDIA_TYPE = "application/problem+json"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Kind:
    status: int
    word: str
    title: str


_KINDS: dict[type[wire.HoldfastError], _Kind] = {
    wire.InvalidSpec: _Kind(400, "invalid-argument", "The request can't be"),
    wire.NotFound: _Kind(404, "not-found", "There is no such thing"),
    wire.AlreadyExists: _Kind(409, "already-exists", "It is there already"),
    wire.FailedPrecondition: _Kind(409, "failed-precondition", "Not in the state that it is in"),
    wire.ResourceExhausted: _Kind(429, "resource-exhausted", "Too much, or no room"),
    wire.Unreachable: _Kind(503, "unavailable", "The coordinator can't be reached, or can't serve now"),
    wire.DeadlineExceeded: _Kind(504, "deadline-exceeded", "No answer in time"),
}
_OTHER = _Kind(500, "internal", "The coordinator could not do it")
RETRY_AFTER_S = 1


def problem(
    status: int,
    detail: str,
    *,
    word: str = "",
    title: str = "",
    remedy: str = "",
    violations: Sequence[tuple[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Make the response. `violations` are fields that are wrong, and why."""
    title = title or HTTPStatus(status).phrase
    body: dict[str, Any] = {
        "type": f"urn:holdfast:problem:{word or HTTPStatus(status).phrase.lower().replace(' ', '-')}",
        "title": title,
        "status": status,
        "detail": detail,
    }
    if remedy:
        body["remedy"] = remedy
    if violations:
        body["violations"] = [{"field": name, "description": text} for name, text in violations]
    content = json.dumps(body, ensure_ascii=False).encode(errors="replace")
    return Response(content, status, dict(headers or {}), MEDIA_TYPE)


def from_error(error: wire.HoldfastError) -> Response:
    """The response of a call that did not work."""
    kind = next((_KINDS[known] for known in type(error).__mro__ if known in _KINDS), _OTHER)
    violations = [(v.field, v.description) for v in getattr(error, "violations", ())]
    headers = {"Retry-After": str(RETRY_AFTER_S)} if kind.status in (429, 503) else {}
    return problem(
        kind.status,
        error.message,
        word=kind.word,
        title=kind.title,
        remedy=error.remedy,
        violations=violations,
        headers=headers,
    )


def invalid(detail: str, violations: Sequence[tuple[str, str]] = (), remedy: str = "") -> wire.InvalidSpec:
    """A request that can't be, as an error to raise."""
    return wire.InvalidSpec(detail, remedy, [wire.Violation(name, text) for name, text in violations])


def install(app: FastAPI) -> None:
    """Have every error of an app answered so."""
    handlers: dict[type[Exception], Callable[[Request, Any], Awaitable[Response]]] = {
        wire.HoldfastError: _failed,
        SpecError: _bad_spec,
        RequestValidationError: _bad_request,
        HTTPException: _refused,
        Exception: _broken,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


async def _failed(_request: Request, error: wire.HoldfastError) -> Response:
    return from_error(error)


async def _bad_spec(_request: Request, error: SpecError) -> Response:
    return from_error(invalid(f"the job can't be: {error}", error.problems))


async def _bad_request(_request: Request, error: RequestValidationError) -> Response:
    violations = [
        (str(found["loc"][-1]), f"{found['msg']}: {str(found.get('input'))[:60]!r}")
        for found in error.errors()
    ]
    first = violations[0]
    return from_error(invalid(f"the request can't be: {first[0]}: {first[1]}", violations))


async def _refused(request: Request, error: HTTPException) -> Response:
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = ", ".join(sorted(_methods(request)))
        return problem(405, f"{request.url.path[:80]} takes {allowed} alone", headers={"Allow": allowed})
    return problem(error.status_code, str(error.detail), headers=error.headers)


def _methods(request: Request) -> set[str]:
    """What a path takes, by all routes that it could be; one that is named as it stands goes before a pattern."""
    could = [
        route
        for route in request.app.state.routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
    ]
    exact = [route for route in could if route.path == request.url.path]
    return {method for route in exact or could for method in route.methods or ()}


async def _broken(request: Request, error: Exception) -> Response:
    log.error("a request could not be served", path=request.url.path, error=repr(error))
    return problem(500, "the gateway could not serve this; its log says why", word="internal")
