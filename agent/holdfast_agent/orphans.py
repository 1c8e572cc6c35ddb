"""What a killed shim leaves behind: its worker has a death signal, what the worker had started has none."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

from holdfast_agent.readable import readable


async def end(marker: str) -> None:
    """Kill every process that has `marker`, a NAME=VALUE, in its environment, and wait until all are gone.

    Descendants inherit it wherever they went: into a session of their own, or to another parent. Unlike a pid or a
    group, which may be another's by now, nobody else has it.
    """
    while found := await asyncio.to_thread(_having, marker):
        with contextlib.ExitStack() as held:
            for pidfd in found:
                held.callback(os.close, pidfd)
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            for pidfd in found:
                await readable(pidfd)


def _having(marker: str) -> list[int]:
    """A pidfd for each process that has it."""
    wanted = os.fsencode(marker)
    found = []
    for path in Path("/proc").iterdir():
        if not path.name.isdecimal():
            continue
        with contextlib.suppress(OSError):  # ended just now, or another user's
            pidfd = os.pidfd_open(int(path.name))
            # Opened before reading, so that both are of one process.
            if wanted in _environment(path):
                found.append(pidfd)
            else:
                os.close(pidfd)
    return found


def _environment(process: Path) -> list[bytes]:
    try:
        return (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return []
