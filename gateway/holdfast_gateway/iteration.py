"""Iterating over what the client gives, and leaving in the middle."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TypeVar, cast

T = TypeVar("T")


def closing(iterator: AsyncIterator[T]) -> "aclosing[AsyncGenerator[T, None]]":
    """Close a generator when its reader is gone, which ends the call behind it."""
    return aclosing(cast("AsyncGenerator[T, None]", iterator))
