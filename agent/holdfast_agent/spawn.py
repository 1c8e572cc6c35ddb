"""The agent's end of the nursery."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from holdfast_agent import nursery
from holdfast_agent.fork_link import ForkLink, SpawnError, Started, ask_for_shim
from holdfast_agent.workdir import Attempt


class Nursery:
    """The nursery process, started anew when it dies. Belongs to one event loop."""

    def __init__(self, *, foreground: bool) -> None:
        self._foreground = foreground
        self._link: ForkLink | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> ForkLink:
        """Start the process; cheap to call when it runs."""
        if self._link is not None:
            return self._link
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
        self._link = ForkLink(ours, self._lost)
        return self._link

    def stop(self) -> None:
        """End the process; shims go on."""
        if self._link is not None:
            self._link.close()

    async def shim(self, attempt: Attempt, lock: int) -> Started:
        """Start the shim of an attempt, hand it the lock, and wait until its worker runs or has failed to.

        Closes `lock`. Raises SpawnError and NurseryLostError.
        """
        try:
            try:
                return await ask_for_shim(self.start(), attempt.path, lock)
            except BrokenPipeError:  # it has died; this request has not reached it
                return await ask_for_shim(self.start(), attempt.path, lock)
        except BrokenPipeError as error:
            raise SpawnError("no process that forks") from error
        finally:
            os.close(lock)

    async def spare(self, plan: Path, fds: list[int]) -> int:
        """Have a preloaded process started. Returns a pidfd of its parent. Raises SpawnError and NurseryLostError."""
        try:
            return await self.start().ask(nursery.SPARE, plan, fds)
        except BrokenPipeError as error:
            raise SpawnError("no process that forks") from error

    def _lost(self) -> None:
        """Let go of a nursery that has died, or that is to end. The next request starts another."""
        assert self._process is not None
        self._link = None
        self._process.kill()  # it ends by itself, but perhaps not now
        self._process.wait()


def signal_shim(pidfd: int, how: signal.Signals) -> None:
    """Tell a shim to stop its worker; see shim.py. One that has ended is no error; one that is stopped goes on."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, how)
        signal.pidfd_send_signal(pidfd, signal.SIGCONT)
