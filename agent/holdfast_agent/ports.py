"""TCP ports held free for MASTER_PORT: bound, not listening, let go of right before a worker needs one."""

import contextlib
import socket

HELD = 4


class Ports:
    """A few held ports. Nobody else can be given one of them by the kernel while it is held."""

    def __init__(self) -> None:
        self._held: dict[int, socket.socket] = {}
        self._fill()

    def offered(self) -> tuple[int, ...]:
        """The ports that are held now."""
        return tuple(self._held)

    def release(self, port: int) -> bool:
        """Let go of a port for a worker to bind, and hold another. False when it is none of ours."""
        held = self._held.pop(port, None)
        if held is None:
            return False
        self._fill()  # before it is let go of, so that it is not what the kernel gives us next
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
                holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                try:
                    holder.bind(("", 0))
                except OSError:
                    holder.close()
                    raise
                self._held[holder.getsockname()[1]] = holder
