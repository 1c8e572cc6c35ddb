"""What the operator decides, and whether it can be."""

import sys
from dataclasses import dataclass, field

from holdfast import wire

LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})


class ListenError(Exception):
    """The address can't be listened on; the message is one sentence with the remedy."""


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """`listen` is host:port (port 0: any free one); beyond loopback it takes `insecure`."""

    listen: str
    server: str = wire.DEFAULT_TARGET
    """The coordinator."""
    insecure: bool = False
    host_names: frozenset[str] = field(default=frozenset())
    """By which it is served beside those of loopback, without a port."""
    cors_origins: frozenset[str] = field(default=frozenset())
    """Pages that may use it beside its own, e.g. https://portal.example."""
    python: str = sys.executable
    """What runs the built-in example on the nodes."""

    def address(self) -> tuple[str, int]:
        """Host and port to listen on. Raises ListenError when it is malformed, or open to others without saying so."""
        host, colon, port = self.listen.rpartition(":")
        if not colon or not host or not port.isdecimal() or int(port) > 65_535:
            raise ListenError(f'"{self.listen}" is no address; write host:port, for instance 127.0.0.1:8080')
        if host not in LOOPBACK and not self.insecure:
            raise ListenError(
                f"{self.listen} can be reached from other machines, and whoever reaches it can run commands on every "
                "node; listen on 127.0.0.1, or add --insecure on a network that you trust"
            )
        return host.strip("[]"), int(port)
