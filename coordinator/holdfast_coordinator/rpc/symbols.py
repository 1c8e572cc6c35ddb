"""The names that gRPC reflection can look up."""

from typing import Any, cast

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import Default, DescriptorPool


def symbols() -> DescriptorPool:
    """Protobuf's own pool, and with it the methods, which it leaves out and `grpcurl describe` asks for."""
    return cast(DescriptorPool, _WithMethods())


class _WithMethods:
    def __init__(self) -> None:
        self._pool = Default()

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            file: FileDescriptor = self._pool.FindMethodByName(symbol).containing_service.file
            return file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)
