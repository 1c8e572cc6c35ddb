"""TCP ports held free for MASTER_PORT: bound, not listening, let go of right before a worker needs one.

A worker may take seconds to bind its own, which torch has to be imported for. So they lie where the kernel takes none
from by itself, for whoever connects or binds any port: what is let go of here is nobody's meanwhile.
"""

import contextlib
import random
import socket
from collections.abc import Iterable
from pathlib import Path

HELD = 4
FIRST, LAST = 10_000, 65_535
"""Below are the ports of services that may only not be running now."""
TRIES = 64
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


class Ports:
    """A few held ports. Nobody else can be given one of them by the kernel while it is held."""

    def __init__(self) -> None:
        self._held: dict[int, socket.socket] = {}
        self._ephemeral = _read_ephemeral()
        self._fill()

    def offered(self) -> tuple[int, ...]:
        """The ports that are held now."""
        return tuple(self._held)

    def release(self, port: int) -> bool:
        """Let go of a port for a worker to bind, and hold another. False when it is none of ours."""
        held = self._held.pop(port, None)
        if held is None:
            return False
        self._fill()  # before it is let go of, so that it is not what we are given next
        held.close()
        return True

    def close(self) -> None:
        """Let go of all."""
        for held in self._held.values():
            held.close()
        self._held.clear()

    def _fill(self) -> None:
        with contextlib.suppress(OSError):  # fewer are offered until there are ports again
            while len(self._held) < HELD:
                tried = random.sample(range(FIRST, LAST + 1), TRIES)
                # 0: any, where nothing better is free
                holder = _bind_any([*(port for port in tried if port not in self._ephemeral), 0])
                self._held[holder.getsockname()[1]] = holder


def _read_ephemeral() -> range:
    """The ports that the kernel gives to who asks for none by number."""
    try:
        first, last = map(int, _EPHEMERAL.read_text().split())
    except (OSError, ValueError):
        return range(FIRST, LAST + 1)
    return range(first, last + 1)


def _bind_any(ports: Iterable[int]) -> socket.socket:
    """Bind the first that is free. Raises OSError when none is."""
    problem = OSError("no port was given")
    for port in ports:
        holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            holder.bind(("", port))
        except OSError as error:
            holder.close()
            problem = error
        else:
            return holder
    raise problem
