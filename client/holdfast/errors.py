"""What the clients raise, by kind. Every one is a HoldfastError, with a `message` and a `remedy`."""

from holdfast.wire import (
    AlreadyExists,
    ClientClosed,
    DeadlineExceeded,
    FailedPrecondition,
    HoldfastError,
    InvalidSpec,
    NotFound,
    ResourceExhausted,
    Unreachable,
    Violation,
)

__all__ = [
    "AlreadyExists",
    "ClientClosed",
    "DeadlineExceeded",
    "FailedPrecondition",
    "HoldfastError",
    "InvalidSpec",
    "NotFound",
    "ResourceExhausted",
    "Unreachable",
    "Violation",
]
