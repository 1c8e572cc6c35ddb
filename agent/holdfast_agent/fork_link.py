"""Asking a process that forks for a shim: over a socket, without polling (see nursery.py for what is said)."""

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from holdfast_agent import nursery
from holdfast_agent.readable import readable

ANSWER_BYTES = REPORT_BYTES = 64
REQUESTS_AT_ONCE = 32
"""As many as surely fit into the socket's buffer."""


class SpawnError(Exception):
    """No shim could be had; the message says why."""


class NurseryLostError(Exception):
    """Nobody can say whether there is a shim; its directory can."""


@dataclass(frozen=True, slots=True)
class Started:
    """A shim and its worker. Whoever gets it closes its descriptors.

    `pidfd` becomes readable when the shim has ended, and `report` when it has recorded how the worker did, a moment
    before.
    """

    pidfd: int
    report: int
    pid: int
    pid_start: int

    def close(self) -> None:
        """Close them."""
        os.close(self.pidfd)
        os.close(self.report)


class ForkLink:
    """The agent's end of the socket. `lost` is told when the other end is gone. Belongs to one event loop."""

    def __init__(self, ours: socket.socket, lost: Callable[[], None]) -> None:
        ours.setblocking(False)
        self._socket = ours
        self._lost = lost
        self._waiting: deque[asyncio.Future[tuple[str, int | None]]] = deque()
        self._turns = asyncio.Semaphore(REQUESTS_AT_ONCE)
        self._open = True
        asyncio.get_running_loop().add_reader(ours, self._on_answer)

    async def ask(self, kind: str, path: os.PathLike[str], fds: list[int]) -> int:
        """Have something forked. Returns a pidfd of it.

        Raises BrokenPipeError when that was not asked, SpawnError, and NurseryLostError when there was no answer.
        """
        async with self._turns:
            if not self._open:
                raise BrokenPipeError
            try:
                socket.send_fds(self._socket, [b"%s %s" % (kind.encode(), os.fsencode(path))], fds)
            except OSError as error:
                self.close()
                raise BrokenPipeError from error
            answer: asyncio.Future[tuple[str, int | None]] = asyncio.get_running_loop().create_future()
            self._waiting.append(answer)
            said, pidfd = await answer
        if pidfd is None:
            raise SpawnError(f"no process could be forked: {os.strerror(int(said.split()[1]))}")
        return pidfd

    @property
    def idle(self) -> bool:
        """Nobody waits for an answer."""
        return not self._waiting

    def close(self) -> None:
        """Let go of it. Who waits for an answer is told that there is none."""
        if not self._open:
            return
        self._open = False
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        for answer in self._waiting:
            if not answer.done():
                answer.set_exception(NurseryLostError())
        self._waiting.clear()
        self._lost()

    def _on_answer(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, ANSWER_BYTES, 1)
        except OSError:
            data, fds = b"", []
        if not data:
            self.close()
            return
        for fd in fds:
            os.set_inheritable(fd, False)
        answer = self._waiting.popleft()
        if answer.done():  # whoever asked is gone; the shim is found again on disk
            for fd in fds:
                os.close(fd)
        else:
            answer.set_result((data.decode(), fds[0] if fds else None))


class ReportPipe:
    """What a shim says of its start. Used as a context manager; `end` is the shim's end of it."""

    def __init__(self) -> None:
        self._readable, self.end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self.end, True)

    def __enter__(self) -> Self:
        """Leaving closes what nobody has been given."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        for fd in (self._readable, self.end):
            if fd >= 0:
                os.close(fd)

    async def read(self, pidfd: int) -> Started:
        """Wait until the worker runs, or has failed to: without a pid exit.json tells of it. Raises SpawnError."""
        os.close(self.end)  # the shim has it by now
        self.end = -1
        await readable(self._readable)
        match os.read(self._readable, REPORT_BYTES).split():
            case [b"started", pid, start]:
                found = Started(pidfd, self._readable, int(pid), int(start))
            case [b"error", number]:
                raise SpawnError(os.strerror(int(number)))
            case _:  # the worker could not run, or the shim was killed
                found = Started(pidfd, self._readable, 0, 0)
        self._readable = -1
        return found


async def ask_for_shim(link: ForkLink, path: os.PathLike[str], lock: int) -> Started:
    """Have the shim of an attempt forked, and wait until its worker runs or has failed to.

    Raises as `ForkLink.ask` does.
    """
    with ReportPipe() as report:
        pidfd = await link.ask(nursery.SHIM, path, [lock, report.end])
        try:
            return await report.read(pidfd)
        except BaseException:
            os.close(pidfd)
            raise
