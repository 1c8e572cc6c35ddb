"""Refusals as gRPC statuses with google.rpc details: what is wrong, where, and what to do about it."""

import typing
from collections.abc import Sequence
from typing import NoReturn

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from holdfast_coordinator.core.effects import Problem
from holdfast_coordinator.core.validate import Violation
from holdfast_coordinator.engine import NotLeadingError, RefusedError
from holdfast_coordinator.store.api import StoreError

DOMAIN = "holdfast"

Context = grpc.aio.ServicerContext[typing.Any, typing.Any]

_CODES = {
    Problem.NOT_FOUND: code_pb2.NOT_FOUND,
    Problem.ALREADY_EXISTS: code_pb2.ALREADY_EXISTS,
    Problem.FAILED_PRECONDITION: code_pb2.FAILED_PRECONDITION,
}


async def abort(
    context: Context,
    code: int,
    message: str,
    *,
    remedy: str = "",
    violations: Sequence[Violation] = (),
) -> NoReturn:
    """End the call with a status. ErrorInfo carries the remedy, BadRequest the fields that are wrong."""
    info = error_details_pb2.ErrorInfo(reason=code_pb2.Code.Name(code), domain=DOMAIN)
    if remedy:
        info.metadata["remedy"] = remedy
    details: list[Message] = [info]
    if violations:
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
                    for v in violations
                ]
            )
        )
    status = status_pb2.Status(code=code, message=message)
    for detail in details:
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    await context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort_with_status raises")


async def abort_refused(context: Context, error: RefusedError | NotLeadingError | StoreError) -> NoReturn:
    """End the call with what the engine said."""
    if isinstance(error, StoreError):
        await abort(context, code_pb2.UNAVAILABLE, str(error), remedy="try again")
    if isinstance(error, RefusedError):
        refusal = error.refusal
        await abort(context, _CODES[refusal.problem], refusal.message, remedy=refusal.remedy)
    await abort(
        context, code_pb2.UNAVAILABLE, f"the coordinator can't serve now: {error}", remedy="try again"
    )
