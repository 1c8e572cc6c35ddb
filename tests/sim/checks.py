"""What is checked while a simulation runs. It sees everything, and is a party to nothing.

P1 commits, manifests, LATEST, and what is set aside or dropped; P2 one accepted attempt; P3 durable before visible;
P4 no healthy worker killed, nor said to hang; P6 one process for a key; P9 no job failed by the control plane. And
after every event: the invariants of the state, and that the writes are exactly the difference.
"""

from collections.abc import Iterable
from dataclasses import astuple, dataclass, field
from typing import Any

from holdfast_agent.core import Key
from holdfast_coordinator.core.effects import (
    AckCommit,
    Append,
    AskStop,
    Command,
    Delete,
    DropCommit,
    Effects,
    MarkDrained,
    NoteReport,
    Put,
    Refusal,
    ReleaseWorkers,
    StartWorkers,
    StopWorkers,
    Write,
)
from holdfast_coordinator.core.events import (
    CheckpointReported,
    Event,
    JobRestartRequested,
    JobStopRequested,
    JobSubmitted,
    LeaderElected,
    WorkerHung,
)
from holdfast_coordinator.core.jobspec import Action, HangAction
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
    ReportKind,
    Worker,
    WorkerState,
)
from holdfast_coordinator.core.state import State
from holdfast_coordinator.store.api import drained
from holdfast_coordinator.store.memory import MemoryStore
from tests.core.invariants import Monotone, proven_corrupt, validate, validate_history
from tests.sim.disk import Checkpoints, Place, same_commit
from tests.sim.world import Violation, World

HANG_SLACK_MS = 3_000
"""A pause of the agent, and so of the machine, is told to a look."""


@dataclass
class Checks:
    """The omniscient observer."""

    world: World
    lost_after_ms: int
    gone_after_ms: int
    agents: dict[str, Any] = field(default_factory=dict)
    checkpoints: Checkpoints = field(init=False)
    commits: dict[Place, dict[int, Commit]] = field(default_factory=dict)
    """Every commit of the durable history, by step."""
    ever: dict[Place, list[Commit]] = field(default_factory=dict)
    """The same with those that left it."""
    left: dict[tuple[Place, int, int], int] = field(default_factory=dict)
    """During which attempt a commit left the history, by place, step and its own attempt."""
    pace: dict[Key, int] = field(default_factory=dict)
    """The step of every live worker."""
    last_step: dict[Key, int] = field(default_factory=dict)
    """The step at which a worker ended because it was asked to."""
    counts: dict[str, int] = field(default_factory=dict)
    """What happened how often: the summary of a run."""
    _shadow: State = field(default_factory=State)
    _heard: dict[str, int] = field(default_factory=dict)
    _broken: dict[str, int] = field(default_factory=dict)
    """Since when there is no stream to a node whose workers end with its agent."""
    _spawned: set[Key] = field(default_factory=set)
    _dead: set[Key] = field(default_factory=set)
    _hung: set[Key] = field(default_factory=set)
    _exits: dict[Key, Exit] = field(default_factory=dict)
    _boots: set[str] = field(default_factory=set)
    _done: set[str] = field(default_factory=set)
    """The requests that restarted a job, as far as that is durable."""
    _attempts: dict[Place, int] = field(default_factory=dict)
    """Of every gang, as the transactions that are read one by one have it."""
    _seen: Monotone = field(default_factory=Monotone)
    _seen_durable: Monotone = field(default_factory=Monotone)

    def __post_init__(self) -> None:
        self.checkpoints = Checkpoints(
            lambda place, commit: any(same_commit(commit, made) for made in self.ever.get(place, ())),
            lambda place, step: self.commits.get(place, {}).get(step),
        )

    # The truth

    def died(self, key: Key) -> None:
        """It ended other than by exit code 0."""
        self._dead.add(key)

    def hung(self, process: Any, verdict: Any) -> None:
        """Its agent says that it hangs: it has not moved for longer than it may, give or take a look or two."""
        self.count("hangs")
        self._hung.add(process.key)
        limit = process.order.spec.hang.limits_ms.get(verdict.section, process.order.spec.hang.floor_ms)
        if process.quiet_ms() < limit - HANG_SLACK_MS:
            raise Violation(f"P4: {process.key} is said to hang and moved {process.quiet_ms()} ms ago")

    def left_at(self, key: Key, step: int) -> None:
        """It was asked to stop, and does, with all that it did committed."""
        self.count("stopped in time")
        self.last_step[key] = step
        gang = self._shadow.workers[key.job_id, key.rank].gang
        if not self.was_durable((key.job_id, gang), step, key.attempt):
            raise Violation(f"P1: {key} ends at step {step}, which is not committed")

    def ended(self, key: Key, how: Exit) -> None:
        self._exits[key] = how

    def rebooted(self, node: str) -> None:
        self._boots.add(node)

    def heard(self, node: str) -> None:
        self._heard[node] = self.world.now
        self._broken.pop(node, None)

    def broken(self, node: str, *, in_pod: bool) -> None:
        """The coordinator has noticed that a stream broke."""
        if in_pod:
            self._broken[node] = self.world.now

    def paused(self, for_ms: int) -> None:
        """The coordinator was stopped, and could hear nobody."""
        self._heard = {node: at + for_ms for node, at in self._heard.items()}

    def elected(self, nodes: Iterable[str]) -> None:
        self._heard = dict.fromkeys(nodes, self.world.now)
        self._broken.clear()

    def spawned(self, node: str, order: Any) -> None:
        """A worker's process comes to be."""
        key, commit = order.key, order.resume
        self.count("spawned")
        if key in self._spawned:
            raise Violation(f"P6: {key} is spawned twice")
        self._spawned.add(key)
        rank = (key.job_id, key.rank)
        twin = [k for k in self.agents[node].processes if (k.job_id, k.rank) == rank and k != key]
        if twin:
            raise Violation(f"P2: {key} starts beside {twin}")
        newest = self._newest_before(order.place, key.attempt)
        if not same_commit(commit, newest):
            raise Violation(f"P1: {key} resumes from {commit}, the newest commit before it is {newest}")

    def _newest_before(self, place: Place, attempt: int) -> Commit | None:
        """The newest commit that an attempt found in the history when it began."""
        there = [
            commit
            for commit in self.ever.get(place, ())
            if commit.attempt < attempt <= self.left.get((place, commit.step, commit.attempt), attempt)
        ]
        return max(there, key=lambda commit: commit.step, default=None)

    def slowest(self, key: Key) -> int:
        """The step of the slowest rank of this attempt; -1 while one of them is not there."""
        world = int(self._shadow.jobs[key.job_id].spec.world_size)
        return min(self.pace.get(Key(key.job_id, rank, key.attempt), -1) for rank in range(world))

    def superseded(self, place: Place, attempt: int) -> bool:
        """Whether an attempt is not the newest of its gang any more."""
        return attempt < self._attempts.get(place, 1)

    def was_durable(self, place: Place, step: int, attempt: int) -> bool:
        return any((c.step, c.attempt) == (step, attempt) for c in self.ever.get(place, ()))

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
            aside = None
        else:
            aside = proven_corrupt(self._shadow, event)
            self._causes(effects.writes, aside, self._hung_gang(event), *self._wanted_again(event))
            self._shadow.apply(effects.writes)
        if self._shadow != state:
            raise Violation(f"load(store) is not the state after {type(event).__name__}")
        try:
            validate(state)
            if aside is not None:
                self._set_aside(aside, event, state)
            self._seen.check(state)
        except AssertionError as error:
            raise Violation(f"after {type(event).__name__}: {error}") from error

    def _set_aside(self, place: Place, event: Event, state: State) -> None:
        """A worker found a commit corrupt: it is, and what is gone back to is the newest one that is durable."""
        assert isinstance(event, CheckpointReported)
        self.count("set aside")
        if not self.checkpoints.is_rotten(place, self.commits[place][event.step]):
            raise Violation(f"P1: step {event.step} of {place} is set aside and is sound")
        before = [commit for step, commit in self.commits[place].items() if step < event.step]
        self._seen.set_aside(place, max(before, key=lambda commit: commit.step, default=None), state)

    def _wanted_again(self, event: Event) -> list[Place]:
        """The gangs of a job that its user wants restarted."""
        if not isinstance(event, JobRestartRequested) or event.request_id in self._done:
            return []  # what was done already is not done again (P6)
        self.count("wanted again")
        self._seen.revived(event.job_id)
        self._seen_durable.revived(event.job_id)
        return [place for place in self._shadow.gangs if place[0] == event.job_id]

    def _hung_gang(self, event: Event) -> Place | None:
        """The gang of a worker that hangs, where that is a reason to restart it."""
        if not isinstance(event, WorkerHung) or event.over or Key(*astuple(event.key)) not in self._hung:
            return None
        row = self._shadow.workers.get((event.key.job_id, event.key.rank))
        job = self._shadow.jobs.get(event.key.job_id)
        acts = job is not None and job.spec.hang.action is HangAction.RESTART
        return (row.job_id, row.gang) if row is not None and row.key == event.key and acts else None

    def _causes(self, writes: Iterable[Write], *reasons: Place | None) -> None:
        """Every worker that is given up has died or was out of reach; every restart follows from one (P4).

        Or from a checkpoint that proved corrupt, or from a hang, or from a word of the job's user.
        """
        aside = reasons[0]
        given_up: set[tuple[str, int]] = {place for place in reasons if place is not None}
        given_up |= self._moving(writes)
        for write in writes:
            if isinstance(write, DropCommit) and aside is None:
                self._let_go(write)
        rows = [write.row for write in writes if isinstance(write, Put)]
        lost_nodes = [row for row in rows if isinstance(row, Node) and row.state is NodeState.LOST]
        for node in lost_nodes:
            if self._shadow.nodes[node.name].state is not NodeState.LOST:
                self._node_lost(node)
        for write in writes:
            if isinstance(write, Delete) and isinstance(write.row, Node):
                self._node_forgotten(write.row)
        for row in rows:
            match row:
                case Worker(state=WorkerState.FAILED | WorkerState.LOST):
                    given_up |= self._fall_with(row)
                    if self._shadow.workers[row.job_id, row.rank].state is not row.state:
                        self._worker_given_up(row, {node.name for node in lost_nodes})
                case Gang():
                    self._gang_written(row, given_up)
                case Job(state=JobState.FAILED):
                    raise Violation(f"P9: {row.id} failed: {row.reason}")

    def _fall_with(self, worker: Worker) -> set[tuple[str, int]]:
        """The gangs that restart because of a worker: its own, or all of them where a rule says so."""
        spec = self._shadow.jobs[worker.job_id].spec
        failed = worker.state is WorkerState.FAILED and worker.exit is not None and worker.exit.code == 1
        if failed and any(rule.action is Action.RESTART_GANG for rule in spec.rules):
            self.count("rules")
            return {(worker.job_id, index) for index in range(spec.world_size)}
        return {(worker.job_id, worker.gang)}

    def _moving(self, writes: Iterable[Write]) -> set[tuple[str, int]]:
        """The gangs that were asked to stop, or have a rank on a node that is being drained."""
        nodes = [write.row for write in writes if isinstance(write, Put) and isinstance(write.row, Node)]
        draining = {node.name for node in nodes if node.cordon is not None and node.cordon.drain_by_ms}
        there = [
            key for name in {*draining, *self._shadow.draining} for key in self._shadow.on_node.get(name, ())
        ]
        return {(job_id, self._shadow.workers[job_id, rank].gang) for job_id, rank in there} | {
            *self._shadow.stopping
        }

    def _let_go(self, dropped: DropCommit) -> None:
        gang = self._shadow.gangs[dropped.job_id, dropped.gang]
        reading = [
            w.key for w in self._shadow.members(gang) if w.state in LIVE and w.resume_step == dropped.step
        ]
        if reading:
            raise Violation(f"P1: step {dropped.step} is dropped, and {reading} resumed from it")

    def _node_lost(self, node: Node) -> None:
        self.count("nodes lost")
        silent = self.world.now - self._heard.get(node.name, 0)
        if node.name in self._broken and self.world.now - self._broken[node.name] >= self.gone_after_ms:
            self.count("pods gone", silent < self.lost_after_ms)
        elif silent < self.lost_after_ms:
            raise Violation(f"P4: node {node.name} is lost after {silent} ms of silence")

    def _node_forgotten(self, node: Node) -> None:
        self.count("nodes forgotten")
        if self._shadow.nodes[node.name].state is not NodeState.LOST:
            raise Violation(f"P4: node {node.name} is forgotten, and was not lost")

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
            self.count("restarts")
            if (gang.job_id, gang.index) not in given_up:
                raise Violation(f"P4: {gang.job_id}/{gang.index} restarts though nothing died: {gang.cause}")
        known = before.commit.step if before.commit is not None else -1
        if gang.commit is not None and gang.commit.step > known:
            self.count("commits")
            self.count("degraded", gang.commit.degraded)
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
            match write:
                case Append(Commit() as commit):
                    place = (commit.job_id, commit.gang)
                    steps = self.commits.setdefault(place, {})
                    if steps and commit.step <= max(steps):
                        raise Violation(f"P1: step {commit.step} is committed after step {max(steps)}")
                    steps[commit.step] = commit
                    self.ever.setdefault(place, []).append(commit)
                case DropCommit(job_id, index, step):
                    self._dropped((job_id, index), step)
                case MarkDrained(job_id, index, step, rank):
                    steps = self.commits.get((job_id, index), {})
                    if step in steps:
                        steps[step] = drained(steps[step], rank)
                case Put(Job() as job):
                    self._done.update(job.restarts_asked)
                case Put(Gang() as gang):
                    self._attempts[gang.job_id, gang.index] = gang.attempt
        self._seen_durable.check(store._state)

    def _dropped(self, place: Place, step: int) -> None:
        """A commit left the history: it is corrupt, or the policy does not keep it."""
        steps = self.commits[place]
        commit = steps.pop(step)
        self.left[place, step, commit.attempt] = self._attempts[place]
        newest = max(steps, default=-1)
        if self.checkpoints.is_rotten(place, commit) and step > newest:
            self._seen_durable.commits[place] = newest
            return
        self.count("dropped")
        policy = self._shadow.jobs[place[0]].spec.retention
        newer = [each for each in steps if each > step]
        if policy is None or len(newer) < policy.keep_last:
            raise Violation(f"P1: step {step} of {place} is dropped, and only {newer} are newer")
        if policy.keep_every and step % policy.keep_every == 0:
            raise Violation(f"P1: step {step} of {place} is dropped, and is one of every {policy.keep_every}")

    def batch_done(self, state: State, store: MemoryStore) -> None:
        """Between two batches store and memory agree."""
        if store.load(state.settings) != state:
            raise Violation("load(store) is not the state between two batches")
        try:
            validate_history(state, store)
        except AssertionError as error:
            raise Violation(f"P1: {error}") from error

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
            case NoteReport(key, ReportKind.CORRUPT, step):
                row, job = durable.workers.get((key.job_id, key.rank)), durable.jobs.get(key.job_id)
                if row is None or job is None or job.ending is not None:
                    return
                gang = durable.gangs[key.job_id, row.gang]
                if gang.commit is not None and (gang.attempt, gang.commit.step) == (key.attempt, step):
                    raise Violation(f"P3: {key} is told that step {step} is set aside, and it is not")
            case AckCommit(job_id, attempt, step, ranks, _, drop):
                for rank in ranks:
                    gang = durable.workers[job_id, rank].gang
                    if not self.was_durable((job_id, gang), step, attempt):
                        raise Violation(f"P3: step {step} of {job_id}/{gang} is acked before it is durable")
                    kept = [old for old in drop if old in self.commits[job_id, gang]]
                    if kept:
                        raise Violation(
                            f"P1: the files of {kept} of {job_id}/{gang}, which are kept, are to go"
                        )
            case StartWorkers():
                for a in command.assignments:
                    row = durable.workers.get((command.job_id, a.rank))
                    if row is None or row.attempt < a.attempt:
                        raise Violation(
                            f"P3: rank {a.rank} of {command.job_id} starts before that is durable"
                        )
            case AskStop(keys, _, _, step):
                for key in keys:
                    row = durable.workers.get((key.job_id, key.rank))
                    stop = durable.gangs[key.job_id, row.gang].stopping if row is not None else None
                    if row is None or row.attempt != key.attempt or stop is None:
                        continue  # it has ended meanwhile
                    if step is not None and (stop.agreed, stop.step) != (True, step):
                        raise Violation(f"P3: {key} is told to stop at step {step} before that is durable")
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
            restarted = job.restarts_asked  # since then
            if job.desired is not Desired.STOPPED and job.state not in TERMINAL and not restarted:
                raise Violation(f"P3: the stop of {event.job_id} is acknowledged and not durable")
        asked = durable.jobs[event.job_id].restarts_asked if isinstance(event, JobRestartRequested) else ()
        if isinstance(event, JobRestartRequested) and event.request_id not in asked:
            raise Violation(f"P3: the restart of {event.job_id} is acknowledged and not durable")

    def count(self, what: str, by: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + by
