"""The gateway's own figures for Prometheus. Labels are routes, methods, statuses and kinds of streams: all bounded."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "OPTIONS"})


class Metrics:
    """One set of them; a gateway has its own registry, so that several live in one process."""

    def __init__(self) -> None:
        self.open_streams = 0
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "holdfast_gateway_requests",
            "HTTP requests that were answered, by route; streams count when they end.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "holdfast_gateway_request_seconds",
            "From a request to the end of its answer, without streams.",
            ("method", "route"),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._streams = Gauge(
            "holdfast_gateway_streams", "Streams that are open.", ("kind",), registry=self._registry
        )
        self._events = Counter(
            "holdfast_gateway_stream_events",
            "Events that were sent on streams.",
            ("kind",),
            registry=self._registry,
        )

    def exposition(self) -> bytes:
        """All of them, in Prometheus's text form."""
        return generate_latest(self._registry)

    @contextmanager
    def stream(self, kind: str) -> Iterator[Counter]:
        """Count a stream while it is open; gives what counts its events."""
        gauge = self._streams.labels(kind)
        gauge.inc()
        self.open_streams += 1
        try:
            yield self._events.labels(kind)
        finally:
            gauge.dec()
            self.open_streams -= 1

    def answered(self, scope: Scope, status: int, seconds: float, *, streamed: bool) -> None:
        """Count a request."""
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        if not streamed:
            self._seconds.labels(method, route).observe(seconds)


class Measured:
    """Counts what an app answers."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, streamed = time.perf_counter(), 500, False

        async def noted(message: Message) -> None:
            nonlocal status, streamed
            if message["type"] == "http.response.start":
                status = message["status"]
                streamed = (b"content-type", b"text/event-stream; charset=utf-8") in message["headers"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            self._metrics.answered(scope, status, time.perf_counter() - began, streamed=streamed)
