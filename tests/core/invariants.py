"""What holds of every state, whatever happened: checked after every event in these tests and in the simulation."""

from dataclasses import dataclass, field

from holdfast_coordinator.core.commit import MOST_PREPARED
from holdfast_coordinator.core.events import CheckpointReported, Event
from holdfast_coordinator.core.model import (
    LIVE,
    TERMINAL,
    Commit,
    Gang,
    Job,
    JobState,
    NodeState,
    ReportKind,
    Worker,
    WorkerState,
)
from holdfast_coordinator.core.state import State
from holdfast_coordinator.store.memory import MemoryStore


def validate(state: State) -> None:
    """Raise AssertionError with a sentence when the rows contradict each other."""
    _indexes(state)
    assert len(state.workers) == sum(job.spec.world_size for job in state.jobs.values()), "stray worker rows"
    for job in state.jobs.values():
        _job(state, job)
    for node in state.nodes.values():
        _node(state, node)
    _ports(state)
    for held in (held for of_rank in state.prepared.values() for held in of_rank.values()):
        job_id, rank = held.job_id, held.rank
        gang = state.gangs[job_id, held.gang]
        assert len(state.prepared[job_id, rank]) <= MOST_PREPARED, "a rank holds too much"
        about = f"the prepared shard of rank {rank} of {job_id}"
        assert state.jobs[job_id].state not in TERMINAL, f"{about} outlives its job"
        assert held.attempt == gang.attempt, f"{about} is of a superseded attempt"
        assert gang.commit is None or held.step > gang.commit.step, f"{about} is older than the commit"


def _indexes(state: State) -> None:
    again = State(state.settings, state.epoch, state.next_seq)
    for row in state.rows():
        again.put(row)
    assert again == state, "the indexes do not follow from the rows"


def _job(state: State, job: Job) -> None:
    workers = state.workers_of(job)
    live = [worker for worker in workers if worker.state in LIVE]
    for gang in state.gangs_of(job):
        _gang(state, job, gang, state.members(gang))
    if job.state in TERMINAL:
        assert not live, f"{job.id} has ended and has live workers"
        assert job.finished_ms, f"{job.id} has ended at no time"
        waiting = [worker for worker in workers if worker.state is WorkerState.WAITING]
        assert not waiting, f"{job.id} has ended and has waiting workers"
        succeeded = all(worker.state is WorkerState.SUCCEEDED for worker in workers)
        assert (job.state is JobState.SUCCEEDED) <= succeeded, f"{job.id} succeeded without all its workers"
        return
    if job.ending is not None:
        assert live, f"{job.id} is to end, has no live worker and does not end"
        assert job.state is JobState.STOPPING, f"{job.id} is to end and is {job.state}"
        assert all(worker.state is WorkerState.STOPPING for worker in live), f"{job.id} spares a worker"
        return
    if job.state is JobState.RUNNING:
        up = {WorkerState.RUNNING, WorkerState.SUCCEEDED}
        assert all(worker.state in up for worker in workers), f"{job.id} is running without all its workers"
    if job.state is JobState.PENDING:
        assert not live, f"{job.id} is pending and has live workers"
    assert any(w.state is not WorkerState.SUCCEEDED for w in workers), f"{job.id} has succeeded and goes on"


def _gang(state: State, job: Job, gang: Gang, members: list[Worker]) -> None:
    about = f"gang {gang.index} of {job.id}"
    for worker in members:
        assert worker.attempt <= gang.attempt, f"{about}: rank {worker.rank} is ahead of its gang"
        if worker.state in LIVE:
            assert worker.node in state.nodes, f"{about}: rank {worker.rank} runs on no known node"
        assert worker.hang is None or worker.state in LIVE, f"{about}: rank {worker.rank} is gone and hangs"
        if worker.state in LIVE and worker.attempt == gang.attempt:
            assert worker.node not in gang.excluded, f"{about}: rank {worker.rank} is on an excluded node"
        if worker.state in LIVE and worker.attempt < gang.attempt:
            assert worker.state is WorkerState.STOPPING, (
                f"{about}: rank {worker.rank} is superseded and let be"
            )
    if job.state not in TERMINAL and job.ending is None:
        behind = [worker for worker in members if worker.attempt < gang.attempt]
        assert not behind or any(w.state in LIVE for w in behind), f"{about} is not renewed"
        states = {worker.state for worker in members}
        waits = WorkerState.WAITING in states
        assert not waits or states == {WorkerState.WAITING}, f"{about} is placed in part: {sorted(states)}"
        failed = WorkerState.FAILED in states or WorkerState.LOST in states
        assert not failed or behind, f"{about} has a dead rank and is not superseded"
    _checkpoints(about, job, gang)
    _stopping(about, job, gang, members)
    if gang.commit is not None:
        ranks = [worker.rank for worker in members]
        assert [shard.rank for shard in gang.commit.shards] == ranks, (
            f"{about}: a commit of some of its ranks"
        )
        assert gang.commit.attempt <= gang.attempt, f"{about}: a commit of an attempt that is yet to come"


def _stopping(about: str, job: Job, gang: Gang, members: list[Worker]) -> None:
    stop = gang.stopping
    if stop is None:
        return
    live = [worker for worker in members if worker.state in LIVE]
    assert job.state not in TERMINAL, f"{about} is to stop, and its job has ended"
    assert live, f"{about} is to stop, and nothing of it runs"
    assert all(worker.state is WorkerState.STOPPING for worker in live), f"{about}: a rank was not asked"
    assert stop.term_ms <= stop.kill_ms, f"{about} is killed before it is signalled"
    if stop.signalled:
        return
    assert not any(worker.attempt < gang.attempt for worker in live), (
        f"{about} is superseded, and not signalled"
    )
    said = [worker.stop_at for worker in members if worker.stop_at is not None]
    assert (len(said), max(said, default=-1)) == (stop.answers, stop.step), f"{about}: {said} is not {stop}"
    assert stop.agreed == (len(said) == len(members)), f"{about}: agreed without all, or not with all"


def _checkpoints(about: str, job: Job, gang: Gang) -> None:
    newest = gang.commit.step if gang.commit is not None else -1
    kept, pinned = [each.step for each in gang.kept], [pin.step for pin in gang.pins]
    for what, steps in (("kept", kept), ("pinned", pinned)):
        assert steps == sorted(set(steps)), f"{about}: the {what} steps {steps} are in no order"
        assert all(step <= newest for step in steps), f"{about}: {what} is what was never committed: {steps}"
    assert job.spec.retention is not None or not kept, f"{about} decides about checkpoints without a policy"
    assert len(set(gang.dropping)) == len(gang.dropping), f"{about} drops a step twice: {gang.dropping}"
    still_kept = {*kept, *pinned, newest} & set(gang.dropping)
    assert not still_kept, f"{about} keeps step {still_kept} and has its files deleted"
    names = [pin.name for pin in gang.pins]
    assert len(set(names)) == len(names), f"{about} gave a name twice: {names}"


def validate_history(state: State, store: MemoryStore) -> None:
    """Raise AssertionError when the history that a store keeps is another than the one that the state knows of."""
    history: dict[tuple[str, int], dict[int, Commit]] = {}
    for (job_id, step, gang), commit in store._commits.items():
        history.setdefault((job_id, gang), {})[step] = commit
    for key, gang in state.gangs.items():
        steps = history.pop(key, {})
        newest = steps[max(steps)] if steps else None
        assert gang.commit == newest, (
            f"the newest commit of {key} is {newest} in the store, {gang.commit} here"
        )
        known = {*(each.step for each in gang.kept), *(pin.step for pin in gang.pins)}
        assert known <= steps.keys(), f"the store has not the steps {known - steps.keys()} of {key}"
        assert not steps.keys() & set(gang.dropping), f"{key}: the store keeps what is being deleted"
    assert not history, f"commits of no job are left: {list(history)}"


def proven_corrupt(state: State, event: Event) -> tuple[str, int] | None:
    """The gang whose newest commit an event proves corrupt: a live rank of its own attempt says that it is."""
    if not isinstance(event, CheckpointReported) or event.kind is not ReportKind.CORRUPT:
        return None
    node, worker = state.nodes.get(event.node), state.workers.get((event.key.job_id, event.key.rank))
    if node is None or node.session != event.session or worker is None or worker.state not in LIVE:
        return None
    gang = state.gangs[worker.job_id, worker.gang]
    own = worker.key == event.key and worker.node == event.node and gang.attempt == worker.attempt
    newest = gang.commit.step if gang.commit is not None else None
    return (gang.job_id, gang.index) if own and newest == event.step else None


def _node(state: State, node) -> None:
    live = state.live_on(node.name)
    if node.cordon is not None and node.cordon.draining:
        assert all(worker.state is WorkerState.STOPPING for worker in live), (
            f"node {node.name} is drained, and lets be what runs there"
        )
        assert live or node.strays, f"node {node.name} is empty and not drained"
    if node.state is NodeState.LOST:
        assert not live, f"node {node.name} is lost and has live workers"
        assert not node.session, f"node {node.name} is lost and has a session"
    assert bool(node.lost_ms) is (node.state is NodeState.LOST), (
        f"node {node.name} is {node.state} since when?"
    )
    assert node.state is not NodeState.READY or node.session, f"node {node.name} is ready without a session"
    needs = [state.jobs[worker.job_id].spec.resources for worker in live]
    room = node.capacity
    assert len(live) <= room.slots, f"node {node.name} has more workers than slots"
    assert sum(need.cpus for need in needs) <= room.cpus + 1e-6, f"node {node.name} has too few cpus"
    assert sum(need.memory_bytes for need in needs) <= room.memory_bytes, (
        f"node {node.name}: too little memory"
    )
    gpus = [gpu for worker in live for gpu in worker.gpus]
    assert len(gpus) == len(set(gpus)), f"node {node.name} gave a gpu twice"
    assert all(gpu in range(room.gpus) for gpu in gpus), f"node {node.name} gave a gpu that it has not"
    locals_ = [(worker.job_id, worker.local_rank) for worker in live]
    assert len(locals_) == len(set(locals_)), f"node {node.name} gave a local rank twice"


def _ports(state: State) -> None:
    masters = [
        (gang.master_addr, gang.master_port)
        for gang in state.gangs.values()
        if gang.master_port
        and any(w.state in LIVE and w.attempt == gang.attempt for w in state.members(gang))
    ]
    assert len(masters) == len(set(masters)), f"two gangs are to meet at one of {masters}"


@dataclass
class Monotone:
    """What only ever moves one way, held from event to event."""

    commits: dict[tuple[str, int], int] = field(default_factory=dict)
    attempts: dict[tuple[str, int], int] = field(default_factory=dict)
    ended: dict[str, JobState] = field(default_factory=dict)

    def set_aside(self, key: tuple[str, int], before: Commit | None, state: State) -> None:
        """The newest commit of a gang proved corrupt. That alone brings an older one back: the newest before it (P1).

        And with it a new attempt, so that no rank goes on from what the others no longer resume from.
        """
        gang = state.gangs[key]
        assert gang.commit == before, f"{key} goes back to {gang.commit}; the newest sound commit is {before}"
        goes_on = state.jobs[key[0]].ending is None
        assert not goes_on or gang.attempt > self.attempts.get(key, 1), (
            f"{key} goes back, and its attempt goes on"
        )
        self.commits[key] = before.step if before is not None else -1

    def revived(self, job_id: str) -> None:
        """Its user wants it to go on: that alone brings back a job that has ended, and none that has succeeded."""
        if self.ended.get(job_id) is not JobState.SUCCEEDED:
            self.ended.pop(job_id, None)

    def check(self, state: State) -> None:
        for key, gang in state.gangs.items():
            step = gang.commit.step if gang.commit else -1
            assert step >= self.commits.get(key, -1), f"the commit of {key} went back to step {step}"
            assert gang.attempt >= self.attempts.get(key, 1), f"the attempt of {key} went back"
            self.commits[key], self.attempts[key] = step, gang.attempt
        for job_id, job in state.jobs.items():
            before = self.ended.get(job_id)
            assert before is None or before is job.state, f"{job_id} was {before} and is {job.state}"
            if job.state in TERMINAL:
                self.ended[job_id] = job.state
