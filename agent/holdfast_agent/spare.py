"""The parent of a preloaded process (zygote.py): starts it, and ends it when nobody wants it any more.

It is forked by the nursery, like a shim. As long as its child is a zygote it does nothing but wait. Of a spare it
becomes the shim, at the moment that the agent says of which attempt; until then the child is nobody's worker.

Over the socket to the agent go:

=================== ============================================================ =====================
                    data                                                         descriptors
=================== ============================================================ =====================
to the agent        ``{"pid", "why"}``: imported; why it may not fork, or empty
to the agent        ``{"failed"}``: it can't be, and why; then the end
to the agent        ``{"died"}``: what it said last; then the end
from the agent      path of an attempt's directory                               its lock; report pipe
=================== ============================================================ =====================

The plan is a file, for its environment may hold secrets: ``argv``, ``env`` and ``cwd`` of the process, ``probe`` (a
command that starts alike and runs nothing), ``runs`` (what of argv names the program), ``preload``, ``spare``
(why it is not to fork, or empty), ``agent`` (the pid to die with, or 0) and ``cgroup`` (see cgroups.py).
"""

import contextlib
import json
import os
import select
import signal
import socket
from typing import Any, NoReturn

from holdfast_agent import cgroups, shim
from holdfast_agent.log_file import CHUNK

HOOK = os.path.join(os.path.dirname(os.path.abspath(__file__)), "hook")  # noqa: PTH100, PTH118, PTH120
TOLD, ROOM = "HOLDFAST_ZYGOTE", "HOLDFAST_ROOM"
ROOM_BYTES = 8192
"""For what a worker's environment has beyond the zygote's; see zygote.py."""
OLDEST_PYTHON = (3, 11)
PROBE_S = 30.0
TAIL_BYTES = 4096


def run(path: str, control: socket.socket, forks: int, agent: int | None) -> NoReturn:
    """Start the process that the plan at `path` describes, and see to it. `agent` is as a shim has it."""
    shim.set_name("holdfast-spare")
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            plan = json.load(file)
        try:
            _Spare(plan, control, forks, agent).run()
        finally:
            shim.end_descendants()
            cgroups.end(plan["cgroup"])
    except OSError as error:
        _tell(control, {"failed": f"it could not be started: {error.strerror}"})
    finally:  # whatever has happened: nothing may unwind into the nursery
        os._exit(0)


class _Spare:
    def __init__(self, plan: dict[str, Any], control: socket.socket, forks: int, agent: int | None) -> None:
        self._plan = plan
        self._control = control
        self._forks = forks
        self._agent = agent
        self._link, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = 0
        self._forking = False
        self._errors = -1

    def run(self) -> None:
        """Return when it is to end, with all that it has started."""
        why = self._unreachable()
        if why:
            _tell(self._control, {"failed": why})
            return
        signals = self._catch_signals()
        self._start()
        self._link.send(
            json.dumps({n: self._plan[n] for n in ("runs", "preload", "spare", "agent")}).encode()
        )
        poller = select.poll()
        for fd in (self._control, self._link, signals):
            poller.register(fd, select.POLLIN)
        while True:
            for fd, _ in poller.poll():
                if fd == signals:
                    os.read(signals, CHUNK)
                    if not self._reap():
                        return
                elif fd == self._control.fileno():
                    self._obey()
                    return
                else:
                    poller.unregister(self._link)
                    self._pass_on(_receive(self._link))

    def _unreachable(self) -> str:
        """Whether a command that starts like this one comes by the hook: if not, ours would run its program."""
        readable, writable = os.pipe2(os.O_CLOEXEC)
        pid = self._exec(self._plan["probe"], "probe", [writable], [1, 2])
        os.close(writable)
        poller = select.poll()
        poller.register(readable, select.POLLIN)
        said = os.read(readable, shim.RECORD_BYTES).decode() if poller.poll(PROBE_S * 1000) else ""
        os.close(readable)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if not said:
            return f"{self._plan['argv'][0]} can't be preloaded: it does not import sitecustomize from PYTHONPATH"
        if tuple(map(int, said.split("."))) < OLDEST_PYTHON:
            return f"its Python is {said}, and preloading needs {'.'.join(map(str, OLDEST_PYTHON))} or newer"
        return ""

    def _start(self) -> None:
        """Start the process. Its outputs are pipes, as a worker's, so that Python sets up its streams for such."""
        self._errors, error_end = os.pipe2(os.O_CLOEXEC)
        pipes = [error_end, error_end]
        self._pid = self._exec(self._plan["argv"], "preload", [self._theirs.fileno(), self._forks], pipes)
        os.close(error_end)
        self._theirs.close()
        os.close(self._forks)

    def _exec(self, argv: list[str], what: str, passed: list[int], outputs: list[int]) -> int:
        parent = os.getpid()
        pid, groups = self._fork()
        if pid == 0:
            try:
                cgroups.enter(groups)
                shim.leave(parent)
                fds = [os.dup(fd) for fd in passed]
                for fd in fds:
                    os.set_inheritable(fd, True)
                told = f"{parent} {what} {' '.join(map(str, fds))}"
                if not shim.settle_in(self._plan, outputs):
                    shim.exec_program(argv, _environment(self._plan["env"], told))
            finally:
                os._exit(127)
        return pid

    def _fork(self) -> tuple[int, list[str]]:
        """See `cgroups.fork_into`. Outside of its groups, where they can't be had, it is as good."""
        try:
            cgroups.make(self._plan["cgroup"])
            return cgroups.fork_into(self._plan["cgroup"], exec_follows=True)
        except OSError:
            return os.fork(), []

    @staticmethod
    def _catch_signals() -> int:
        readable, writable = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writable)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        return readable

    def _reap(self) -> bool:
        """Reap who has ended; False when it is the process itself."""
        while True:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid == self._pid:
                last = os.read(self._errors, TAIL_BYTES).decode(errors="replace").strip().splitlines()
                self._pass_on(_receive(self._link, wait=False))
                _tell(self._control, {"died": last[-1] if last else "without a word"})
                return False
            if pid == 0:
                return True

    def _pass_on(self, said: dict[str, Any]) -> None:
        """Tell the agent how the imports went."""
        if "why" in said:
            if not said["why"] and shim.children(os.getpid()) != [self._pid]:
                said["why"] = "the imports have left a process behind"
            if not said["why"]:
                self._forking = True
                shim.set_subreaper(wanted=False)  # the shims that it forks go on without it and us
            said["pid"] = self._pid
            with contextlib.suppress(ConnectionError):
                self._link.send(said["why"].encode() or b"-")
        if said:
            _tell(self._control, said)

    def _obey(self) -> None:
        """Be the shim of an attempt. Returns when the agent is gone, or wants us gone."""
        try:
            path, passed, _, _ = socket.recv_fds(self._control, shim.RECORD_BYTES * 2, 2)
        except ConnectionError:
            return
        if not path:
            if self._forking:
                self._await_end()
            return
        for fd in passed:
            os.set_inheritable(fd, False)
        os.close(self._errors)
        self._control.close()
        shim.set_subreaper(wanted=True)
        spare = shim.Spare(self._pid, self._link, self._plan["cgroup"])
        shim.run(os.fsdecode(path), passed[1], self._agent, spare=spare)

    def _await_end(self) -> None:
        """Let a zygote end, which has been told to as well: it sees to the child that it has forked ahead."""
        pidfd = os.pidfd_open(self._pid)  # not reaped yet
        select.select([pidfd], [], [], shim.GONE_WITHIN_S)
        os.close(pidfd)


def _environment(env: dict[str, str], told: str) -> dict[str, str]:
    paths = [HOOK, env["PYTHONPATH"]] if env.get("PYTHONPATH") else [HOOK]
    return {**env, "PYTHONPATH": os.pathsep.join(paths), TOLD: told, ROOM: "." * ROOM_BYTES}


def _receive(link: socket.socket, *, wait: bool = True) -> dict[str, Any]:
    try:
        said = link.recv(CHUNK, 0 if wait else socket.MSG_DONTWAIT)
    except OSError:
        return {}
    found: dict[str, Any] = json.loads(said) if said else {}
    return found


def _tell(control: socket.socket, what: dict[str, Any]) -> None:
    try:
        control.send(json.dumps(what).encode())
    except OSError:
        return  # the agent is gone
