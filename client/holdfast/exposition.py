"""Serves a daemon's numbers to Prometheus: `GET /metrics`, over plain HTTP.

What is counted is gathered on the daemon's event loop, which is the only place where its state may be looked at, and
written out in a thread, which may take a while. Needs prometheus-client.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias

from prometheus_client import CONTENT_TYPE_LATEST, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from holdfast.measures import Histogram

LONGEST_HEAD = 16 * 1024
ASK_WITHIN_S = 10.0
MOST_AT_ONCE = 16
LOOPBACK = "127.0.0.1"

Value: TypeAlias = "float | Mapping[tuple[str, ...], float] | Histogram"
"""One number; a number for each combination of label values; a histogram."""


class AddressError(Exception):
    """The address can't be listened on; the message is one sentence with the remedy."""


@dataclass(frozen=True, slots=True)
class Described:
    """A metric as it is documented."""

    name: str
    kind: str
    """counter, gauge or histogram"""
    text: str
    labels: tuple[str, ...] = ()


def render(found: Iterable[tuple[Described, Value]]) -> bytes:
    """Write metrics in the text format, with those of this process."""

    class _Found(Collector):
        def collect(self) -> Iterable[Metric]:
            yield from (_family(described, value) for described, value in found)
            yield from ProcessCollector(registry=None).collect()

    return generate_latest(_Found())


def _family(described: Described, value: Value) -> Metric:
    if isinstance(value, Histogram):
        histogram = HistogramMetricFamily(described.name, described.text)
        bounds = [*(str(bound) for bound in value.bounds), "+Inf"]
        counts = list(zip(bounds, accumulate(value.counts), strict=True))
        histogram.add_metric([], counts, value.sum)
        return histogram
    kind = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}[described.kind]
    family: Any = kind(described.name, described.text, labels=described.labels)
    for labels, number in (value if isinstance(value, Mapping) else {(): value}).items():
        family.add_metric(labels, number)
    return family  # type: ignore[no-any-return]


def read_address(text: str) -> tuple[str, int]:
    """Read HOST:PORT, or PORT alone for loopback. Raises AddressError."""
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65_535:
        raise AddressError(
            f'"{text}" is no address for metrics; write host:port, or a port alone, for instance 9464'
        )
    return host.strip("[]") or LOOPBACK, int(port)


class MetricsServer:
    """Answers scrapes with what `collect` gathers."""

    def __init__(self, collect: Callable[[], Awaitable[list[tuple[Described, Value]]]]) -> None:
        self._collect = collect
        self._one_at_a_time = asyncio.Lock()
        self._open: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None

    async def start(self, address: str) -> str:
        """Listen; return the address of it. Raises AddressError."""
        host, port = read_address(address)
        try:
            self._server = await asyncio.start_server(self._answer, host, port, limit=LONGEST_HEAD)
        except OSError as error:
            raise AddressError(
                f"can't serve metrics on {address}: {error.strerror}; choose another address with --metrics"
            ) from error
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def stop(self) -> None:
        """Listen no more, and hang up."""
        if self._server is not None:
            self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            async with asyncio.timeout(ASK_WITHIN_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await self._response(head))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever it was has gone, or never asked
        finally:
            self._open.discard(task)
            with contextlib.suppress(OSError):
                writer.close()

    async def _response(self, head: bytes) -> bytes:
        method, _, rest = head.decode("latin-1").partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if path != "/metrics":
            return _http("404 Not Found", "text/plain", b"metrics are at /metrics\n")
        if method not in ("GET", "HEAD"):
            return _http("405 Method Not Allowed", "text/plain", b"", "Allow: GET, HEAD")
        if len(self._open) > MOST_AT_ONCE:
            return _http("503 Service Unavailable", "text/plain", b"too many ask at once\n")
        async with self._one_at_a_time:
            body = await asyncio.to_thread(render, await self._collect())
        answer = _http("200 OK", CONTENT_TYPE_LATEST, body)
        return answer if method == "GET" else answer[: -len(body)]


def _http(status: str, kind: str, body: bytes, *more: str) -> bytes:
    head = [
        f"HTTP/1.1 {status}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
        *more,
    ]
    return "\r\n".join([*head, "", ""]).encode() + body
