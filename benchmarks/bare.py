"""The least that a supervisor can be: Popen, pidfd, and start again. The limit that others are measured against.

Usage: python -m benchmarks.bare {rank|gang} N -- COMMAND...
"""

import os
import select
import signal
import socket
import subprocess
import sys


def start(command: list[str], rank: int, world: int, port: int) -> subprocess.Popen[bytes]:
    place = {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return subprocess.Popen(command, env={**os.environ, **place})


def free_port() -> int:
    """One that the gang has not used before: what is left of an attempt must not answer the next."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    scope, world, command = sys.argv[1], int(sys.argv[2]), sys.argv[4:]
    port = free_port()
    workers = {rank: start(command, rank, world, port) for rank in range(world)}
    poller = select.poll()
    ranks: dict[int, int] = {}

    def watch(rank: int) -> None:
        fd = os.pidfd_open(workers[rank].pid)
        ranks[fd] = rank
        poller.register(fd, select.POLLIN)

    for rank in workers:
        watch(rank)
    while workers:
        for fd, _ in poller.poll():
            if fd not in ranks:
                continue  # reaped below, with the gang of another that was in the same poll
            rank = ranks[fd]
            status = workers[rank].wait()
            forget(poller, ranks, fd)
            if status == 0:
                del workers[rank]
                continue
            again = [rank]
            if scope == "gang":
                again = list(workers)
                for other, other_fd in [(r, f) for f, r in ranks.items()]:
                    workers[other].send_signal(signal.SIGTERM)
                    workers[other].wait()
                    forget(poller, ranks, other_fd)
            port = free_port()
            for one in again:
                workers[one] = start(command, one, world, port)
                watch(one)


def forget(poller: "select.poll", ranks: dict[int, int], fd: int) -> None:
    poller.unregister(fd)
    os.close(fd)
    del ranks[fd]


if __name__ == "__main__":
    main()
