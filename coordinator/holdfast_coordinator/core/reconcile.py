"""Brings what is observed of a job nearer to what is desired of it.

Level-triggered: it looks at the rows alone, never at the event that changed them, so that a message lost on
the way is made good whenever the job is looked at again.
"""

from dataclasses import replace

from holdfast_coordinator.core import account, placement
from holdfast_coordinator.core.effects import Assignment, StartWorkers, StopWorkers
from holdfast_coordinator.core.model import (
    LIVE,
    TERMINAL,
    Gang,
    Job,
    JobState,
    Scope,
    Worker,
    WorkerState,
)
from holdfast_coordinator.core.turn import Turn


def settle(turn: Turn, job_id: str) -> None:
    """Stop what has to stop, and renew the gangs whose superseded attempt is gone."""
    job = turn.state.jobs.get(job_id)
    if job is None or job.state in TERMINAL:
        return
    if job.ending is not None:
        stop_live(turn, turn.state.workers_of(job), force=job.force, reason=job.reason)
        return
    for gang in turn.state.gangs_of(job):
        _renew(turn, gang)


def _renew(turn: Turn, gang: Gang) -> None:
    old = [worker for worker in turn.state.members(gang) if worker.attempt < gang.attempt]
    stop_live(turn, old, force=False, reason=gang.cause)
    if any(turn.state.workers[w.job_id, w.rank].state in LIVE for w in old):
        return
    if not old:
        return
    committed = gang.commit.step if gang.commit else None
    best = gang.best_step if committed is None else max(gang.best_step, committed)
    for worker in old:
        step = worker.progress.step
        best = best if step is None else max(best, step)
        closed = account.close_attempt(worker, committed)
        turn.put(
            replace(closed, state=WorkerState.WAITING, attempt=gang.attempt, pid=0, pid_start=0, gpus=())
        )
    if best != gang.best_step:
        turn.put(replace(gang, best_step=best))


def stop_live(turn: Turn, workers: list[Worker], *, force: bool, reason: str, again: bool = False) -> None:
    """Tell the live ones among the workers to stop; those that were told before only `again`."""
    by_node: dict[str, list[Worker]] = {}
    for worker in workers:
        if worker.state in LIVE and (again or worker.state is not WorkerState.STOPPING):
            by_node.setdefault(worker.node, []).append(worker)
    for node, there in sorted(by_node.items()):
        turn.send(node, StopWorkers(tuple(w.key for w in there), force, reason))
        for worker in there:
            turn.put(replace(worker, state=WorkerState.STOPPING))


def place_waiting(turn: Turn) -> list[str]:
    """Place every gang that waits and may start, oldest job first; return the ids of the jobs it looked at."""
    state = turn.state
    looked = sorted(state.waiting, key=lambda job_id: (state.jobs[job_id].created_ms, job_id))
    for job_id in looked:
        job = state.jobs[job_id]
        if job.ending is not None:
            continue
        for gang in state.gangs_of(job):
            _end_backoff(turn, gang)
        ready = [gang for gang in state.gangs_of(job) if _ready(turn, gang)]
        # A job starts whole or not at all; once it has, each gang comes back as soon as there is room for it.
        requests = [[gang] for gang in ready] if job.started_ms else [ready]
        for gangs in requests:
            if gangs:
                _place(turn, job, gangs)
    return looked


def _end_backoff(turn: Turn, gang: Gang) -> None:
    """Forget a backoff that is over, or `step.deadline` would ask for it again and again while there is no room."""
    if 0 < gang.not_before_ms <= turn.at:
        turn.put(replace(gang, not_before_ms=0))


def _ready(turn: Turn, gang: Gang) -> bool:
    return not gang.not_before_ms and all(
        worker.state is WorkerState.WAITING for worker in turn.state.members(gang)
    )


def _place(turn: Turn, job: Job, gangs: list[Gang]) -> None:
    state = turn.state
    ranks = [worker for gang in gangs for worker in state.members(gang)]
    rooms = [
        placement.Room.of(node, [(w, state.jobs[w.job_id].spec.resources) for w in state.live_on(node.name)])
        for node in state.nodes.values()
        if placement.usable(node)
    ]
    spots, shortage = placement.place(ranks, job.spec.resources, rooms)
    if not spots:
        _note_shortage(turn, job, shortage)
        return
    if job.spec.restart.scope is Scope.GANG and not _reserve_port(turn, gangs[0], spots[0].node):
        _note_shortage(turn, job, f"node {spots[0].node} has no free port to offer yet")
        return
    _assign(turn, job, spots)
    for name in sorted({spot.node for spot in spots}):
        started = [state.workers[job.id, spot.rank] for spot in spots if spot.node == name]
        turn.send(name, start_command(turn, job, started))


def _note_shortage(turn: Turn, job: Job, shortage: str) -> None:
    """Say why the job waits; once on the timeline, though the numbers in the reason follow the fleet."""
    reason = f"waits for room: {shortage}"
    if not turn.state.jobs[job.id].reason.startswith("waits for room"):
        turn.tell("JobWaiting", reason, job_id=job.id)
    turn.put(replace(turn.state.jobs[job.id], reason=reason))


def _reserve_port(turn: Turn, gang: Gang, master: str) -> bool:
    """Take a port that the master's agent holds free: a new one for every attempt, never a reused one."""
    node = turn.state.nodes[master]
    if not node.ports:
        return False
    turn.put(replace(node, ports=node.ports[1:]))
    turn.put(replace(gang, master_addr=node.address, master_port=node.ports[0]))
    return True


def _assign(turn: Turn, job: Job, spots: tuple[placement.Spot, ...]) -> None:
    state = turn.state
    groups = list(dict.fromkeys(spot.node for spot in spots))
    taken: dict[str, set[int]] = {
        name: {w.local_rank for w in state.live_on(name) if w.job_id == job.id} for name in groups
    }
    sizes = {name: len(taken[name]) + sum(spot.node == name for spot in spots) for name in groups}
    for spot in spots:
        local = next(n for n in range(job.spec.world_size) if n not in taken[spot.node])
        taken[spot.node].add(local)
        worker = state.workers[job.id, spot.rank]
        gang = state.gangs[job.id, worker.gang]
        turn.put(
            replace(
                worker,
                state=WorkerState.STARTING,
                node=spot.node,
                homes=tuple(dict.fromkeys((*worker.homes, spot.node))),
                local_rank=local,
                local_world_size=sizes[spot.node],
                group_rank=groups.index(spot.node),
                gpus=spot.gpus,
                resume_step=gang.commit.step if gang.commit else None,
                started_ms=turn.at,
            )
        )


def start_command(turn: Turn, job: Job, workers: list[Worker]) -> StartWorkers:
    """Build the command that starts these workers, all on one node."""
    state = turn.state
    gangs = {w.gang: state.gangs[job.id, w.gang] for w in workers}
    first = next(iter(gangs.values()))
    # Every worker sees all of its gang's GPUs on the node in order of local rank, as under torchrun, so that
    # `set_device(local_rank)` is right; those of the ones that run already, too.
    visible: dict[int, list[int]] = {}
    there = [w for w in state.live_on(workers[0].node) if w.job_id == job.id and w.gang in gangs]
    for worker in sorted(there, key=lambda w: w.local_rank):
        visible.setdefault(worker.gang, []).extend(worker.gpus)
    return StartWorkers(
        job_id=job.id,
        spec=job.spec,
        assignments=tuple(
            Assignment(
                rank=w.rank,
                attempt=w.attempt,
                local_rank=w.local_rank,
                local_world_size=w.local_world_size,
                group_rank=w.group_rank,
                gpus=tuple(visible[w.gang]),
                restart_count=gangs[w.gang].restarts,
            )
            for w in workers
        ),
        master_addr=first.master_addr,
        master_port=first.master_port,
        resume=tuple(gang.commit for gang in gangs.values() if gang.commit),
    )


def observe(turn: Turn, job_id: str) -> None:
    """Bring the job's own state up to date with its workers'."""
    job = turn.state.jobs.get(job_id)
    if job is None or job.state in TERMINAL:
        return
    workers = turn.state.workers_of(job)
    live = [w for w in workers if w.state in LIVE]
    if job.ending is not None:
        if live:
            turn.put(replace(job, state=JobState.STOPPING))
        else:
            _end(turn, job, job.ending, job.reason)
        return
    if all(w.state is WorkerState.SUCCEEDED for w in workers):
        _end(turn, job, JobState.SUCCEEDED, "every rank exited with code 0")
        return
    state, reason = _running_state(turn, job, workers)
    turn.put(replace(job, state=state, reason=reason))


def _running_state(turn: Turn, job: Job, workers: list[Worker]) -> tuple[JobState, str]:
    gangs = turn.state.gangs_of(job)
    waiting = [gangs[w.gang] for w in workers if w.state is WorkerState.WAITING]
    stopping = [gangs[w.gang] for w in workers if w.attempt < gangs[w.gang].attempt]
    up = sum(w.state is WorkerState.RUNNING for w in workers)
    if waiting and all(gang.not_before_ms <= turn.at for gang in waiting):
        if len(waiting) + sum(w.state is WorkerState.SUCCEEDED for w in workers) == len(workers):
            return JobState.PENDING, job.reason
        return JobState.RESTARTING, job.reason
    if waiting or stopping:
        return JobState.RESTARTING, (stopping or waiting)[0].cause
    if any(w.state is WorkerState.STARTING for w in workers):
        return JobState.STARTING, f"{up} of {len(workers)} workers are up"
    finished = len(workers) - up
    tail = f", {finished} finished" if finished else ""
    return JobState.RUNNING, f"{up} of {len(workers)} workers are up{tail}"


def _end(turn: Turn, job: Job, state: JobState, reason: str) -> None:
    for gang in turn.state.gangs_of(job):
        committed = gang.commit.step if gang.commit else None
        for worker in turn.state.members(gang):
            closed = account.close_attempt(worker, committed)
            if worker.state is WorkerState.WAITING:
                closed = replace(closed, state=WorkerState.STOPPED)
            turn.put(closed)
            held = turn.state.prepared.get((job.id, worker.rank))
            if held is not None:
                turn.delete(held)
    turn.put(replace(job, state=state, reason=reason, finished_ms=turn.at))
    turn.tell(f"Job{state.capitalize()}", reason, job_id=job.id)
