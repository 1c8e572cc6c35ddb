"""The agent as a process: the real core, and a shell that does to a simulated machine what agent.py does to a real one.

It can be killed between any two of its actions, stopped (SIGSTOP) and continued, and its machine can reboot.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from holdfast_agent import asks, core, hangs
from holdfast_agent.core import Ended, Key, Phase
from holdfast_agent.hang_reports import Report, Reports, watched
from holdfast_coordinator.core.effects import (
    AckCommit,
    AskStop,
    ForgetJob,
    NoteHang,
    NoteReport,
    RefuseShard,
    ReleaseWorkers,
    StartWorkers,
    StopWorkers,
    Welcome,
)
from holdfast_coordinator.core.events import Found
from holdfast_coordinator.core.jobspec import HangAction, JobSpec
from holdfast_coordinator.core.model import Exit, Progress
from holdfast_coordinator.core.model import Key as CoordinatorKey
from tests.sim.checks import Checks
from tests.sim.coordinator import Coordinator
from tests.sim.disk import AttemptDir, Checkpoints, NodeDisk
from tests.sim.link import DOWN, UP, Network, Stream
from tests.sim.worker import MS, Order, Process
from tests.sim.world import World

BEAT_MS = 1_000
LOOK_MS = 1_000
PORTS = 4


class Agent:
    """A machine and every life of the agent on it. Its processes and its disk outlive the agent."""

    def __init__(
        self,
        name: str,
        world: World,
        network: Network,
        coordinator: Coordinator,
        checkpoints: Checkpoints,
        checks: Checks,
        slots: int,
        *,
        in_pod: bool = False,
    ) -> None:
        self.name = name
        self.slots = slots
        self.in_pod = in_pod
        """Its workers end with it."""
        self.disk = NodeDisk()
        self.processes: dict[Key, Process] = {}
        self.core = core.AgentState()
        self.frozen = False
        self.has_notice = False
        self.die_in = -1
        """How many more actions this life will carry out; -1: no such limit."""
        self._world = world
        self._network = network
        self._coordinator = coordinator
        self._checkpoints = checkpoints
        self._checks = checks
        self._life = 0
        self._boot = 1
        self._pids = 0
        self._stream: Stream | None = None
        self._session = ""
        self._epoch = 0
        self._failures = 0
        self._opened = 0
        self._ports: list[int] = []
        self._backlog: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._hangs, self._watch = Reports(), hangs.Watch(self._world.now * MS)
        self._looked: set[Key] = set()
        self._machine_frozen_ms = 0
        self._held: list[Process] = []

    # The process and the machine

    @property
    def up(self) -> bool:
        return self._life % 2 == 1

    @property
    def life(self) -> int:
        """Which life of the agent this is."""
        return self._life

    @property
    def connected(self) -> bool:
        return self.up and self.core.connected and not self.frozen

    def start(self) -> None:
        if self.up:
            return
        self._life += 1
        self._backlog, self.frozen, self.die_in, self.has_notice = [], False, -1, False
        self._world.note(self.name, "agent starts")
        self._ports = [self._new_pid() + 20_000 for _ in range(PORTS)]
        self.core = core.recover(*self._recover())
        self._failures = 0
        self._hangs, self._watch, self._looked = Reports(), hangs.Watch(self._world.now * MS), set()
        self._connect(self._life)
        self.call(LOOK_MS, self._look)
        for process in self.processes.values():
            self._world.at(self._world.between(5, 500), process.connect, self._life)

    def kill(self) -> None:
        if not self.up:
            return
        self.thaw_machine()
        if not self.up:
            return  # it died of what it had yet to do
        self._life += 1
        self._world.note(self.name, "agent killed")
        if self._stream is not None:
            self._stream.snap()
        self._stream = None
        if self.in_pod:
            self._end_processes()

    def freeze(self) -> None:
        if self.up and not self.frozen:
            self._world.note(self.name, "agent stopped")
            self.frozen = True

    def thaw(self) -> None:
        self.thaw_machine()
        if self.up and self.frozen:
            self._world.note(self.name, "agent continued")
            self.frozen = False
            backlog, self._backlog = self._backlog, []
            for call, args in backlog:
                self._call(self._life, call, *args)

    def freeze_machine(self) -> None:
        """Everything on it stands still, and its clocks go on: a virtual machine that is moved."""
        if self.up and not self.frozen:
            self.freeze()
            self._machine_frozen_ms = self._world.now
            self._held = [process for process in self.processes.values() if not process.stalled]
            for process in self._held:
                process.stall()

    def thaw_machine(self) -> None:
        """And goes on, the agent first."""
        if self._machine_frozen_ms:
            stood, self._machine_frozen_ms = self._world.now - self._machine_frozen_ms, 0
            for process in self._held:
                process.go_on(stood)
            self.thaw()

    def reboot(self) -> None:
        """Everything that runs on the machine is gone, and some of what was not fsynced."""
        self.kill()
        self._world.note(self.name, "machine goes down")
        self._boot += 1
        self._end_processes()
        self.disk.lose_power(self._world)

    def _end_processes(self) -> None:
        for process in self.processes.values():
            process.vanish()
        self.processes = {}
        self._checks.rebooted(self.name)

    def call(self, delay_ms: int, what: Callable[..., None], *args: Any) -> None:
        """Have something done by this life of the agent, unless it ends before."""
        self._world.at(delay_ms, self._call, self._life, what, *args)

    def _call(self, life: int, what: Callable[..., None], *args: Any) -> None:
        if life != self._life:
            return
        if self.frozen:
            self._backlog.append((what, args))
        else:
            what(*args)

    def _recover(self) -> tuple[list[core.Worker], dict[tuple[str, int], int]]:
        workers: list[core.Worker] = []
        fences: dict[tuple[str, int], int] = {}
        for key in sorted(self.disk.attempts):
            found = self.disk.attempts[key]
            process = self.processes.get(key)
            if found.shim is None and found.exit is None and process is None:
                del self.disk.attempts[key]  # its start never began
                continue
            rank = (key.job_id, key.rank)
            fences[rank] = max(fences.get(rank, 0), key.attempt)
            if found.released:
                continue
            if process is None:
                workers.append(core.Worker(key, Phase.ENDED, ended=self._how_it_ended(key)))
            elif found.shim is None:
                workers.append(core.Worker(key, Phase.STARTING))
            else:
                workers.append(core.Worker(key, Phase.RUNNING, *found.shim))
        return workers, fences

    # The session

    def _connect(self, *_: int) -> None:
        self._epoch, self._session = 0, ""
        if not self._coordinator.up:
            self._again()
            return
        stream = self._stream = self._network.open(self.name)

        def hears(message: Any) -> None:
            self.call(0, self._hear, stream, message)

        stream.listen(DOWN, hears, lambda: self.call(0, self._over, stream))
        self._coordinator.accept(stream)
        inventory = tuple(self._found(worker) for worker in core.inventory(self.core))
        self._opened += 1
        hello = (
            self._opened,
            self.name,
            f"i-{self.name}",
            f"boot-{self._boot}",
            self.slots,
            inventory,
            tuple(self._ports),
            self.core.asked.notice,
            self.in_pod,
        )
        stream.send(UP, hello)

    def _over(self, stream: Stream) -> None:
        if stream is not self._stream:
            return
        stream.close(UP)
        self._stream = None
        self._failures = 0 if self._epoch else self._failures + 1
        self.dispatch(core.StreamLost())
        self._again()

    def _again(self) -> None:
        self._failures += 1
        self.call(self._world.between(20, min(2_000, 50 << min(self._failures, 6))), self._connect)

    def _hear(self, stream: Stream, message: tuple[int, str, Any, int]) -> None:
        if stream is not self._stream:
            return
        epoch, self._session, command, pace = message
        if isinstance(command, Welcome) and not self._epoch:
            self._epoch = epoch
            self.call(pace, self._beat, stream)
        if isinstance(command, NoteHang):
            self._noted(epoch, command)
            return
        self.dispatch(self._event(epoch, command))
        if isinstance(command, Welcome):
            self._tell_hangs(self._hangs.welcomed(self.core))

    # Hangs

    def _look(self) -> None:
        """What hang_watch.py does."""
        there = {key: p for key, p in self.processes.items() if watched(self.core, key)}
        seen = {
            key: (policy, process.seen())
            for key, process in there.items()
            if (policy := _hang_policy(process.order.spec)) is not None
        }
        before = {key: self.disk.attempts[key].hang for key in seen.keys() - self._looked}
        self._looked = set(seen)
        for verdict in hangs.look(self._watch, seen, self._world.now * MS, before):
            if isinstance(verdict, hangs.Hung):
                self.call(self._a_while(), self._hung, verdict)
            else:
                self._moved(verdict)
        self.call(LOOK_MS, self._look)

    def _hung(self, verdict: hangs.Hung) -> None:
        """Evidence is taken: tell it, unless it is over."""
        process = self.processes.get(verdict.key)
        still = hangs.still(self._watch, verdict, process.seen()) if process is not None else None
        if process is not None and still is not None and verdict.key in self.disk.attempts:
            self._world.note(self.name, f"{verdict.key} hangs in {verdict.section}")
            self._checks.hung(process, verdict)
            self.disk.attempts[verdict.key].hang = still
            self._tell_hangs(
                self._hangs.notice(self.core, Report(verdict.key, verdict.since_ns, False, verdict))
            )

    def _moved(self, verdict: hangs.Moved) -> None:
        self._tell_hangs(self._hangs.notice(self.core, Report(verdict.key, verdict.since_ns, True, verdict)))

    def _noted(self, epoch: int, note: NoteHang) -> None:
        key = _key(note.key)
        if epoch < self.core.epoch or not self._hangs.noted(key, note.since_ns, over=note.over):
            return
        if note.over and key in self.disk.attempts:
            self.disk.attempts[key].hang = None

    def _tell_hangs(self, reports: list[Report]) -> None:
        for report in reports:
            self._say("hung", report)

    @property
    def hangs_held(self) -> dict[Key, Report]:
        return self._hangs.held

    def late(self, message: tuple[int, str, Any, int]) -> None:
        """A command of a leader that is gone arrives after all."""
        epoch, _, command, _ = message
        if not self.connected:
            self._world.at(1_000, self.late, message)
        elif epoch < self._epoch:
            self._world.note(self.name, f"hears {type(command).__name__} of epoch {epoch}")
            if isinstance(command, NoteHang):
                self._noted(epoch, command)
            else:
                self.dispatch(self._event(epoch, command))

    def _event(self, epoch: int, command: Any) -> core.Event:
        if not isinstance(command, AskStop):
            return agent_event(epoch, command)
        keys = tuple(_key(key) for key in command.keys)
        deaf = [key for key in keys if key in self.processes and not self.processes[key].listens]
        return asks.StopAsked(epoch, keys, command.step, frozenset(deaf))

    def notice(self, within_ms: int) -> None:
        """The machine is about to go away, as this life of the agent knows."""
        if self.up:
            self.has_notice = True
            self.call(0, self.dispatch, asks.NoticeSeen(self._world.now + within_ms))

    def _beat(self, stream: Stream) -> None:
        if stream is self._stream:
            self._say("heartbeat", None)
            self.call(BEAT_MS, self._beat, stream)

    def _say(self, kind: str, what: Any) -> None:
        if self._stream is not None:
            self._stream.send(UP, (self._epoch, kind, what))
            if kind != "heartbeat" and self._session and self._world.chance(0.02):
                wait = self._world.between(100, 8_000)
                self._world.at(wait, self._coordinator.late, self.name, self._session, kind, what)

    # The core's actions

    def dispatch(self, event: core.Event) -> None:
        """Have the core decide, and do it; the agent may die between any two actions."""
        life = self._life
        for action in core.handle(self.core, event):
            if self.die_in == 0:
                self.kill()
            if self._life != life:
                return
            self.die_in -= self.die_in > 0
            self._do(action)

    def _do(self, action: core.Action) -> None:
        self._world.note(self.name, type(action).__name__)
        match action:
            case core.Spawn(start):
                self._spawn(start)
            case core.Signal(key, how):
                if key in self.processes:
                    self.processes[key].stop(force=how is core.Stop.FORCE)
            case core.TellStarted(worker):
                self._say("started", worker)
            case core.TellEnded(worker):
                self._hangs.ended(worker.key)
                self._say("exited", worker)
            case core.TellPrepared(key, shard):
                self._say("prepared", (key, shard))
            case core.TellReported(key, report):
                self._say("reported", (key, report))
            case core.AnswerCommitted(key, step, publish, drop):
                self._answer(key, step, publish, drop, refused=False)
            case core.AnswerRefused(key, step, _):
                self._answer(key, step, None, (), refused=True)
            case core.AnswerNoted(key, kind, step):
                if key in self.processes:
                    self._world.at(self._world.between(0, 2), self.processes[key].noted, kind, step)
            case asks.AskWorker(key, step):
                if key in self.processes:
                    self._world.at(self._world.between(0, 2), self.processes[key].asked, step)
            case asks.TellAnswer(key, answer):
                self._say("answered", (key, answer))
            case asks.TellNotice(until):
                self._say("notice", until)
            case core.MarkReleased(key):
                if key in self.disk.attempts:
                    self.disk.attempts[key].released = True
            case core.RemoveJob(job_id):
                self.disk.remove_job(job_id)
            case core.Disconnect():
                if self._stream is not None:
                    self._over(self._stream)

    def _spawn(self, start: core.Start) -> None:
        command, assignment, resume = start.how
        if command.master_port in self._ports:
            self._ports.remove(command.master_port)
            self._ports.append(self._new_pid() + 20_000)
            self._say("ports", tuple(self._ports))
        self.disk.attempts[start.key] = AttemptDir(resume)
        order = Order(start.key, command.spec, assignment, resume)
        self.call(self._a_while(), self._fork, order)

    def _fork(self, order: Order) -> None:
        """The shim exists from here on, whatever becomes of the agent; its worker a moment later."""
        process = Process(order, self, self._world, self._checkpoints, self._checks)
        self.processes[order.key] = process
        self._world.at(self._a_while(), self._started, process, self._new_pid())

    def _started(self, process: Process, pid: int) -> None:
        found = self.disk.attempts.get(process.key)
        if process.gone or found is None:
            return
        found.shim = (pid, self._world.now)
        self._world.note(self.name, f"{process.key} runs")
        self._checks.spawned(self.name, process.order)
        process.begin()
        if self.up:
            self.call(0, self.dispatch, core.WorkerSpawned(process.key, pid, self._world.now))

    def gone(self, process: Process, how: Exit | None) -> None:
        """A process tree has ended, and its shim with it; `how` is what the shim wrote, unless it was killed."""
        if self.processes.pop(process.key, None) is None:
            return
        found = self.disk.attempts.get(process.key)
        if found is not None and how is not None:
            found.exit = Ended(how, process.progress())
        if self.up:
            self.call(0, self._shim_gone, process.key)

    def _shim_gone(self, key: Key) -> None:
        self.dispatch(core.WorkerEnded(key, self._how_it_ended(key)))

    def _how_it_ended(self, key: Key) -> Ended:
        found = self.disk.attempts.get(key)
        if found is not None and found.exit is not None:
            return found.exit
        self._checks.died(key)
        return Ended(Exit(-1, 9, "killed: its shim was killed", self._world.now), Progress())

    def _answer(self, key: Key, step: int, publish: Any, drop: tuple[int, ...], *, refused: bool) -> None:
        process = self.processes.get(key)
        if process is not None:
            told = partial(process.answered, step, publish, drop, refused=refused)
            self._world.at(self._world.between(0, 2), told)

    def _found(self, worker: core.Worker) -> Found:
        key = CoordinatorKey(*worker.key)
        if worker.ended is None:
            return Found(key, worker.pid, worker.pid_start)
        return Found(key, worker.pid, worker.pid_start, worker.ended.exit, worker.ended.progress)

    def _a_while(self) -> int:
        """A few milliseconds; on a machine under load, seconds."""
        return self._world.between(1, 3_000 if self._world.chance(0.1) else 4)

    def _new_pid(self) -> int:
        self._pids += 1
        return self._pids


def agent_event(epoch: int, command: Any) -> core.Event:
    """What convert.py makes of a command."""
    match command:
        case Welcome():
            return core.Welcomed(epoch)
        case StartWorkers():
            starts = tuple(
                core.Start(Key(command.job_id, a.rank, a.attempt), (command, a, resume_of(command, a.rank)))
                for a in command.assignments
            )
            return core.StartCommanded(epoch, starts)
        case StopWorkers(keys, force, _, restart):
            gentle = core.Stop.RESTART if restart else core.Stop.GRACE
            how = core.Stop.FORCE if force else gentle
            return core.StopCommanded(epoch, tuple(_key(key) for key in keys), how)
        case ReleaseWorkers(keys):
            return core.ReleaseCommanded(epoch, tuple(_key(key) for key in keys))
        case AckCommit(job_id, attempt, step, ranks, publish, drop):
            return core.CommitAcked(epoch, job_id, attempt, step, ranks, publish, drop)
        case NoteReport(key, kind, step):
            return core.ReportNoted(epoch, _key(key), kind, step)
        case RefuseShard(key, step, reason):
            return core.ShardRefused(epoch, _key(key), step, reason)
        case ForgetJob(job_id):
            return core.JobForgotten(epoch, job_id)
    raise AssertionError(command)


def _hang_policy(spec: JobSpec) -> hangs.Policy | None:
    """What convert.py makes of a policy."""
    policy = spec.hang
    if policy.action is HangAction.OFF:
        return None
    limits = {section: limit * MS for section, limit in policy.limits_ms.items()}
    return hangs.Policy(limits, policy.factor, policy.floor_ms * MS)


def resume_of(command: StartWorkers, rank: int) -> Any:
    """The gang's commit, or the rank's own."""
    return next((commit for commit in command.resume if commit.rank in (None, rank)), None)


def _key(key: CoordinatorKey) -> Key:
    return Key(key.job_id, key.rank, key.attempt)
