"""Facts about this machine."""

import os
import shutil
import socket
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Machine:
    """What a node has."""

    boot_id: str
    cpus: int
    memory_bytes: int
    gpus: int


def look() -> Machine:
    """Find out. Takes a moment where there are GPUs."""
    return Machine(
        boot_id=boot_id(),
        cpus=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpus=_gpus(),
    )


def default_name() -> str:
    """The host name."""
    return socket.gethostname()


def address_towards(target: str) -> str:
    """The address of this machine on its way to a gRPC target; loopback where it needs none, or there is no way."""
    host, colon, port = target.partition(",")[0].rpartition(":")
    if target.startswith("unix:") or not colon or not port.isdecimal():
        return LOOPBACK
    try:
        family, kind, protocol, _, there = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(there)  # of a datagram socket: chooses a route, sends nothing
            return str(probe.getsockname()[0])
    except OSError:
        return LOOPBACK


@cache
def boot_id() -> str:
    """Of the machine: changes when it boots; empty where nobody says."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _gpus() -> int:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    try:
        found = subprocess.run([tool, "--list-gpus"], capture_output=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    return len(found.stdout.splitlines())
