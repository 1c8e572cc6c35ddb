"""What is checked while a simulation runs. It sees everything, and is a party to nothing.

P1 commits, manifests and LATEST; P2 one accepted attempt; P3 durable before visible; P4 no healthy worker killed; P6
one process for a key; P9 no job failed by the control plane. And after every event: the invariants of the
state, and that the writes are exactly the difference.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from holdfast_agent.core import Key
from holdfast_coordinator.core.effects import (
    AckCommit,
    Append,
    Command,
    Effects,
    Put,
    Refusal,
    ReleaseWorkers,
    StartWorkers,
    StopWorkers,
    Write,
)
from holdfast_coordinator.core.events import Event, JobStopRequested, JobSubmitted, LeaderElected
from holdfast_coordinator.core.model import (
    LIVE,
    TERMINAL,
    Commit,
    Desired,
    Exit,
    Gang,
    Job,
    JobState,
    Node,
    NodeState,
    Worker,
    WorkerState,
)
from holdfast_coordinator.core.state import State
from holdfast_coordinator.store.memory import MemoryStore
from tests.core.invariants import Monotone, validate
from tests.sim.disk import Checkpoints, Place
from tests.sim.world import Violation, World


@dataclass
class Checks:
    """The omniscient observer."""

    world: World
    lost_after_ms: int
    agents: dict[str, Any] = field(default_factory=dict)
    checkpoints: Checkpoints = field(init=False)
    commits: dict[Place, dict[int, Commit]] = field(default_factory=dict)
    """Every durable commit, by step."""
    pace: dict[Key, int] = field(default_factory=dict)
    """The step of every live worker."""
    counts: dict[str, int] = field(default_factory=dict)
    """What happened how often: the summary of a run."""
    _shadow: State = field(default_factory=State)
    _heard: dict[str, int] = field(default_factory=dict)
    _spawned: set[Key] = field(default_factory=set)
    _dead: set[Key] = field(default_factory=set)
    _exits: dict[Key, Exit] = field(default_factory=dict)
    _boots: set[str] = field(default_factory=set)
    _seen: Monotone = field(default_factory=Monotone)
    _seen_durable: Monotone = field(default_factory=Monotone)

    def __post_init__(self) -> None:
        self.checkpoints = Checkpoints(lambda place, commit: commit in self.commits.get(place, {}).values())

    # The truth

    def died(self, key: Key) -> None:
        """It ended other than by exit code 0."""
        self._dead.add(key)

    def ended(self, key: Key, how: Exit) -> None:
        self._exits[key] = how

    def rebooted(self, node: str) -> None:
        self._boots.add(node)

    def heard(self, node: str) -> None:
        self._heard[node] = self.world.now

    def paused(self, for_ms: int) -> None:
        """The coordinator was stopped, and could hear nobody."""
        self._heard = {node: at + for_ms for node, at in self._heard.items()}

    def elected(self, nodes: Iterable[str]) -> None:
        self._heard = dict.fromkeys(nodes, self.world.now)

    def spawned(self, node: str, order: Any) -> None:
        """A worker's process comes to be."""
        key, commit = order.key, order.resume
        self._count("spawned")
        if key in self._spawned:
            raise Violation(f"P6: {key} is spawned twice")
        self._spawned.add(key)
        rank = (key.job_id, key.rank)
        twin = [k for k in self.agents[node].processes if (k.job_id, k.rank) == rank and k != key]
        if twin:
            raise Violation(f"P2: {key} starts beside {twin}")
        before = [c for c in self.commits.get(order.place, {}).values() if c.attempt < key.attempt]
        newest = max(before, key=lambda c: c.step, default=None)
        if commit != newest:
            raise Violation(f"P1: {key} resumes from {commit}, the newest commit before it is {newest}")

    def slowest(self, key: Key) -> int:
        """The step of the slowest rank of this attempt; -1 while one of them is not there."""
        world = int(self._shadow.jobs[key.job_id].spec.world_size)
        return min(self.pace.get(Key(key.job_id, rank, key.attempt), -1) for rank in range(world))

    def is_durable(self, place: Place, step: int) -> bool:
        return step in self.commits.get(place, {})

    # The coordinator's state

    def stepped(self, state: State, event: Event, effects: Effects) -> None:
        """After every event: the writes are the difference, the state is sound, and every loss has a cause."""
        if isinstance(event, LeaderElected):
            self._shadow = State(state.settings)
            self._shadow.epoch, self._shadow.next_seq = state.epoch, 1
            for row in state.rows():
                self._shadow.put(row)
            self._shadow.next_seq = state.next_seq
            self._seen = Monotone()  # what was not durable has not happened
        else:
            self._causes(effects.writes)
            self._shadow.apply(effects.writes)
        if self._shadow != state:
            raise Violation(f"load(store) is not the state after {type(event).__name__}")
        try:
            validate(state)
            self._seen.check(state)
        except AssertionError as error:
            raise Violation(f"after {type(event).__name__}: {error}") from error

    def _causes(self, writes: Iterable[Write]) -> None:
        """Every worker that is given up has died or was out of reach; every restart follows from one (P4)."""
        given_up: set[tuple[str, int]] = set()
        rows = [write.row for write in writes if isinstance(write, Put)]
        lost_nodes = [row for row in rows if isinstance(row, Node) and row.state is NodeState.LOST]
        for node in lost_nodes:
            if self._shadow.nodes[node.name].state is not NodeState.LOST:
                self._node_lost(node)
        for row in rows:
            match row:
                case Worker(state=WorkerState.FAILED | WorkerState.LOST):
                    given_up.add((row.job_id, row.gang))
                    if self._shadow.workers[row.job_id, row.rank].state is not row.state:
                        self._worker_given_up(row, {node.name for node in lost_nodes})
                case Gang():
                    self._gang_written(row, given_up)
                case Job(state=JobState.FAILED):
                    raise Violation(f"P9: {row.id} failed: {row.reason}")

    def _node_lost(self, node: Node) -> None:
        self._count("nodes lost")
        silent = self.world.now - self._heard.get(node.name, 0)
        if silent < self.lost_after_ms:
            raise Violation(f"P4: node {node.name} is lost after {silent} ms of silence")

    def _worker_given_up(self, worker: Worker, lost_nodes: set[str]) -> None:
        key = Key(worker.job_id, worker.rank, worker.attempt)
        if worker.state is WorkerState.FAILED:
            if key not in self._dead:
                raise Violation(f"P4: {key} is taken for dead and is not")
            return
        agent = self.agents[worker.node]
        here = key in agent.processes
        found = agent.disk.attempts.get(key)
        known = here or (found is not None and found.exit is not None and not found.released)
        if worker.node not in lost_nodes and known:
            raise Violation(f"P4: {key} is lost, and node {worker.node} has it")

    def _gang_written(self, gang: Gang, given_up: set[tuple[str, int]]) -> None:
        before = self._shadow.gangs.get((gang.job_id, gang.index))
        if before is None:
            return
        if gang.attempt > before.attempt:
            self._count("restarts")
            if (gang.job_id, gang.index) not in given_up:
                raise Violation(f"P4: {gang.job_id}/{gang.index} restarts though nothing died: {gang.cause}")
        if gang.commit is not None and gang.commit != before.commit:
            self._count("commits")
            self._committed(gang, gang.commit)

    def _committed(self, gang: Gang, commit: Commit) -> None:
        place = (gang.job_id, gang.index)
        if commit.attempt != gang.attempt:
            raise Violation(f"P2: a commit of attempt {commit.attempt} under attempt {gang.attempt}")
        for shard in commit.shards:
            if f".attempt-{commit.attempt}." not in shard.file:
                raise Violation(f"P2: {shard.file} is part of a commit of attempt {commit.attempt}")
            if (place, commit.step, shard.file) not in self.checkpoints.files:
                raise Violation(f"P1: {shard.file} of step {commit.step} of {place} is not there")

    # The store and the wire

    def durable(self, writes: Iterable[Write], store: MemoryStore) -> None:
        """A transaction is on disk."""
        for write in writes:
            if isinstance(write, Append) and isinstance(write.item, Commit):
                commit = write.item
                steps = self.commits.setdefault((commit.job_id, commit.gang), {})
                if steps and commit.step <= max(steps):
                    raise Violation(f"P1: step {commit.step} is committed after step {max(steps)}")
                steps[commit.step] = commit
        self._seen_durable.check(store._state)

    def batch_done(self, state: State, store: MemoryStore) -> None:
        """Between two batches store and memory agree."""
        if store.load(state.settings) != state:
            raise Violation("load(store) is not the state between two batches")

    def ticked(self, deadline: int | None) -> None:
        """A tick has done what was due: the next wake-up lies ahead, or the engine would spin."""
        if deadline is not None and deadline <= self.world.now:
            raise Violation(f"the engine is to wake up {self.world.now - deadline} ms ago: it would spin")

    def sending(self, command: Command, store: MemoryStore) -> None:
        """A command leaves the process: what it rests on is durable (P3), and whom it stops is to be stopped (P4)."""
        durable = store._state
        match command:
            case ReleaseWorkers(keys):
                for key in keys:
                    row = durable.workers.get((key.job_id, key.rank))
                    if row is not None and row.attempt == key.attempt and row.state in LIVE:
                        raise Violation(f"P3: {key} is released before its exit is durable")
            case AckCommit(job_id, attempt, step, ranks, _):
                for rank in ranks:
                    gang = durable.workers[job_id, rank].gang
                    commit = self.commits.get((job_id, gang), {}).get(step)
                    if commit is None or commit.attempt != attempt:
                        raise Violation(f"P3: step {step} of {job_id}/{gang} is acked before it is durable")
            case StartWorkers():
                for a in command.assignments:
                    row = durable.workers.get((command.job_id, a.rank))
                    if row is None or row.attempt < a.attempt:
                        raise Violation(
                            f"P3: rank {a.rank} of {command.job_id} starts before that is durable"
                        )
            case StopWorkers(keys, _, reason):
                for key in keys:
                    row, job = durable.workers.get((key.job_id, key.rank)), durable.jobs.get(key.job_id)
                    if row is None or job is None or job.ending is not None or row.attempt != key.attempt:
                        continue
                    if row.attempt == durable.gangs[key.job_id, row.gang].attempt and row.state in LIVE:
                        raise Violation(f"P4: {key} is told to stop: {reason}")

    def answering(self, event: Event, refusal: Refusal | None, store: MemoryStore) -> None:
        """A client is told that it is done."""
        durable = store._state
        if refusal is not None:
            return
        if isinstance(event, JobSubmitted) and event.request_id not in durable.requests:
            raise Violation(f"P3: {event.request_id} is acknowledged and not durable")
        if isinstance(event, JobStopRequested):
            job = durable.jobs[event.job_id]
            if job.desired is not Desired.STOPPED and job.state not in TERMINAL:
                raise Violation(f"P3: the stop of {event.job_id} is acknowledged and not durable")

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
