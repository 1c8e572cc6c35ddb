"""Forks shims: a process of its own, small and single-threaded, started once by the agent.

The agent has threads (gRPC) and much memory, neither of which forks well; a new interpreter for each shim takes about
15 ms and its memory is not shared. This process has imported what a shim needs, and forks one in about a
millisecond.

Requests come over a SOCK_SEQPACKET socket, answers go back in the same order:

======= ============================================== =============================
        data                                           descriptors
======= ============================================== =============================
request path of the attempt's directory                its lock; the report pipe
answer  pid of the shim, or ``error <errno>``          a pidfd of the shim
======= ============================================== =============================

It ends when the agent does, which closes the socket; the shims go on.
"""

import contextlib
import os
import select
import signal
import socket
import sys

from holdfast_agent import shim

REQUEST_BYTES = 4096


def main() -> None:
    """Serve the socket on descriptor argv[1]; with argv[2], shims die with the agent of that pid."""
    link = socket.socket(fileno=int(sys.argv[1]))
    agent = os.pidfd_open(int(sys.argv[2])) if len(sys.argv) > 2 else None
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
            elif not _serve(link, agent):
                return


def _serve(link: socket.socket, agent: int | None) -> bool:
    path, passed, _, _ = socket.recv_fds(link, REQUEST_BYTES, 2)
    if not path:
        return False
    for fd in passed:
        os.set_inheritable(fd, False)  # neither is the worker's business
    try:
        pid = os.fork()
    except OSError as error:
        link.send(f"error {error.errno}".encode())
        pid = -1
    if pid == 0:
        signal.set_wakeup_fd(-1)
        link.close()
        shim.run(path.decode(), passed[1], agent)
    if pid > 0:
        # Not reaped yet, so that the pid can't be anybody else's.
        pidfd = os.pidfd_open(pid)
        socket.send_fds(link, [str(pid).encode()], [pidfd])
        os.close(pidfd)
    for fd in passed:
        os.close(fd)
    return True


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    with contextlib.suppress(ConnectionError):  # the agent was killed
        main()
