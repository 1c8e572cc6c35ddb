"""What `holdfast doctor` looks at. Each check gives one finding, and changes nothing that stays."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from holdfast.addresses import is_here
from holdfast.cli.late import node_pb2

OK, WARN, FAIL = "ok", "warn", "fail"

OLDEST_PYTHON = (3, 11)
GIB = 2**30
ROOM_FAIL, ROOM_WARN = GIB // 4, 4 * GIB
FSYNCS = 15
FSYNC_FAIL_S, FSYNC_WARN_S = 0.5, 0.03
CLOCK_FAIL_S, CLOCK_WARN_S = 30.0, 1.0
S3_WITHIN_S = 20.0
S3_BYTES = 64 * 1024


class Finding(NamedTuple):
    """What one check found: ok, warn or fail, in a sentence, and what to do."""

    check: str
    state: str
    found: str
    remedy: str = ""


def python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """Whether this Python is one that holdfast runs on."""
    found = f"Python {'.'.join(map(str, version))} at {sys.executable}"
    if version < OLDEST_PYTHON:
        return Finding("python", FAIL, found, "install Python 3.11 or newer, and holdfast into it")
    return Finding("python", OK, found)


def room(place: Path) -> Finding:
    """Whether there is room on the disk of the state directories."""
    usage = shutil.disk_usage(_nearest(place))
    found = f"{usage.free / GIB:.1f} GiB of {usage.total / GIB:.1f} GiB are free below {place}"
    remedy = "free some, or give the coordinator and the agent another --state-dir: logs and checkpoints may go there"
    state = FAIL if usage.free < ROOM_FAIL else WARN if usage.free < ROOM_WARN else OK
    return Finding("disk", state, found, remedy if state != OK else "")


def fsync(place: Path) -> Finding:
    """How long the disk takes to make a write durable: everything that is acknowledged waits for it."""
    times = []
    try:
        with tempfile.TemporaryFile(dir=_nearest(place)) as file:
            for _ in range(FSYNCS):
                file.write(b"\0" * 4096)
                file.flush()
                began = time.perf_counter()
                os.fsync(file.fileno())
                times.append(time.perf_counter() - began)
    except OSError as error:
        return Finding(
            "fsync",
            FAIL,
            f"nothing can be written below {_nearest(place)}: {error.strerror}",
            "make it writable for this user, or choose another --state-dir",
        )
    middle = statistics.median(times)
    found = (
        f"a write below {place} is durable after {middle * 1000:.1f} ms (at most {max(times) * 1000:.1f} ms)"
    )
    state = FAIL if middle > FSYNC_FAIL_S else WARN if middle > FSYNC_WARN_S else OK
    remedy = "put the coordinator's --state-dir on a local disk, best an SSD: every commit waits for it"
    return Finding("fsync", state, found, remedy if state != OK else "")


def port(address: str, *, answers: bool) -> Finding:
    """Whether the coordinator's port is its own, or free for it."""
    if not is_here(address) or address.startswith("unix:"):
        return Finding("port", OK, f"{address} is no port of this machine")
    host, _, number = address.rpartition(":")
    if answers:
        return Finding("port", OK, f"{number} is the coordinator's")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(number)))
        except OSError as error:
            return Finding(
                "port",
                FAIL,
                f"{number} is not free: {error.strerror}",
                f"see who has it with `ss -ltnp sport = :{number}`, or choose another with --listen",
            )
    return Finding("port", OK, f"{number} is free for a coordinator")


def worker_ports() -> Finding:
    """Whether an agent finds ports that it may hold for workers."""
    try:
        from holdfast_agent.ports import FIRST, LAST, Ports
    except ModuleNotFoundError:
        return _no_agent("worker ports")
    ports = Ports()
    try:
        if held := ports.offered():
            return Finding("worker ports", OK, f"ports for MASTER_PORT are to be had, e.g. {held[0]}")
    finally:
        ports.close()
    return Finding(
        "worker ports",
        FAIL,
        f"between {FIRST} and {LAST} no port is to be had that the kernel does not give away itself",
        "narrow net.ipv4.ip_local_port_range, or end what holds so many",
    )


def clock(ahead: timedelta | None) -> Finding:
    """Whether the clocks agree: logs and timelines of several machines are read side by side."""
    if ahead is None:
        return Finding("clock", WARN, "the coordinator does not tell its time", "upgrade the coordinator")
    seconds = ahead.total_seconds()
    off = abs(seconds)
    way = "ahead of" if seconds > 0 else "behind"
    found = f"the coordinator's clock is {off:.2f} s {way} this machine's"
    state = FAIL if off > CLOCK_FAIL_S else WARN if off > CLOCK_WARN_S else OK
    remedy = "have both machines keep time, e.g. `timedatectl set-ntp true`, then start the coordinator again"
    return Finding("clock", state, found, remedy if state != OK else "")


def agents(nodes: list[node_pb2.Node], server: str) -> Finding:
    """Whether there are agents, and all of them heard from."""
    if not nodes:
        return Finding(
            "agents", WARN, "no agent has joined", f"start one with `holdfast agent --coordinator {server}`"
        )
    by_state: dict[int, list[str]] = {}
    for node in nodes:
        by_state.setdefault(node.state, []).append(node.name)
    ready = by_state.get(node_pb2.NODE_STATE_READY, [])
    away = [
        f"{word}: {', '.join(by_state[state])}"
        for state, word in ((node_pb2.NODE_STATE_SUSPECT, "suspect"), (node_pb2.NODE_STATE_LOST, "lost"))
        if state in by_state
    ]
    found = "; ".join([f"{len(ready)} of {len(nodes)} ready", *away])
    if not away:
        return Finding("agents", OK, found)
    remedy = "look at the agents there, and at the network between; `holdfast node list` says since when"
    if node_pb2.NODE_STATE_LOST in by_state:
        remedy += "; `holdfast node forget NODE` when one is gone for good"
    return Finding("agents", WARN if ready else FAIL, found, remedy)


def s3(env: Mapping[str, str]) -> Finding:
    """Write, read and delete a small object where checkpoints would go."""
    done: list[Finding] = []
    trip = threading.Thread(target=lambda: done.append(_round_trip(env)), daemon=True)
    trip.start()
    trip.join(S3_WITHIN_S)
    if done:
        return done[0]
    return Finding(
        "s3",
        FAIL,
        f"no answer within {S3_WITHIN_S:g} s",
        "see that S3_ENDPOINT can be reached from here, and that a proxy does not swallow it",
    )


def _round_trip(env: Mapping[str, str]) -> Finding:
    from holdfast.storage.api import Bytes, StorageError
    from holdfast.storage.places import open_storage, switched

    try:
        uri = switched("", env)
        storage = open_storage(uri, env=env)
    except StorageError as error:
        return Finding("s3", FAIL, str(error), "set it, or unset USE_S3 and S3_BUCKET")
    name, data = f"holdfast-doctor-{secrets.token_hex(8)}", secrets.token_bytes(S3_BYTES)
    began = time.perf_counter()
    try:
        storage.put(name, Bytes(data))
        same = storage.read(name) == data
        storage.delete([name])
    except (OSError, StorageError) as error:
        remedy = (
            "see S3_ENDPOINT, S3_BUCKET and the credentials (AWS_*): all of read, write and delete are needed"
        )
        return Finding("s3", FAIL, f"{uri}: {error}", remedy)
    finally:
        storage.close()
    took = time.perf_counter() - began
    if not same:
        return Finding("s3", FAIL, f"{uri} gave back other bytes than were written", "do not use it")
    return Finding("s3", OK, f"{uri}: 64 KiB written, read and deleted in {took * 1000:.0f} ms")


def cgroups() -> Finding:
    """Whether an agent may give every worker a control group of its own."""
    try:
        from holdfast_agent.groups import AUTO, Groups
    except ModuleNotFoundError:
        return _no_agent("cgroups")
    groups = Groups(secrets.token_hex(6), AUTO, limit_memory=False)
    try:
        if groups.base:
            return Finding("cgroups", OK, f"workers get control groups below {Path(groups.base).parent}")
    finally:
        groups.close()
    return Finding(
        "cgroups",
        WARN,
        "no control group may be made here: a process that leaves its worker's session may outlive it",
        "start the agent as a systemd service with Delegate=yes, or name a delegated group with --cgroup",
    )


def py_spy() -> Finding:
    """Whether an agent can see the stacks of a worker that hangs."""
    try:
        from holdfast_agent.evidence import find_py_spy
    except ModuleNotFoundError:
        return _no_agent("py-spy")
    path = find_py_spy()
    if path is None:
        return Finding(
            "py-spy",
            WARN,
            "is not installed: a hang is told without its stacks",
            "pip install 'holdfast[agent]'",
        )
    try:
        scope = int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text())
    except (OSError, ValueError):
        scope = 0
    if scope and os.geteuid() != 0:
        return Finding(
            "py-spy",
            WARN,
            f"may not look into workers: kernel.yama.ptrace_scope is {scope}",
            "sysctl kernel.yama.ptrace_scope=0, or give the agent CAP_SYS_PTRACE",
        )
    return Finding("py-spy", OK, path)


def _no_agent(check: str) -> Finding:
    return Finding(check, OK, "no agent is installed here; one would need it: pip install 'holdfast[agent]'")


def _nearest(place: Path) -> Path:
    """The place, or the nearest directory above it that is there."""
    place = place.absolute()
    return next(path for path in (place, *place.parents) if path.is_dir())
