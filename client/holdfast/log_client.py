"""A client for whoever prints logs."""

from collections.abc import AsyncGenerator

from holdfast.client import Client
from holdfast.log_wire import AnyChunk
from holdfast.v1 import job_pb2


class LogClient(Client):
    """One that also gives logs as they are on the wire: their data is not copied into messages."""

    def chunks(self, request: job_pb2.StreamLogsRequest) -> AsyncGenerator[AnyChunk, None]:
        """Do what `stream_logs` does."""
        return self._log_chunks(request)
