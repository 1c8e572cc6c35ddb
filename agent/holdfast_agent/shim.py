"""One small process a worker: its parent, its log, and the witness of its end.

A shim outlives the agent, so that the agent can be killed and upgraded while workers run (P4). It lives as long as its
worker and everything that its worker started: being a subreaper, it inherits what was double-forked or put into a
session of its own, and it ends none of it alive (P8).

It is forked by the nursery, so that it costs a fork and no interpreter; what is imported here takes the standard
library alone. Its worker is forked and exec'd; or, in a shim that a zygote forked, is a fork that runs the program in
the zygote's own interpreter; or is a spare that has been exec'd before, and is told now what it is.

=========  ================================================================================
signal     meaning to a shim
=========  ================================================================================
SIGTERM    stop: SIGTERM to the worker's process group; after the grace, SIGKILL to the tree
SIGUSR1    kill: SIGKILL to the tree at once
SIGUSR2    stop, as SIGTERM does, with the grace of those who have to go because another rank died
=========  ================================================================================
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

from holdfast_agent import cgroups
from holdfast_agent.log_file import CHUNK, STDERR, STDOUT, WorkerLogs

RECORD_BYTES = 4096
START, SHIM, EXIT = "start.json", "shim.json", "exit.json"
EXIT_TO_COME = f".{EXIT}"
"""While it is there, the attempt has begun, and its end is not recorded."""
LOG_BYTES = 2**30
"""Kept of what a worker writes, where nobody says how much."""
LITTLE = CHUNK // 4
GATHER_MS = 2
"""After so few bytes it waits for more, so that a worker's every line is no work for all that read them."""
ORPHAN_GRACE_S = 3.0
"""For workers of a foreground agent that is gone."""
GONE_WITHIN_S = 1.0
"""How long a process that is told to end is waited for."""
LONELY_LOOK_S = 60.0
"""How often a shim that is not to be alone for ever looks whether there is an agent."""
_NOWHERE: dict[str, Any] = {"dirs": [], "kill": "", "memory": "", "own": False, "limit": 0}

_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36
CAUGHT = (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
"""Signals whose handlers a shim changes."""
_RESETTABLE = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
_prctl = ctypes.CDLL(None, use_errno=True).prctl

Hatch: TypeAlias = Callable[[dict[str, Any], list[int], int, int], NoReturn]
"""Called in a worker that was just forked: what to start, its two outputs, where to say what failed, its parent."""


def run(
    directory: str,
    report: int,
    agent: int | None,
    *,
    hatch: Hatch | None = None,
    spare: "Spare | None" = None,
) -> NoReturn:
    """Be the shim of the attempt in `directory`.

    `report` is a pipe that learns the worker's pid and start time, and ends when the worker's end is recorded. `agent`
    is a pidfd of the agent to die with, if any. The lock of the directory is held by a descriptor that was inherited,
    and ends with this process. The worker is exec'd, unless there is a `spare`, or `hatch` makes one of a fork:
    whatever that raises is the worker's own.
    """
    set_name("holdfast-shim")
    found = _Shim(directory, report, agent, hatch or _exec, spare)
    try:
        found.run()
        os._exit(0)
    except BaseException:  # nothing may unwind into the nursery, whose fork this is
        if found.hatching:
            raise
        with open(os.path.join(directory, "shim.log"), "w") as file:  # noqa: PTH118, PTH123
            traceback.print_exc(file=file)
        os._exit(1)


def detach() -> None:
    """In a fork of a nursery or a zygote: have a session of one's own, nobody's output, and all orphans from below."""
    os.setsid()
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in range(3):
        os.dup2(nothing, fd)  # whoever reads what the agent prints must not wait for its workers
    set_subreaper(wanted=True)


def set_subreaper(*, wanted: bool) -> None:
    """Inherit the orphans among this process's descendants, or no more."""
    _prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


def die_with_parent(*, wanted: bool) -> None:
    """Be killed when this process's parent has ended, also while stopped; or no more."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL if wanted else 0, 0, 0, 0)


def set_name(name: str) -> None:
    """Set the name that ps shows."""
    _prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


class Spare:
    """A process that was started to become a worker, the socket over which it is told which, and where it waits."""

    def __init__(self, pid: int, link: socket.socket, place: dict[str, Any]) -> None:
        self.pid = pid
        self.link = link
        self.place = place


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123  pathlib is a slow import
            return int(file.read().rpartition(b")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return 0


class _Record:
    """A JSON file with a name to come: it has its space on disk already, to which it is filled, and appears whole.

    Set aside before the worker runs, so that a disk that fills up can't lose what it is for.
    """

    def __init__(self, directory: str, name: str) -> None:
        self._path = os.path.join(directory, name)  # noqa: PTH118
        self._hidden = os.path.join(directory, f".{name}")  # noqa: PTH118
        self._fd = os.open(self._hidden, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.posix_fallocate(self._fd, 0, RECORD_BYTES)

    def write(self, content: dict[str, Any]) -> None:
        os.pwrite(self._fd, json.dumps(content).encode().ljust(RECORD_BYTES), 0)
        os.rename(self._hidden, self._path)  # noqa: PTH104


class _Shim:
    def __init__(
        self, directory: str, report: int, agent: int | None, hatch: Hatch, spare: Spare | None
    ) -> None:
        self._directory = directory
        self._report = report
        self._agent = agent
        self._hatch = hatch
        self._spare = spare
        self.hatching = False
        """This process is not the shim, but its worker."""
        self._pid = 0
        self._status: int | None = None
        self._kill_at: float | None = None
        self._dropped = self._moved = 0
        self._pipes: dict[int, str] = {}
        """The log that each ends in."""
        self._killed = False
        self._place = _NOWHERE
        self._kills_before = 0
        self._memory: dict[str, Any] = {}
        self._alone = _Alone("", 0.0)

    def run(self) -> None:
        signals = self._catch_signals()
        with open(self._path(START), "rb") as file:  # noqa: PTH123
            start = json.load(file)
        self._grace = start["grace_ms"] / 1000
        self._restart_grace = start.get("restart_grace_ms", start["grace_ms"]) / 1000
        self._place = start.get("cgroup") or _NOWHERE
        self._alone = _Alone(start.get("agent_lock", ""), start.get("orphaned_after_s", 0))
        try:
            self._logs = WorkerLogs(self._directory, start.get("log_bytes", LOG_BYTES))
            self._make_groups()
            started, ended = _Record(self._directory, SHIM), _Record(self._directory, EXIT)
            failed = self._spawn(start)
        except OSError as error:
            cgroups.end(self._place)
            self._tell_agent(f"error {error.errno}")
            os._exit(1)
        if failed:
            self._end_descendants()
            self._note_end(ended, {"code": -1, "signal": 0, "failed": failed})
            return
        self._note_start(started)
        self._watch(signals)
        ended_ns = time.monotonic_ns()
        self._end_descendants()
        for pipe in list(self._pipes):
            self._pump(pipe, last=True)
        assert self._status is not None
        code = os.waitstatus_to_exitcode(self._status)
        how = {"code": code, "signal": 0} if code >= 0 else {"code": -1, "signal": -code}
        self._note_end(ended, how | {"ended_ns": ended_ns})

    def _make_groups(self) -> None:
        """Make the attempt's control groups. Where they can't be made the worker is our descendant all the same."""
        try:
            cgroups.make(self._place)
        except OSError:
            if self._place["limit"]:
                raise
            self._place = _NOWHERE
        self._kills_before = cgroups.oom_kills(self._place["memory"])

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)  # noqa: PTH118

    @staticmethod
    def _catch_signals() -> int:
        """Have signals written to a pipe as they come, so that one poll waits for everything."""
        readable, writable = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writable)
        for number in CAUGHT:
            ignored = number in (signal.SIGINT, signal.SIGHUP)
            signal.signal(number, signal.SIG_IGN if ignored else lambda _number, _frame: None)
        return readable

    def _spawn(self, start: dict[str, Any]) -> dict[str, Any] | None:
        """Start the worker. Returns what failed, when its program can't be run at all."""
        ends = []
        for name in (STDOUT, STDERR):
            readable, writable = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(readable, False)
            self._pipes[readable] = name
            ends.append(writable)
        failures = self._adopt_spare(self._spare, ends) if self._spare else self._fork(start, ends)
        for fd in ends:
            os.close(fd)
        try:
            message = os.read(failures, CHUNK)  # ends when the worker is its program, or is dead
        except ConnectionResetError:
            message = b""
        os.close(failures)
        if not message:
            return None
        os.waitpid(self._pid, 0)
        failed: dict[str, Any] = json.loads(message)
        return failed

    def _fork(self, start: dict[str, Any], ends: list[int]) -> int:
        """Fork the worker. Returns where it says what failed."""
        failures, failing = os.pipe2(os.O_CLOEXEC)
        shim = os.getpid()
        self._pid, groups = cgroups.fork_into(self._place, exec_follows=self._hatch is _exec)
        if self._pid == 0:
            self.hatching = True
            cgroups.enter(groups)
            self._hatch(start, ends, failing, shim)
        os.close(failing)
        return failures

    def _adopt_spare(self, spare: Spare, ends: list[int]) -> int:
        """Tell the spare who it is. Returns where it says what failed."""
        self._pid = spare.pid
        self._take_in()
        cgroups.end(spare.place)
        with contextlib.suppress(ConnectionError):  # it has just died, which is seen as any worker's death
            socket.send_fds(spare.link, [os.fsencode(self._directory)], ends)
        return spare.link.detach()

    def _take_in(self) -> None:
        """Move what runs already into the attempt's groups: the spare, and what its imports have left behind."""
        if not self._place["dirs"]:
            return
        found = children(os.getpid())
        for pid in found:  # what one starts after it was moved is in the groups by itself
            cgroups.enter(self._place["dirs"], pid)
            found += children(pid)

    def _note_start(self, record: _Record) -> None:
        shim, worker_start = os.getpid(), start_time(self._pid)
        started = {
            "pid": shim,
            "start_time": start_time(shim),
            "worker_pid": self._pid,
            "worker_start_time": worker_start,
        }
        record.write(started)
        self._tell_agent(f"started {self._pid} {worker_start}")

    def _tell_agent(self, what: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # the agent is gone; its successor reads the files
            os.write(self._report, what.encode())

    def _watch(self, signals: int) -> None:
        """Move output and obey signals until the worker itself is gone."""
        poller = select.poll()
        waking = select.poll()
        for fd in (signals, *self._pipes):
            poller.register(fd, select.POLLIN)
        waking.register(signals, select.POLLIN)
        if self._agent is not None:
            poller.register(self._agent, select.POLLIN)
        self._reap()  # a spare may have ended before its signal was heard here
        while self._status is None:
            moved = self._moved
            for fd, _ in poller.poll(self._until_due()):
                if fd == signals:
                    self._obey(os.read(signals, CHUNK))
                elif fd == self._agent:
                    poller.unregister(fd)
                    self._stop(min(self._grace, ORPHAN_GRACE_S))
                elif not self._pump(fd):
                    poller.unregister(fd)
            if self._kill_at is not None and time.monotonic() >= self._kill_at:
                self._kill()
            if self._alone.for_too_long():
                self._stop(self._grace)
            if 0 < self._moved - moved < LITTLE:
                # Lines that come one by one go on together. What a signal means is not kept waiting.
                waking.poll(GATHER_MS)

    def _until_due(self) -> float | None:
        """Milliseconds until there is something to do though nothing happens; None: never."""
        due = [at for at in (self._kill_at, self._alone.look_at) if at is not None]
        return max(0.0, (min(due) - time.monotonic()) * 1000) + 1 if due else None

    def _obey(self, numbers: bytes) -> None:
        if signal.SIGUSR1 in numbers:
            self._kill()
        elif signal.SIGTERM in numbers:
            self._stop(self._grace)
        elif signal.SIGUSR2 in numbers:
            self._stop(self._restart_grace)
        self._reap()

    def _stop(self, grace: float) -> None:
        kill_at = time.monotonic() + grace
        if self._kill_at is None or kill_at < self._kill_at:
            self._kill_at = kill_at
        self._signal_group(signal.SIGTERM)

    def _kill(self) -> None:
        self._kill_at = None
        self._killed = True
        self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: int) -> None:
        if self._status is None:  # it is not reaped yet, so that its pid and its group are still its own
            with contextlib.suppress(PermissionError):  # it has become another user's
                os.killpg(self._pid, number)

    def _reap(self) -> None:
        """Reap whoever has ended; remember how the worker did."""
        while self._status is None:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._pid:
                self._status = status

    def _pump(self, pipe: int, *, last: bool = False) -> bool:
        """Move what is in a pipe to its log; False when nobody holds the other end any more.

        The last time, all that the worker left in it. Who became another user, and was not killed, may write for ever.
        """
        most = self._moved + fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)
        while True:
            try:
                data = os.read(pipe, CHUNK)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._moved += len(data)
            self._dropped += self._logs.append(
                self._pipes[pipe], data
            )  # it costs log lines, never the worker
            if not last or self._moved >= most:
                return True

    def _end_descendants(self) -> None:
        """Kill and reap everything that the worker left behind, and remove its groups."""
        kills = cgroups.oom_kills(self._place["memory"])
        self._memory = {
            "kills_before": self._kills_before,
            "kills": kills,
            "own": self._place["own"],
            "group": self._place["memory"],
            "limit": cgroups.memory_limit(self._place["memory"]) if kills > self._kills_before else 0,
        }
        if self._place["kill"]:
            cgroups.kill(self._place["kill"])
        end_descendants()
        cgroups.end(self._place)

    def _note_end(self, record: _Record, how: dict[str, Any]) -> None:
        said = {
            "at_ms": time.time_ns() // 1_000_000,
            "dropped_bytes": self._dropped,
            "disk_full": self._logs.full,
            "killed": self._killed,
            "alone_s": self._alone.ended_after_s,
            "memory": self._memory,
        }
        record.write(how | said)
        os.close(self._report)  # which the agent sees before this process is gone


class _Alone:
    """For how long there has been no agent: nobody holds the lock of its state directory.

    Looking costs two system calls a minute. An agent that starts while one looks tries again.
    """

    def __init__(self, lock: str, limit_s: float) -> None:
        self._lock = lock
        self._limit_s = limit_s if lock else 0
        self._since: float | None = None
        self.look_at: float | None = time.monotonic() + self._pause() if self._limit_s else None
        self.ended_after_s = 0

    def _pause(self) -> float:
        return min(LONELY_LOOK_S, self._limit_s / 4)

    def for_too_long(self) -> bool:
        """Look, if it is time to; True once, when the limit is reached."""
        now = time.monotonic()
        if self.look_at is None or now < self.look_at:
            return False
        self.look_at = now + self._pause()
        if not self._is_free():
            self._since = None
            return False
        self._since = now if self._since is None else self._since
        if now - self._since < self._limit_s:
            return False
        self.look_at, self.ended_after_s = None, max(1, round(now - self._since))
        return True

    def _is_free(self) -> bool:
        try:
            fd = os.open(self._lock, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True  # the whole state directory is gone, and no agent will come back to it
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        return True


def end_descendants() -> None:
    """Kill and reap everything that a subreaper's child left behind; it is our child by now, or its child is soon."""
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        killed = [pid for pid in children(os.getpid()) if _kill(pid)]
        if not killed:
            return  # what is left has become another user's
        os.waitpid(-1, 0)


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except PermissionError:
        return False
    return True


def leave(parent: int) -> None:
    """In a child that is to be a worker: lead a session, and die with `parent`."""
    os.setsid()
    die_with_parent(wanted=True)
    if os.getppid() != parent:
        os._exit(1)  # it died before it could be watched
    signal.set_wakeup_fd(-1)


def settle_in(start: dict[str, Any], outputs: list[int]) -> bytes:
    """Write to `outputs` and work where `start` says. Returns what failed; empty when nothing did."""
    os.dup2(outputs[0], 1)
    os.dup2(outputs[1], 2)
    try:
        os.chdir(start["cwd"])
    except (OSError, ValueError) as error:
        return failure(error, start["cwd"], cwd=True)
    return b""


def failure(error: OSError | ValueError, what: str, *, cwd: bool, **more: str) -> bytes:
    """Why a worker can't be started, as it says it to its shim."""
    why = error.errno if isinstance(error, OSError) else errno.EINVAL  # a null byte in an argument
    return json.dumps({"errno": why, "what": what, "cwd": cwd, **more}).encode()


def exec_program(argv: list[str], env: dict[str, str]) -> bytes:
    """Exec, with signals as a shell would leave them. Returns what failed."""
    for number in _RESETTABLE:  # exec would hand on what is ignored: by Python, by us, or under nohup
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(argv[0], argv, env)  # noqa: S606  argv, as the user gave it
    except (OSError, ValueError) as error:
        return failure(error, argv[0], cwd=False, **_interpreter(argv[0], env))


def _interpreter(program: str, env: dict[str, str]) -> dict[str, str]:
    """What the first line of a script names that is there: when it can't be run it may be that which is missing."""
    directories = [""] if "/" in program else os.get_exec_path(env)
    for directory in directories:
        with contextlib.suppress(OSError, ValueError), open(os.path.join(directory, program), "rb") as file:  # noqa: PTH118, PTH123
            first = file.readline(256)
            if first.startswith(b"#!"):
                return {"interpreter": first[2:].rstrip(b"\n").strip(b" \t").decode(errors="replace")}
    return {}


def _exec(start: dict[str, Any], outputs: list[int], failing: int, parent: int) -> NoReturn:
    """In the forked child: be the worker, or say why not."""
    with contextlib.suppress(BaseException):
        leave(parent)
        failed = settle_in(start, outputs) or exec_program(start["argv"], start["env"])
        os.write(failing, failed)
    os._exit(127)


def children(parent: int) -> list[int]:
    """The pids of its children."""
    found = []
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                    if int(file.read().rpartition(b")")[2].split()[1]) == parent:
                        found.append(int(name))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found
