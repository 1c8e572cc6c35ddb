"""TCP ports of loopback for tests that run beside each other.

A port that the kernel gave and that was let go of may be given to another test before the first one listens, or to a
connection that goes out: even to one that goes to that very port, and so meets itself. These are below what the kernel
gives, and each process of pytest-xdist has its own.
"""

import itertools
import os
import socket

FIRST, EACH, SHARES = 10_000, 1_000, 20


def _share():
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % SHARES
    start = FIRST + number * EACH
    ports = itertools.cycle(range(start, start + EACH))
    return itertools.islice(ports, os.getpid() % EACH, None)  # another run of the tests begins elsewhere


_ports = _share()


def free_port():
    """A port that nobody has, and that nobody else is given by chance."""
    for port in itertools.islice(_ports, EACH):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("every port is taken")
