"""The least that a supervisor can be: Popen, pidfd, and start again. The limit that others are measured against.

Usage: python -m benchmarks.bare {rank|gang} N -- COMMAND...
"""

import os
import select
import signal
import subprocess
import sys


def start(command: list[str], rank: int, world: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world)})


def main() -> None:
    scope, world, command = sys.argv[1], int(sys.argv[2]), sys.argv[4:]
    workers = {rank: start(command, rank, world) for rank in range(world)}
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
            for one in again:
                workers[one] = start(command, one, world)
                watch(one)


def forget(poller: "select.poll", ranks: dict[int, int], fd: int) -> None:
    poller.unregister(fd)
    os.close(fd)
    del ranks[fd]


if __name__ == "__main__":
    main()
