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
answer  pid of the shim, or ``error <errno>``          a pidfd of the shim
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
) -> None:
    """Fork a `child` for every request, until nobody can ask any more."""
    readable, writable = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writable)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    poller = select.poll()
    poller.register(link, select.POLLIN)
    poller.register(readable, select.POLLIN)
    while True:
        for fd, _ in poller.poll():
            if fd == readable:
                os.read(readable, REQUEST_BYTES)
                _reap()
            elif not _serve(link, child, may_fork):
                return


def _serve(
    link: socket.socket, child: Callable[[str, list[int]], None], may_fork: Callable[[], bool]
) -> bool:
    request, passed, _, _ = socket.recv_fds(link, REQUEST_BYTES, 2)
    if not request:
        return False
    for fd in passed:
        os.set_inheritable(fd, False)  # neither is the worker's business
    pid = _fork(link, may_fork)
    if pid == 0:
        signal.set_wakeup_fd(-1)
        link.close()
        child(os.fsdecode(request), passed)
    if pid > 0:
        # Not reaped yet, so that the pid can't be anybody else's.
        pidfd = os.pidfd_open(pid)
        socket.send_fds(link, [str(pid).encode()], [pidfd])
        os.close(pidfd)
    for fd in passed:
        os.close(fd)
    return True


def _fork(link: socket.socket, may_fork: Callable[[], bool]) -> int:
    why: int | None = errno.EDEADLK
    if may_fork():
        try:
            return os.fork()
        except OSError as error:
            why = error.errno
    link.send(f"error {why}".encode())
    return -1


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    with contextlib.suppress(ConnectionError):  # the agent was killed
        main()
