"""Forks shims: a process of its own, small and single-threaded, started once by the agent.

The agent has threads (gRPC) and much memory, neither of which forks well; a new interpreter for each shim takes about
15 ms and its memory is not shared. This process has imported what a shim needs, and forks one in about a
millisecond.

Requests come over a SOCK_SEQPACKET socket, answers go back in the same order:

======= ============================================== =============================
        data                                           descriptors
======= ============================================== =============================
request ``shim`` and path of the attempt's directory   its lock; the report pipe
request ``spare`` and path of a plan (see spare.py)    its two sockets
answer  ``forked``, or ``error <errno>``               a pidfd of the shim
======= ============================================== =============================

It ends when the agent does, which closes the socket; the shims go on.
"""

import contextlib
import errno
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import NoReturn

from holdfast_agent import shim, spare

REQUEST_BYTES = 8192
IDLE_MS = 20
"""After so long without a request there is time to prepare for the next: not while a gang starts."""
SHIM, SPARE = "shim", "spare"


def main() -> None:
    """Serve the socket on descriptor argv[1]; with argv[2], shims die with the agent of that pid."""
    link = socket.socket(fileno=int(sys.argv[1]))
    agent = os.pidfd_open(int(sys.argv[2])) if len(sys.argv) > 2 else None

    def be_shim(request: str, passed: list[int]) -> NoReturn:
        kind, _, path = request.partition(" ")
        if kind == SPARE:
            spare.run(path, socket.socket(fileno=passed[0]), passed[1], agent)
        shim.run(path, passed[1], agent)

    serve(link, be_shim)


def serve(
    link: socket.socket,
    child: Callable[[str, list[int]], None],
    *,
    may_fork: Callable[[], bool] = lambda: True,
    ahead: bool = False,
) -> None:
    """Fork a `child` for every request, until nobody can ask any more.

    With `ahead`, whenever there is time, one is forked that waits for the next request: it has copied by then what a
    fork copies of a large process, page by page.
    """
    _Server(link, child, may_fork).run(ahead=ahead)


class _Server:
    def __init__(
        self, link: socket.socket, child: Callable[[str, list[int]], None], may_fork: Callable[[], bool]
    ) -> None:
        self._link = link
        self._child = child
        self._may_fork = may_fork
        self._ahead: tuple[int, socket.socket] | None = None
        """A pidfd of the child that waits, and where it is told what for."""

    def run(self, *, ahead: bool) -> None:
        readable, writable = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writable)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        poller = select.poll()
        poller.register(self._link, select.POLLIN)
        poller.register(readable, select.POLLIN)
        wanted = ahead
        while True:
            ready = poller.poll(IDLE_MS if wanted else None)
            if not ready:
                wanted = False  # whether or not that succeeds
                self._fork_ahead()
            for fd, _ in ready:
                if fd == readable:
                    os.read(readable, REQUEST_BYTES)
                    _reap()
                elif self._serve():
                    wanted = ahead
                else:
                    self._dismiss()
                    return

    def _serve(self) -> bool:
        request, passed = _receive(self._link)
        if not request:
            return False
        pidfd = self._hand_over(request, passed) or self._fork(request, passed)
        if pidfd:
            socket.send_fds(self._link, [b"forked"], [pidfd])
            os.close(pidfd)
        for fd in passed:
            os.close(fd)
        return True

    def _hand_over(self, request: bytes, passed: list[int]) -> int:
        """Have the child that waits do it. Returns a pidfd of it; 0: there is none."""
        if self._ahead is None:
            return 0
        (pidfd, link), self._ahead = self._ahead, None
        with link:
            try:
                socket.send_fds(link, [request], passed, socket.MSG_NOSIGNAL)
            except OSError:  # it was killed
                os.close(pidfd)
                return 0
        return pidfd

    def _fork(self, request: bytes, passed: list[int]) -> int:
        """Fork a child. Returns a pidfd of it; 0: it is said why there is none."""
        why: int | None = errno.EDEADLK
        if self._may_fork():
            try:
                pid = os.fork()
            except OSError as error:
                why = error.errno
            else:
                if pid == 0:
                    self._leave()
                    self._child(os.fsdecode(request), passed)
                return os.pidfd_open(pid)  # not reaped yet, so that the pid can't be anybody else's
        self._link.send(f"error {why}".encode())
        return 0

    def _fork_ahead(self) -> None:
        """Have a child that waits, if that may be."""
        if self._ahead is not None or not self._may_fork():
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                pid = os.fork()
            except OSError:
                ours.close()
                return
            if pid == 0:
                ours.close()
                self._leave()
                shim.set_name("holdfast-ahead")
                shim.die_with_parent(wanted=True)  # where that has ended already, nobody asks
                request, passed = _receive(theirs)
                theirs.close()
                if not request:
                    os._exit(0)
                shim.die_with_parent(wanted=False)
                self._child(os.fsdecode(request), passed)
        self._ahead = os.pidfd_open(pid), ours

    def _dismiss(self) -> None:
        """End the child that waits, and see that it is gone: nobody else counts it among what is to end."""
        if self._ahead is not None:
            pidfd, link = self._ahead
            link.close()
            select.select([pidfd], [], [], shim.GONE_WITHIN_S)

    def _leave(self) -> None:
        """In a child: be no part of this process any more."""
        signal.set_wakeup_fd(-1)
        self._link.close()
        shim.detach()


def _receive(link: socket.socket) -> tuple[bytes, list[int]]:
    request, passed, _, _ = socket.recv_fds(link, REQUEST_BYTES, 2)
    for fd in passed:
        os.set_inheritable(fd, False)  # neither is the worker's business
    return request, passed


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    with contextlib.suppress(ConnectionError):  # the agent was killed
        main()
