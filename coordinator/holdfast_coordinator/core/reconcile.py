"""Brings what is observed of a job nearer to what is desired of it.

Level-triggered: it looks at the rows alone, never at the event that changed them, so that a message lost on
the way is made good whenever the job is looked at again.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from holdfast_coordinator.core import account, exclusion, placement, stopping
from holdfast_coordinator.core.effects import Assignment, JobOver, StartWorkers
from holdfast_coordinator.core.fence import stop_live, tell_of_end, tell_of_start
from holdfast_coordinator.core.jobspec import Scope
from holdfast_coordinator.core.model import (
    DEAD,
    LIVE,
    TERMINAL,
    Gang,
    Job,
    JobState,
    Straggler,
    Worker,
    WorkerState,
)
from holdfast_coordinator.core.turn import Turn

_NOT_UP = (WorkerState.STARTING, WorkerState.WAITING, WorkerState.STOPPING, *sorted(DEAD))
_UNSTOPPED = (WorkerState.STARTING, WorkerState.RUNNING)
_RESTARTING = (WorkerState.WAITING, WorkerState.STOPPING, *sorted(DEAD))


def settle(turn: Turn, job_id: str, gangs: Collection[int]) -> None:
    """Stop what has to stop, and renew those of the gangs whose superseded attempt is gone."""
    job = turn.state.jobs.get(job_id)
    if job is None or job.state in TERMINAL:
        return
    for index in gangs:
        stopping.follow(turn, job, turn.state.gangs[job_id, index])
    if job.ending is not None:
        if job.ending is not JobState.STOPPED:
            stopping.end_with(turn, job)
        if _any(turn.state.tallies[job_id], _UNSTOPPED):
            stop_live(turn, turn.state.workers_of(job), force=job.force, reason=job.reason)
        return
    for index in gangs:
        gang = turn.state.gangs[job_id, index]
        _renew(turn, job, gang)
        if gang.broke_ms and not _any(turn.state.gang_tallies[job_id, index], _NOT_UP):
            tell_of_start(turn, gang)


def _renew(turn: Turn, job: Job, gang: Gang) -> None:
    if not _superseded(turn, job, gang):
        return
    tally = turn.state.gang_tallies[job.id, gang.index]
    if _any(tally, _UNSTOPPED):
        stop_live(turn, turn.state.members(gang), force=False, reason=gang.cause, restart=True)
    if _any(tally, LIVE):
        return
    committed = gang.commit.step if gang.commit else None
    best = gang.best_step if committed is None else max(gang.best_step, committed)
    cause, redone = tell_of_end(turn, gang), 0
    for worker in turn.state.members(gang):
        step = worker.progress.step
        best = best if step is None else max(best, step)
        closed = account.close_attempt(worker, committed)
        redone = max(redone, closed.account.steps_redone - worker.account.steps_redone)
        turn.put(
            replace(
                closed,
                state=WorkerState.WAITING,
                attempt=gang.attempt,
                pid=0,
                pid_start=0,
                gpus=(),
                stop_at=None,
            )
        )
    renewed = replace(gang, best_step=best, cause=cause, redone=redone, stopping=None)
    if renewed != gang:
        turn.put(renewed)


def _superseded(turn: Turn, job: Job, gang: Gang) -> bool:
    """Whether the attempt of the gang's workers is over. They are renewed together, so that one tells of all."""
    first = gang.index if job.spec.restart.scope is Scope.RANK else 0
    return turn.state.workers[job.id, first].attempt < gang.attempt


def _any(tally: Mapping[WorkerState, int], states: Iterable[WorkerState]) -> bool:
    return any(tally[state] for state in states)


def place_waiting(turn: Turn) -> None:
    """Place every gang that waits and may start, oldest job first."""
    state = turn.state
    for job_id in sorted(state.waiting, key=lambda job_id: (state.jobs[job_id].created_ms, job_id)):
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


def _end_backoff(turn: Turn, gang: Gang) -> None:
    """Forget a backoff that is over, or `step.deadline` would ask for it again and again while there is no room."""
    if 0 < gang.not_before_ms <= turn.at:
        turn.put(replace(gang, not_before_ms=0))


def _ready(turn: Turn, gang: Gang) -> bool:
    tally = turn.state.gang_tallies[gang.job_id, gang.index]
    return not gang.not_before_ms and tally[WorkerState.WAITING] == tally.total()


def _place(turn: Turn, job: Job, gangs: list[Gang]) -> None:
    state = turn.state
    ranks = [worker for gang in gangs for worker in state.members(gang)]
    rooms = placement.rooms(state, {name for gang in gangs for name in gang.excluded})
    spots, shortage = placement.place(ranks, job.spec.resources, rooms)
    if not spots:
        excluded = exclusion.named(gangs)
        if excluded and not rooms:
            shortage = "no other node is ready"
        _note_shortage(turn, job, gangs, "; ".join(filter(None, (shortage, excluded))))
        return
    if job.spec.restart.scope is Scope.GANG and not _reserve_port(turn, gangs[0], spots[0].node):
        _note_shortage(turn, job, gangs, placement.no_port(spots[0].node))
        return
    for gang in gangs:
        _end_shortage(turn, turn.state.gangs[gang.job_id, gang.index])
    _assign(turn, job, spots)
    for name in sorted({spot.node for spot in spots}):
        started = [state.workers[job.id, spot.rank] for spot in spots if spot.node == name]
        turn.send(name, start_command(turn, job, started))


def _end_shortage(turn: Turn, gang: Gang) -> None:
    """Count how long there was no room for a gang."""
    if gang.short_since_ms:
        for worker in turn.state.members(gang):
            turn.put(account.waited(worker, turn.at - gang.short_since_ms))
        turn.put(replace(gang, short_since_ms=0))


def _note_shortage(turn: Turn, job: Job, gangs: Iterable[Gang], shortage: str) -> None:
    """Say why the job waits; once on the timeline, though the numbers in the reason follow the fleet."""
    reason = placement.waits(turn.state, shortage)
    if not turn.state.jobs[job.id].reason.startswith("waits for room"):
        turn.tell("JobWaiting", reason, job_id=job.id)
    turn.put(replace(turn.state.jobs[job.id], reason=reason))
    for each in gangs:
        gang = turn.state.gangs[each.job_id, each.index]
        if not gang.short_since_ms:
            turn.put(replace(gang, short_since_ms=turn.at))


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
        strikes = worker.straggler.strikes if worker.node == spot.node else 0
        turn.put(
            replace(
                worker,
                straggler=Straggler(strikes=strikes),
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
    tally = turn.state.tallies[job_id]
    if job.ending is not None:
        if _any(tally, LIVE):
            turn.put(replace(job, state=JobState.STOPPING))
        else:
            saved = _saved(turn, job) if job.ending is JobState.STOPPED else ""
            _end(turn, job, job.ending, f"{job.reason}{saved}")
    elif tally[WorkerState.SUCCEEDED] == tally.total():
        _end(turn, job, JobState.SUCCEEDED, _success(turn.state.workers_of(job)))
    else:
        state, reason = _unfinished(turn, job, tally)
        turn.put(replace(job, state=state, reason=reason))


def _success(workers: list[Worker]) -> str:
    ignored = [str(w.rank) for w in workers if w.exit is not None and (w.exit.code or w.exit.signal)]
    if not ignored:
        return "every rank exited with code 0"
    ranks = f"rank {ignored[0]} is" if len(ignored) == 1 else f"{len(ignored)} ranks are"
    return f"every rank has finished; {ranks} taken as such by a rule of the spec"


def _saved(turn: Turn, job: Job) -> str:
    """What a job that was stopped has lost, if that is nothing."""
    last = {worker.progress.step for worker in turn.state.workers_of(job)}
    gangs = turn.state.gangs_of(job)
    whole = all(
        gang.commit is not None
        and gang.commit.step == worker.progress.step
        and worker.state is not WorkerState.LOST  # of which nobody knows how far it came
        for gang in gangs
        for worker in turn.state.members(gang)
    )
    if not whole:
        return ""
    return (
        f" at step {last.pop()}, which is committed"
        if len(last) == 1
        else ", each rank at a step that is committed"
    )


def _unfinished(turn: Turn, job: Job, tally: Counter[WorkerState]) -> tuple[JobState, str]:
    """The state of a job that goes on, and why."""
    up, world = tally[WorkerState.RUNNING], tally.total()
    if not _any(tally, _RESTARTING):
        if tally[WorkerState.STARTING]:
            return JobState.STARTING, f"{up} of {world} workers are up"
        tail = f", {world - up} finished" if up < world else ""
        return JobState.RUNNING, f"{up} of {world} workers are up{tail}"
    gangs = turn.state.gangs_of(job)
    superseded = [gang for gang in gangs if _superseded(turn, job, gang)]
    waiting = [gang for gang in gangs if turn.state.gang_tallies[job.id, gang.index][WorkerState.WAITING]]
    if superseded:
        return JobState.RESTARTING, superseded[0].cause
    for gang in gangs:
        if gang.stopping is not None:
            return JobState.RESTARTING, gang.stopping.cause
    if any(gang.not_before_ms > turn.at for gang in waiting):
        return JobState.RESTARTING, waiting[0].cause
    # Nothing holds it back but the room for it.
    idle = tally[WorkerState.WAITING] + tally[WorkerState.SUCCEEDED] == world
    return (JobState.PENDING if idle else JobState.RESTARTING), job.reason


def _end(turn: Turn, job: Job, state: JobState, reason: str) -> None:
    for gang in turn.state.gangs_of(job):
        _end_shortage(turn, gang)
        if state is JobState.FAILED:
            tell_of_end(turn, gang)
        now = turn.state.gangs[job.id, gang.index]
        if now.stopping is not None:
            turn.put(replace(now, stopping=None))
        committed = gang.commit.step if gang.commit else None
        for worker in turn.state.members(gang):
            closed = account.close_attempt(worker, committed)
            if worker.state is WorkerState.WAITING:
                closed = replace(closed, state=WorkerState.STOPPED)
            turn.put(closed)
            for held in turn.state.held_by(job.id, worker.rank):
                turn.delete(held)
    if job.spec.preload:
        for name in sorted({name for worker in turn.state.workers_of(job) for name in worker.homes}):
            turn.send(name, JobOver(job.id))
    turn.put(replace(job, state=state, reason=reason, finished_ms=turn.at))
    turn.tell(f"Job{state.capitalize()}", reason, job_id=job.id)
