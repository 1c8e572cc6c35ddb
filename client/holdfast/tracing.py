"""OpenTelemetry traces: one for each job, from whoever creates it to the commits of its workers.

The context of a job's trace is the variable TRACEPARENT in the environment of its spec, in the form of the W3C: it goes
wherever the spec goes, and a program with an instrumentation of its own finds it where OpenTelemetry says that it is.

Nothing is imported unless the usual variables name a collector; without the extra `otel` that is said once, and all
else works.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Tracer

VARIABLE = "TRACEPARENT"
EXPORT_S = 2.0
"""For one try to reach the collector: a command is not to wait much longer for one that is away."""

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_TIMEOUTS = ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT")
_tracer: "Tracer | None" = None


def start(service: str, tell: Callable[[str], None]) -> None:
    """Send spans from here on, if the environment names a collector. `tell` hears, once, why that is in vain."""
    global _tracer  # noqa: PLW0603  a process has one
    if _tracer is not None or not any(os.environ.get(name) for name in _ENDPOINTS):
        return
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        tell(f"no traces are sent: {error.name} is not installed: pip install 'holdfast[otel]'")
        return
    logger = logging.getLogger("opentelemetry")
    logger.addHandler(_Once(tell))
    logger.propagate = False
    # Not through the environment, which workers inherit.
    name = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": service}
    timeout = None if any(os.environ.get(name) for name in _TIMEOUTS) else EXPORT_S
    provider = TracerProvider(resource=Resource.create(name))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(timeout=timeout)))
    _tracer = provider.get_tracer("holdfast")


class _Once(logging.Handler):
    """Tells of the first trouble with the collector, in a line: it may be away for long."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.ERROR)
        self._tell: Callable[[str], None] | None = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Tell of a record."""
        tell, self._tell = self._tell, None
        if tell is not None:
            cause = record.exc_info[1] if record.exc_info else None
            tell(f"no traces are sent: {record.getMessage()}{f': {cause}' if cause else ''}")


def on() -> bool:
    """Whether spans are sent."""
    return _tracer is not None


@contextmanager
def span(name: str, parent: str = "", **attributes: str | int) -> Iterator[str]:
    """Time what happens inside. Gives the context for what it leads to elsewhere: without tracing, the parent's.

    `parent` is a context too; without one it is the span of OpenTelemetry's that is current, if any.
    """
    if _tracer is None:
        yield parent or _current()
        return
    with _tracer.start_as_current_span(name, _context(parent), attributes=_named(attributes)):
        yield _current()


def tell(name: str, parent: str, began_ns: int, **attributes: str | int) -> None:
    """Tell of what has just ended, and began at so many nanoseconds since the Unix epoch; nothing without a parent."""
    if _tracer is None or not parent:
        return
    done = _tracer.start_span(name, _context(parent), attributes=_named(attributes), start_time=began_ns)
    done.end(max(began_ns, time.time_ns()))


def trace_id(parent: str) -> str:
    """The id of the trace that a context is of; empty where it is none."""
    parts = parent.split("-")
    return parts[1] if len(parts) >= 4 and len(parts[1]) == 32 else ""


def _current() -> str:
    """The context of the current span, also of a program that has set up OpenTelemetry itself; empty without one."""
    trace = sys.modules.get("opentelemetry.trace")
    found = trace.get_current_span().get_span_context() if trace is not None else None
    if found is None or not found.is_valid:
        return ""
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"


def _context(parent: str) -> "Context | None":
    if not parent:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": parent})


def _named(attributes: dict[str, str | int]) -> dict[str, str | int]:
    return {f"holdfast.{name}": value for name, value in attributes.items()}
