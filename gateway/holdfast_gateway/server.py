"""A gateway in this process: uvicorn on a socket of ours, without signal handlers of its own."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
import uvicorn

from holdfast.client import Client
from holdfast_gateway.app import make_app
from holdfast_gateway.config import GatewayConfig, ListenError

STOP_GRACE_S = 1
"""For answers that are under way; streams are cut, and their readers come back."""
BACKLOG = 2_048
MOST_HEAD_BYTES = 2**16
"""Of a request without its body: as many ranks as may be asked for are in its first line."""

log = structlog.get_logger(__name__)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to whoever started us."""
        yield


class Gateway:
    """Serves until it is stopped."""

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._client: Client | None = None
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Listen. Return the address as a URL. Raises ListenError."""
        host, port = self._config.address()
        listener = _listen(host, port, self._config.listen)
        self._client = Client(self._config.server)
        settings = uvicorn.Config(
            make_app(self._config, self._client),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=STOP_GRACE_S,
            h11_max_incomplete_event_size=MOST_HEAD_BYTES,
        )
        self._server = _Server(settings)
        self._task = asyncio.create_task(self._server.serve([listener]))
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listener.getsockname()[1]}"
        if self._config.insecure:
            log.warning("anyone who reaches this address can run commands on every node", address=url)
        log.info("the gateway listens", address=url, coordinator=self._config.server)
        return url

    async def wait(self) -> None:
        """Wait until it fails: it never ends by itself."""
        assert self._task is not None
        await self._task

    async def stop(self) -> None:
        """Stop serving."""
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            await asyncio.gather(self._task, return_exceptions=True)
        if self._client is not None:
            await self._client.close()


def _listen(host: str, port: int, shown: str) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # With its protocol by name: of any other asyncio does not switch off Nagle's algorithm, for 40 ms an answer.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        raise ListenError(f"can't listen on {shown}: {error.strerror}; choose another address") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ListenError(
            f"can't listen on {shown}: {error.strerror}; is another gateway running there? Choose another address"
        ) from error
    listener.setblocking(False)
    return listener
