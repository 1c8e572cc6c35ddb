"""The agent's end of the nursery: asks for shims, and hears from them without polling."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from holdfast_agent.readable import readable
from holdfast_agent.workdir import Attempt

ANSWER_BYTES = 64
REQUESTS_AT_ONCE = 32
"""As many as surely fit into the socket's buffer."""


class SpawnError(Exception):
    """No shim could be had; the message says why."""


class NurseryLostError(Exception):
    """Nobody can say whether there is a shim; its directory can."""


@dataclass(frozen=True, slots=True)
class Started:
    """A shim and its worker. `pidfd` becomes readable when the shim has ended; whoever gets it closes it."""

    pidfd: int
    pid: int
    pid_start: int


class Nursery:
    """The nursery process, started anew when it dies. Belongs to one event loop."""

    def __init__(self, *, foreground: bool) -> None:
        self._foreground = foreground
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._waiting: deque[asyncio.Future[tuple[str, int | None]]] = deque()
        self._turns = asyncio.Semaphore(REQUESTS_AT_ONCE)

    def start(self) -> None:
        """Start the process; cheap to call when it runs."""
        if self._socket is not None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # -P: a json.py in the working directory, where training programs lie, must not be ours.
        command = [sys.executable, "-P", "-S", "-m", "holdfast_agent.nursery", str(theirs.fileno())]
        if self._foreground:
            command.append(str(os.getpid()))
        self._process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C is the agent's to interpret
        )
        theirs.close()
        ours.setblocking(False)
        self._socket = ours
        asyncio.get_running_loop().add_reader(ours, self._on_answer)

    def stop(self) -> None:
        """End the process; shims go on."""
        self._drop()

    async def shim(self, attempt: Attempt, lock: int) -> Started:
        """Start the shim of an attempt, hand it the lock, and wait until its worker runs or has failed to.

        Closes `lock`. Raises SpawnError and NurseryLostError.
        """
        readable, writable = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(writable, True)
        try:
            pidfd = await self._ask(attempt, lock, writable)
        except BaseException:
            os.close(readable)
            raise
        finally:
            os.close(lock)
            os.close(writable)
        try:
            report = (await _read_pipe(readable)).split()
        finally:
            os.close(readable)
        match report:
            case [b"started", pid, start]:
                return Started(pidfd, int(pid), int(start))
            case [b"error", number]:
                os.close(pidfd)
                raise SpawnError(os.strerror(int(number)))
            case _:  # the worker could not run, or the shim was killed: exit.json tells
                return Started(pidfd, 0, 0)

    async def _ask(self, attempt: Attempt, lock: int, report: int) -> int:
        async with self._turns:
            self._send(os.fsencode(attempt.path), [lock, report])
            answer: asyncio.Future[tuple[str, int | None]] = asyncio.get_running_loop().create_future()
            self._waiting.append(answer)
            said, pidfd = await answer
        if pidfd is None:
            raise SpawnError(f"no process could be forked: {said}")
        return pidfd

    def _send(self, path: bytes, fds: list[int]) -> None:
        for last in (False, True):
            self.start()
            assert self._socket is not None
            try:
                socket.send_fds(self._socket, [path], fds)
            except OSError as error:
                self._drop()  # it has died; this request has not reached it
                if last:
                    raise SpawnError(f"no process that forks: {error.strerror}") from error
            else:
                return

    def _on_answer(self) -> None:
        assert self._socket is not None
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, ANSWER_BYTES, 1)
        except OSError:
            data, fds = b"", []
        if not data:
            self._drop()
            return
        for fd in fds:
            os.set_inheritable(fd, False)
        answer = self._waiting.popleft()
        if answer.done():  # whoever asked is gone; the shim is found again on disk
            for fd in fds:
                os.close(fd)
        else:
            answer.set_result((data.decode(), fds[0] if fds else None))

    def _drop(self) -> None:
        """Let go of a nursery that has died, or that is to end. The next request starts another."""
        if self._socket is None or self._process is None:
            return
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self._socket = None
        self._process.kill()  # it ends by itself, but perhaps not now
        self._process.wait()
        for answer in self._waiting:
            if not answer.done():
                answer.set_exception(NurseryLostError())
        self._waiting.clear()


async def _read_pipe(fd: int) -> bytes:
    data = b""
    while True:
        try:
            chunk = os.read(fd, 4096)
        except BlockingIOError:
            await readable(fd)
            continue
        if not chunk:
            return data
        data += chunk


def signal_shim(pidfd: int, how: signal.Signals) -> None:
    """Tell a shim to stop its worker; see shim.py. One that has ended is no error; one that is stopped goes on."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, how)
        signal.pidfd_send_signal(pidfd, signal.SIGCONT)
