"""The wire: channels, keepalive, bounds, retries, deadlines, and what a status means to people.

Coordinator, agent, gateway and client all take it from here, so that both ends of every connection agree.
"""

import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from holdfast import addresses

DEFAULT_TARGET = addresses.DEFAULT_TARGET
MAX_MESSAGE_BYTES = 16 * 2**20
DEADLINE_S = 30.0
"""Of every unary call that names none."""

TIME_KEY = "holdfast-time-ns"
"""In what follows the answer to ListNodes: the coordinator's time, nanoseconds since the Unix epoch."""

C = TypeVar("C", bound=grpc.aio.RpcContext)

KEEPALIVE_MS = 10_000
KEEPALIVE_TIMEOUT_MS = 5_000
CONNECTION_AGE_MS = 60_000
"""After it a server takes no new calls on a connection, and streams go on: who is connected to a coordinator that
stands by looks a name up again."""
RESOLVE_AGAIN_MS = 2_000
"""How long a name that was looked up stays so at least; gRPC's own is 30 s."""

_SERVICES = ("holdfast.v1.JobService", "holdfast.v1.NodeService")
_BOUNDS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
]


def server_options() -> list[tuple[str, Any]]:
    """Options of every server: the same bounds, and clients may ping as often as ours do."""
    return [
        *_BOUNDS,
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.max_connection_age_ms", CONNECTION_AGE_MS),
        ("grpc.so_reuseport", 0),  # a second server on the port is an error, not half of the traffic
    ]


def open_channel(target: str = DEFAULT_TARGET) -> grpc.aio.Channel:
    """Open a channel to a coordinator: `host:port`, or `unix:/path`; of `ip:port,ip:port` to whichever serves.

    Connecting happens with the first call. What is safe to repeat is repeated while the coordinator is away for a
    moment: every unary call here is (CreateJob by its request id). Raises InvalidSpec for a list that can't be.
    """
    retry = {
        "maxAttempts": 5,
        "initialBackoff": "0.1s",
        "maxBackoff": "2s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    config: dict[str, Any] = {
        "methodConfig": [{"name": [{"service": name} for name in _SERVICES], "retryPolicy": retry}]
    }
    try:
        several = addresses.several(target)
    except ValueError as error:
        raise InvalidSpec(str(error)) from error
    if several:
        # Standbys are connected to as well, and passed over by what their health says.
        config |= {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}
    options = [
        *_BOUNDS,
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.dns_min_time_between_resolutions_ms", RESOLVE_AGAIN_MS),
        ("grpc.service_config", json.dumps(config)),
    ]
    return grpc.aio.insecure_channel(several or target, options=options, interceptors=[_Deadline()])


@contextmanager
def ended_after(call: C) -> Iterator[C]:
    """Have a stream's call end with whoever reads it: one that is only dropped lives until the collector comes."""
    try:
        yield call
    finally:
        call.cancel()


class _Deadline(grpc.aio.UnaryUnaryClientInterceptor):
    """Gives every unary call a deadline."""

    async def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        if client_call_details.timeout is None:
            client_call_details = grpc.aio.ClientCallDetails(
                method=client_call_details.method,
                timeout=DEADLINE_S,
                metadata=client_call_details.metadata,
                credentials=client_call_details.credentials,
                wait_for_ready=client_call_details.wait_for_ready,
            )
        return await continuation(client_call_details, request)


@dataclass(frozen=True, slots=True)
class Violation:
    """A field of a request that is wrong, by its path in the proto."""

    field: str
    description: str


class HoldfastError(Exception):
    """A call that did not work: what is wrong, and what to do about it."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


class Unreachable(HoldfastError):  # noqa: N818  named for what happened, as a reader of `except` wants it
    """Nobody answers at the address, or whoever does can't serve."""


class NotFound(HoldfastError):  # noqa: N818
    """There is no such thing."""


class AlreadyExists(HoldfastError):  # noqa: N818
    """The name or the request id is taken."""


class FailedPrecondition(HoldfastError):  # noqa: N818
    """Not in the state that it is in."""


class ResourceExhausted(HoldfastError):  # noqa: N818
    """Too much, or no room."""


class DeadlineExceeded(HoldfastError):  # noqa: N818
    """No answer in time."""


class ClientClosed(HoldfastError):  # noqa: N818
    """The client was closed, or was made before this process was forked."""


class InvalidSpec(HoldfastError):  # noqa: N818
    """The request can't be; `violations` say which fields, and why."""

    def __init__(self, message: str, remedy: str = "", violations: Sequence[Violation] = ()) -> None:
        super().__init__(message, remedy)
        self.violations = tuple(violations)


_KINDS: dict[grpc.StatusCode, type[HoldfastError]] = {
    grpc.StatusCode.UNAVAILABLE: Unreachable,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}


def from_rpc_error(error: grpc.aio.AioRpcError, target: str) -> HoldfastError:
    """Read a status and its google.rpc details."""
    code, message = error.code(), error.details() or error.code().name
    remedy, violations = _details(error)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidSpec(message, remedy, violations)
    if code is grpc.StatusCode.UNAVAILABLE and not remedy and addresses.several(target):
        return Unreachable(
            f"none of the coordinators at {target} serves", "start one, or wait until one has taken over"
        )
    if code is grpc.StatusCode.UNAVAILABLE and not remedy:
        return Unreachable(
            f"the coordinator at {target} is not reachable",
            f"start one with {_start(target)}, or name another with --server",
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"the coordinator at {target} did not answer in time", "try again")
    return _KINDS.get(code, HoldfastError)(message, remedy)


def _start(target: str) -> str:
    """What starts a coordinator that is reached there."""
    if target == DEFAULT_TARGET:
        return "`holdfast coordinator`"
    command = f"`holdfast coordinator --listen {target}`"
    return command if addresses.is_here(target) else f"{command} there"


def _details(error: grpc.aio.AioRpcError) -> tuple[str, list[Violation]]:
    remedy, violations = "", []
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # an AioRpcError has what it reads of a Call
    for detail in status.details if status is not None else ():
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            remedy = info.metadata.get("remedy", "")
        elif detail.Unpack(bad):
            violations = [Violation(v.field, v.description) for v in bad.field_violations]
    return remedy, violations
