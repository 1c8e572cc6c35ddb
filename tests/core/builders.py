"""Small builders: a cluster whose every event is checked, and events with short names."""

from copy import deepcopy
from dataclasses import dataclass, field, replace

from holdfast_coordinator.core import checkpoints, recovery
from holdfast_coordinator.core.effects import Append, Effects
from holdfast_coordinator.core.events import (
    AgentJoined,
    BackupRestored,
    CheckpointDeleteRequested,
    CheckpointPinRequested,
    CheckpointReported,
    Event,
    Found,
    JobDeleteRequested,
    JobRestartRequested,
    JobStopRequested,
    JobSubmitted,
    LeaderElected,
    NodeCordonRequested,
    NodeDrainRequested,
    NodeForgetRequested,
    NodeNoticed,
    NodeUncordonRequested,
    Notice,
    PortsOffered,
    ShardPrepared,
    StopAnswered,
    StreamLost,
    Ticked,
    WorkerExited,
    WorkerHung,
    WorkerStarted,
)
from holdfast_coordinator.core.jobspec import JobSpec, RestartPolicy, Scope
from holdfast_coordinator.core.model import (
    TERMINAL,
    Capacity,
    Commit,
    Entry,
    Exit,
    Gang,
    Hang,
    Job,
    Key,
    Node,
    Output,
    Progress,
    ReportKind,
    Shard,
    Worker,
    WorkerState,
)
from holdfast_coordinator.core.state import State
from holdfast_coordinator.core.step import step
from holdfast_coordinator.store.memory import MemoryStore
from tests.core.invariants import Monotone, proven_corrupt, validate, validate_history

T0 = 1_000_000
"""When everything begins, in milliseconds."""

ROOM = Capacity(slots=4, cpus=8.0, memory_bytes=2**33, gpus=4)


def spec(world_size: int = 2, scope: Scope = Scope.GANG, **kwargs) -> JobSpec:
    """A job; arguments of RestartPolicy go there."""
    policy = {name: kwargs.pop(name) for name in list(kwargs) if name in RestartPolicy.__dataclass_fields__}
    restart = RestartPolicy(**{"scope": scope, "jitter": 0.0, **policy})
    return JobSpec(
        name="train", command=("python", "train.py"), world_size=world_size, restart=restart, **kwargs
    )


def key(rank: int, attempt: int = 1, job: str = "j1") -> Key:
    return Key(job, rank, attempt)


def shard(
    rank: int, attempt: int = 1, size: int = 100, *, local_only: bool = False, **metrics: float
) -> Shard:
    name = f"rank-{rank:05}.attempt-{attempt}.safetensors"
    return Shard(rank, name, size, f"{rank:016x}", "{}", metrics, local_only)


def hang(section: str = "step", silent_ms: int = 61_000, limit_ms: int = 60_000, **given) -> Hang:
    told = {"since_ns": 7, "since_ms": T0, "step": None, "learned": False, **given}
    return Hang(section=section, silent_ms=silent_ms, limit_ms=limit_ms, **told)


def ended(code: int = 1, signal: int = 0, at: int = T0, *, never_ran: bool = False) -> Exit:
    message = f"killed by signal {signal}" if signal else f"exit code {code}"
    return Exit(code, signal, "command not found: pyhton" if never_ran else message, at, never_ran)


@dataclass
class Cluster:
    """A state, its store and its clock. Every event is stepped, checked, and stored."""

    state: State = field(default_factory=State)
    now: int = T0
    store: MemoryStore = field(default_factory=MemoryStore)
    heard: dict[str, int] = field(default_factory=dict)
    seen: Monotone = field(default_factory=Monotone)
    timeline: list[Entry] = field(default_factory=list)
    sessions: int = 0
    ports: int = 8000
    requests: int = 0
    backup: MemoryStore | None = None

    def do(self, event: Event) -> Effects:
        if checkpoints.asks_history(event):
            asked = checkpoints.lookup(self.state, event)
            kept = self.store.commit_upto(asked.job_id, asked.gang, asked.upto) if asked else None
            event = replace(event, kept=kept)
        aside = proven_corrupt(self.state, event)
        before = self.store.commit_upto(*aside, event.step - 1) if aside else None
        if isinstance(event, JobRestartRequested):
            self.seen.revived(event.job_id)
        effects = step(self.state, event)
        validate(self.state)
        if aside:
            self.seen.set_aside(aside, before, self.state)
        self.seen.check(self.state)
        self.store.commit(effects.writes, epoch=self.state.epoch)
        assert self.store.load(self.state.settings) == self.state, "the writes are not the difference"
        validate_history(self.state, self.store)
        self.timeline += [
            w.item for w in effects.writes if isinstance(w, Append) and isinstance(w.item, Entry)
        ]
        return effects

    # Events

    def elect(self) -> Effects:
        return self.do(LeaderElected(self.now, self.state.epoch + 1))

    def restart_coordinator(self) -> Effects:
        """A new process that knows what the store knows."""
        self.state = self.store.load(self.state.settings)
        return self.elect()

    def back_up(self) -> None:
        self.backup = deepcopy(self.store)

    def restore(self, more: tuple[Commit, ...] = ()) -> Effects:
        """Lose the store an hour later, and restore the backup; there are manifests of every commit, and of `more`."""
        manifests: dict[tuple[str, int], tuple[Commit, ...]] = {}
        for commit in (*self.store._commits.values(), *more):
            of = commit.job_id, commit.gang
            manifests[of] = (*manifests.get(of, ()), commit)
        self.now += 3_600_000
        assert self.backup is not None
        self.store = deepcopy(self.backup)
        self.state = self.store.load(self.state.settings)
        for job in self.state.jobs.values():
            if job.state not in TERMINAL:
                self.seen.ended.pop(job.id, None)
        elected = step(self.state, LeaderElected(self.now, recovery.fresh(self.state.epoch, self.now)))
        self.store.commit(elected.writes, epoch=self.state.epoch)  # nobody sees the state in between
        return self.do(BackupRestored(self.now, manifests))

    def join(self, node: str = "a", inventory: tuple[Found, ...] = (), **kwargs) -> Effects:
        self.sessions += 1
        self.heard[node] = self.now
        given = {
            "session": f"s{self.sessions}",
            "instance_id": f"instance-{node}",
            "address": f"10.0.0.{node}",
            "capacity": ROOM,
            "ports": (7001, 7002),
            "boot_id": "boot-1",
        }
        return self.do(AgentJoined(self.now, node, inventory=inventory, **(given | kwargs)))

    def tick(self, after_ms: int = 0, *silent: str) -> Effects:
        """Let time pass; nodes that are not silent are heard from now."""
        self.now += after_ms
        self.heard |= {node: self.now for node in self.heard if node not in silent}
        return self.do(Ticked(self.now, dict(self.heard)))

    def submit(self, job_spec: JobSpec | None = None, job: str = "j1", request: str = "") -> Effects:
        return self.do(JobSubmitted(self.now, job, request or f"request-{job}", job_spec or spec()))

    def stop(self, job: str = "j1", *, force: bool = False) -> Effects:
        return self.do(JobStopRequested(self.now, job, force))

    def again(self, job: str = "j1", request: str = "", *, force: bool = False) -> Effects:
        """Its user wants it restarted."""
        self.requests += 1
        return self.do(JobRestartRequested(self.now, job, request or f"again-{self.requests}", force))

    def cordon(self, node: str = "a", reason: str = "") -> Effects:
        return self.do(NodeCordonRequested(self.now, node, reason))

    def uncordon(self, node: str = "a") -> Effects:
        return self.do(NodeUncordonRequested(self.now, node))

    def drain(self, node: str = "a", within_ms: int = 120_000, reason: str = "") -> Effects:
        return self.do(NodeDrainRequested(self.now, node, within_ms, reason))

    def forget(self, node: str = "a") -> Effects:
        return self.do(NodeForgetRequested(self.now, node))

    def notice(self, node: str = "a", reason: str = "spot notice", within_ms: int = 120_000) -> Effects:
        there = self.node(node)
        return self.do(NodeNoticed(self.now, node, there.session, Notice(reason, within_ms)))

    def answer(self, which: Key, at_step: int | None, *, leaves: bool = True, node: str = "") -> Effects:
        node = node or self.where(which)
        return self.do(StopAnswered(self.now, node, self.node(node).session, which, at_step, leaves))

    def delete(self, job: str = "j1") -> Effects:
        return self.do(JobDeleteRequested(self.now, job))

    def lose_stream(self, node: str = "a", session: str = "", *, ends_workers: bool = False) -> Effects:
        silent_ms = self.now - self.heard.get(node, self.now)
        speaks_in = session or self.node(node).session
        return self.do(StreamLost(self.now, node, speaks_in, silent_ms, ends_workers))

    def offer(self, node: str, *ports: int) -> Effects:
        return self.do(PortsOffered(self.now, node, self.node(node).session, ports))

    def started(self, which: Key, node: str = "", pid: int = 0) -> Effects:
        node = node or self.where(which)
        session = self.node(node).session
        return self.do(WorkerStarted(self.now, node, session, which, pid or 100 + which.rank, 9))

    def exited(
        self,
        which: Key,
        code: int = 1,
        signal: int = 0,
        *,
        at_step: int | None = None,
        never_ran=False,
        node="",
        output: Output | None = None,
        **more,
    ) -> Effects:
        """Of what becomes of a worker, `more` goes into its Exit."""
        node = node or self.where(which)
        how = replace(ended(code, signal, self.now, never_ran=never_ran), **more)
        progress = Progress() if at_step is None else Progress(at_step, at_step, 10 * at_step, "step")
        session = self.node(node).session
        return self.do(WorkerExited(self.now, node, session, which, how, progress, output or Output()))

    def prepare(self, which: Key, at_step: int, node: str = "", what: Shard | None = None) -> Effects:
        node = node or self.where(which)
        what = what or shard(which.rank, which.attempt)
        return self.do(ShardPrepared(self.now, node, self.node(node).session, which, at_step, what))

    def report(
        self, which: Key, kind: ReportKind, at_step: int, message: str = "", node: str = ""
    ) -> Effects:
        node = node or self.where(which)
        session = self.node(node).session
        return self.do(CheckpointReported(self.now, node, session, which, kind, at_step, message))

    def corrupt(self, which: Key, at_step: int, message: str = "xxh3 differs", node: str = "") -> Effects:
        return self.report(which, ReportKind.CORRUPT, at_step, message, node)

    def hung(
        self, which: Key, how: Hang | None = None, *, over: bool = False, evidence: str = "", node: str = ""
    ) -> Effects:
        node = node or self.where(which)
        session = self.node(node).session
        return self.do(WorkerHung(self.now, node, session, which, how or hang(), over, evidence))

    def drop_checkpoint(self, at_step: int, rank: int | None = None, job: str = "j1") -> Effects:
        return self.do(CheckpointDeleteRequested(self.now, job, at_step, rank))

    def pin(self, at_step: int, name: str, rank: int | None = None, job: str = "j1") -> Effects:
        return self.do(CheckpointPinRequested(self.now, job, at_step, name, rank))

    def commit(
        self, at_step: int, job: str = "j1", *, local: tuple[int, ...] = (), **metrics: float
    ) -> Effects:
        """Have every live rank of a gang of all prepare a step."""
        effects = Effects()
        for worker in self.state.workers_of(self.job(job)):
            which = shard(worker.rank, worker.attempt, local_only=worker.rank in local, **metrics)
            effects = self.prepare(worker.key, at_step, what=which)
        return effects

    def restart(self, job: str = "j1") -> None:
        """Let what was told to stop be gone, and what is started in its place be up."""
        self.ports += 2
        for node in self.state.nodes.values():
            self.offer(node.name, self.ports, self.ports + 1)
        for worker in self.state.workers_of(self.job(job)):
            if worker.state is WorkerState.STOPPING:
                self.exited(worker.key, signal=15)
        for worker in self.state.workers_of(self.job(job)):
            self.started(worker.key)

    # Looks

    def job(self, job: str = "j1") -> Job:
        return self.state.jobs[job]

    def worker(self, rank: int = 0, job: str = "j1") -> Worker:
        return self.state.workers[job, rank]

    def gang(self, index: int = 0, job: str = "j1") -> Gang:
        return self.state.gangs[job, index]

    def node(self, node: str = "a") -> Node:
        return self.state.nodes[node]

    def history(self, job: str = "j1") -> list[int]:
        """The steps that are kept, newest first."""
        return [commit.step for commit in self.store.commits(job, limit=1_000)]

    def where(self, which: Key) -> str:
        return self.state.workers[which.job_id, which.rank].node

    def kinds(self, since: int = 0) -> list[str]:
        return [entry.kind for entry in self.timeline[since:]]


def leading(*nodes: str, **kwargs) -> Cluster:
    """A cluster with a leader and these nodes connected."""
    cluster = Cluster(**kwargs)
    cluster.elect()
    for node in nodes:
        cluster.join(node)
    return cluster


def running(
    world_size: int = 2, scope: Scope = Scope.GANG, nodes: tuple[str, ...] = ("a",), **kwargs
) -> Cluster:
    """A cluster with job j1, all of its workers up."""
    cluster = leading(*nodes)
    cluster.submit(spec(world_size, scope, **kwargs))
    for rank in range(world_size):
        cluster.started(key(rank))
    return cluster


def found(which: Key, exit: Exit | None = None, at_step: int | None = None) -> Found:  # noqa: A002
    progress = Progress() if at_step is None else Progress(at_step, at_step, 10 * at_step, "step")
    return Found(which, 100 + which.rank, 9, exit, progress)


def sent(effects: Effects, kind: type | None = None) -> list:
    """The commands of an event, or those of a kind."""
    return [send.command for send in effects.commands if kind is None or isinstance(send.command, kind)]
