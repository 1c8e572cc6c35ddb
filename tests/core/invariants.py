"""What holds of every state, whatever happened: checked after every event in these tests and in the simulation."""

from dataclasses import dataclass, field

from holdfast_coordinator.core.model import (
    LIVE,
    TERMINAL,
    Gang,
    Job,
    JobState,
    NodeState,
    Worker,
    WorkerState,
)
from holdfast_coordinator.core.state import State


def validate(state: State) -> None:
    """Raise AssertionError with a sentence when the rows contradict each other."""
    _indexes(state)
    assert len(state.workers) == sum(job.spec.world_size for job in state.jobs.values()), "stray worker rows"
    for job in state.jobs.values():
        _job(state, job)
    for node in state.nodes.values():
        _node(state, node)
    _ports(state)
    for (job_id, rank), held in state.prepared.items():
        gang = state.gangs[job_id, held.gang]
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
    if gang.commit is not None:
        ranks = [worker.rank for worker in members]
        assert [shard.rank for shard in gang.commit.shards] == ranks, (
            f"{about}: a commit of some of its ranks"
        )
        assert gang.commit.attempt <= gang.attempt, f"{about}: a commit of an attempt that is yet to come"


def _node(state: State, node) -> None:
    live = state.live_on(node.name)
    if node.state is NodeState.LOST:
        assert not live, f"node {node.name} is lost and has live workers"
        assert not node.session, f"node {node.name} is lost and has a session"
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
