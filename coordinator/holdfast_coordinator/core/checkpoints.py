"""What happens to checkpoints: prepared, committed, set aside, drained, dropped, pinned.

The state holds the newest commit of each gang and the few others that a policy has to decide about; the whole
history is the store's. An event that needs a commit of it brings it along: the engine looks it up, as `lookup` says,
when everything that came before the event is durable.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from holdfast_coordinator.core import account, commit, restart, retention
from holdfast_coordinator.core.effects import AckCommit, NoteReport, Problem, Refusal, RefuseShard
from holdfast_coordinator.core.events import (
    CheckpointDeleteRequested,
    CheckpointPinRequested,
    CheckpointReported,
    CheckpointRequest,
    Event,
    ShardPrepared,
)
from holdfast_coordinator.core.fence import supersede
from holdfast_coordinator.core.model import (
    LIVE,
    TERMINAL,
    Commit,
    Gang,
    Job,
    Kept,
    Pin,
    Prepared,
    ReportKind,
    Shard,
)
from holdfast_coordinator.core.state import State
from holdfast_coordinator.core.turn import Turn

MOST_PINS = 100
"""Of one gang: its row is written with every commit."""
MOST_DROPPING = 1_000
"""Of one gang: steps whose files are still to be deleted, should no worker ever manage to."""
DROPS_A_MESSAGE = 100


# What an event needs of the history


@dataclass(frozen=True, slots=True)
class Lookup:
    """The newest commit of a gang at or below a step."""

    job_id: str
    gang: int
    upto: int


def asks_history(event: Event) -> bool:
    """Tell whether `lookup` has to be asked before the event is stepped."""
    if isinstance(event, CheckpointReported):
        return event.kind is ReportKind.CORRUPT
    return isinstance(event, CheckpointRequest)


def lookup(state: State, event: Event) -> Lookup | None:
    """Say what the event needs of the history, as its field `kept`."""
    match event:
        case CheckpointReported(kind=ReportKind.CORRUPT, step=step):
            gang = _gang_of_live(state, event)
            if gang is None or gang.commit is None or step > gang.commit.step:
                return None
            return Lookup(gang.job_id, gang.index, step - 1 if step == gang.commit.step else step)
        case CheckpointDeleteRequested() | CheckpointPinRequested():
            job = state.jobs.get(event.job_id)
            found = find_gang(state, job, event.rank) if job is not None else None
            return Lookup(found.job_id, found.index, event.step) if isinstance(found, Gang) else None
    return None


# Prepared and committed


def shard_prepared(turn: Turn, event: ShardPrepared) -> None:
    """Take a rank's file; with the last one the checkpoint is committed."""
    key, state = event.key, turn.state
    worker = state.workers.get((key.job_id, key.rank))
    if worker is None or worker.node != event.node or worker.state not in LIVE:
        reason = f"rank {key.rank} of job {key.job_id} does not run on node {event.node}"
        turn.send(event.node, RefuseShard(key, event.step, reason))
        turn.drop(reason)
        return
    gang = state.gangs[key.job_id, worker.gang]
    ranks = state.ranks(gang)
    held = state.at_step.get((key.job_id, gang.index, event.step), {})
    shard = _as_drained(event.shard, held.get(key.rank))
    new = Prepared(key.job_id, gang.index, key.rank, key.attempt, event.step, shard)
    match commit.decide(gang, ranks, held, new):
        case commit.Refuse(reason):
            turn.send(event.node, RefuseShard(key, event.step, reason))
            turn.drop(reason)
        case commit.AckAgain(done):
            first = next(rank for rank in ranks if state.workers[key.job_id, rank].state in LIVE)
            drop = _asked_to_drop(gang) if key.rank == first else ()
            ack = AckCommit(key.job_id, done.attempt, done.step, (key.rank,), publish=done, drop=drop)
            turn.send(event.node, ack)
        case commit.Wait():
            _hold(turn, new)
        case commit.Complete(shards):
            turn.put(new)
            _commit(turn, gang, event.step, shards)


def _hold(turn: Turn, new: Prepared) -> None:
    """Keep what a rank prepared until the others have, too; when it is far ahead, not all of it."""
    held = turn.state.prepared.get((new.job_id, new.rank), {})
    gone = commit.superseded(held, new.step)
    if gone is not None:
        turn.delete(held[gone])
    turn.put(new)


def _as_drained(shard: Shard, before: Prepared | None) -> Shard:
    """A file that was drained meanwhile stays so, although an agent that repeats itself says what it was told first."""
    drained = before is not None and before.shard.same_file(shard) and not before.shard.local_only
    return replace(shard, local_only=False) if drained else shard


def _commit(turn: Turn, gang: Gang, at_step: int, shards: tuple[Shard, ...]) -> None:
    job = turn.state.jobs[gang.job_id]
    before = gang.commit
    done = Commit(
        job_id=job.id,
        gang=gang.index,
        step=at_step,
        attempt=gang.attempt,
        at_ms=turn.at,
        rank=turn.rank_of(gang),
        world_size=job.spec.world_size,
        shards=shards,
    )
    gang = replace(
        gang,
        commit=done,
        degraded_commits=gang.degraded_commits + done.degraded,
        # After a quarantine a step may come once more: these files are new ones.
        dropping=tuple(step for step in gang.dropping if step != at_step),
    )
    gang, made = _retain(turn, job, gang)
    turn.put(gang)
    turn.record(done)
    for rank in turn.state.ranks(gang):
        for passed in turn.state.held_by(job.id, rank):
            if passed.step < at_step:
                turn.delete(passed)
    size = sum(shard.size_bytes for shard in shards)
    turn.tell_gang("CheckpointCommitted", f"step {at_step}, {len(shards)} shards, {size} bytes", gang)
    _tell_of_degraded(turn, gang, before)
    for step in made.drops:
        turn.drop_commit(gang, step)
    if made.drops:
        turn.tell_gang("CheckpointDropped", f"step {', '.join(map(str, made.drops))}: {made.reason}", gang)
    _acknowledge(turn, gang, done)


def _acknowledge(turn: Turn, gang: Gang, done: Commit) -> None:
    """Tell every rank; last the node of the one that publishes, whose message is as long as the gang is large."""
    by_node: dict[str, list[int]] = {}
    for worker in turn.state.members(gang):
        if worker.state in LIVE:
            by_node.setdefault(worker.node, []).append(worker.rank)
    publisher = next(iter(by_node))
    publishes = tuple(by_node.pop(publisher))
    for name, ranks in by_node.items():
        turn.send(name, AckCommit(done.job_id, done.attempt, done.step, tuple(ranks), None))
    ack = AckCommit(done.job_id, done.attempt, done.step, publishes, done, _asked_to_drop(gang))
    turn.send(publisher, ack)


def _retain(turn: Turn, job: Job, gang: Gang) -> tuple[Gang, retention.Plan]:
    """Decide what the policy no longer keeps, now that there is a newer commit."""
    policy, newest = job.spec.retention, gang.commit
    if policy is None or newest is None:
        return gang, retention.Plan()
    looked_at = (*gang.kept, Kept(newest.step, retention.metric_of(policy, newest.shards[0])))
    made = retention.plan(policy, looked_at, resumed=_resumed(turn.state, gang), pinned=_pinned(gang))
    return _with_dropping(turn, replace(gang, kept=made.stays), made.drops), made


def _with_dropping(turn: Turn, gang: Gang, steps: Iterable[int]) -> Gang:
    """Have the files of these steps deleted, and give up on the oldest when that never happens."""
    dropping = (*gang.dropping, *steps)
    given_up = dropping[:-MOST_DROPPING]
    if given_up:
        left = ", ".join(map(str, given_up))
        turn.tell_gang("CheckpointFilesLeft", f"no worker could delete the files of step {left}", gang)
    return replace(gang, dropping=dropping[-MOST_DROPPING:])


def _asked_to_drop(gang: Gang) -> tuple[int, ...]:
    """Steps to ask a worker to delete the files of: only those below the commit, for others may be staged anew."""
    newest = gang.commit.step if gang.commit is not None else -1
    return tuple(step for step in gang.dropping if step < newest)[:DROPS_A_MESSAGE]


def _resumed(state: State, gang: Gang) -> set[int]:
    """The steps that live workers resumed from, and may still be reading."""
    steps = {worker.resume_step for worker in state.members(gang) if worker.state in LIVE}
    return {step for step in steps if step is not None}


def _pinned(gang: Gang) -> set[int]:
    return {pin.step for pin in gang.pins}


def _tell_of_degraded(turn: Turn, gang: Gang, before: Commit | None) -> None:
    """Say when the newest commit begins to lie on nodes alone, and when it no longer does; not of every commit."""
    now = gang.commit
    was = before is not None and before.degraded
    if now is None or was is now.degraded:
        return
    if now.degraded:
        ranks = sum(shard.local_only for shard in now.shards)
        message = f"step {now.step}: the files of {ranks} of {len(now.shards)} ranks lie on their nodes alone"
        turn.tell_gang("CheckpointDegraded", f"{message} until the storage can be reached", gang)
    else:
        turn.tell_gang("CheckpointDrained", f"step {now.step} is in the storage, all of it", gang)


# Reports


def checkpoint_reported(turn: Turn, event: CheckpointReported) -> None:
    """Take a report. It is noted whatever it says: what is stale, or was said before, changes nothing."""
    key = event.key
    turn.send(event.node, NoteReport(key, event.kind, event.step))
    live = _gang_of_live(turn.state, event)
    if event.kind in (ReportKind.SAVE_FAILED, ReportKind.CORRUPT):
        if live is None:
            turn.drop(f"{key} is no live attempt on node {event.node}")
        elif event.kind is ReportKind.CORRUPT:
            _corrupt(turn, event, live)
        elif event.step > live.failed_step:
            turn.put(replace(live, failed_step=event.step))
            worker = turn.state.workers[key.job_id, key.rank]
            turn.tell_worker("CheckpointFailed", f"step {event.step}: {event.message}", worker)
        return
    # These stay true when the worker that did it is over.
    rank = turn.state.workers.get((key.job_id, key.rank))
    gang = turn.state.gangs[key.job_id, rank.gang] if rank is not None else None
    if gang is None or key.attempt > gang.attempt:
        turn.drop(f"{key} is nobody's")
    elif event.kind is ReportKind.DRAINED:
        _drained(turn, event, gang)
    elif event.step in gang.dropping:
        turn.put(replace(gang, dropping=tuple(step for step in gang.dropping if step != event.step)))


def _gang_of_live(state: State, event: CheckpointReported) -> Gang | None:
    """The gang of the worker that reports, if it is of the gang's own attempt and alive."""
    worker = state.workers.get((event.key.job_id, event.key.rank))
    if worker is None or worker.key != event.key or worker.node != event.node or worker.state not in LIVE:
        return None
    gang = state.gangs[worker.job_id, worker.gang]
    return gang if gang.attempt == worker.attempt else None


def _corrupt(turn: Turn, event: CheckpointReported, gang: Gang) -> None:
    newest, found = gang.commit, event.kept
    if newest is not None and event.step == newest.step:
        _quarantine(turn, event, gang, newest)
    elif newest is not None and found is not None and found.step == event.step < newest.step:
        turn.drop_commit(gang, event.step)
        turn.put(_without(gang, event.step))
        _tell_of_quarantine(turn, event, f"resumed from is step {newest.step} as before")
    else:
        turn.drop(f"step {event.step} is no checkpoint that is kept")


def _quarantine(turn: Turn, event: CheckpointReported, gang: Gang, bad: Commit) -> None:
    """Set the newest commit aside, and have every rank of the gang resume from the one before it."""
    before = event.kept
    lost = bad.step - before.step if before is not None else None
    for member in turn.state.members(gang):
        turn.put(account.retract(member, lost))
    turn.drop_commit(gang, bad.step)
    gang = replace(_without(gang, bad.step), commit=before, best_step=max(gang.best_step, bad.step))
    turn.put(gang)
    instead = f"step {before.step}" if before is not None else "THE BEGINNING: no older checkpoint is kept"
    _tell_of_quarantine(turn, event, f"resumed from instead is {instead}")
    _tell_of_degraded(turn, gang, bad)
    if turn.state.jobs[gang.job_id].ending is None:
        cause = f"rank {event.key.rank}: the checkpoint of step {bad.step} failed verification"
        supersede(turn, gang, restart.after_quarantine(gang), cause)


_UNSEEN = (
    "The job has no checkpoint_uri: unless its agents use S3, a node sees only the checkpoints that it wrote itself. "
    "Give one that all nodes see"
)


def _tell_of_quarantine(turn: Turn, event: CheckpointReported, instead: str) -> None:
    worker = turn.state.workers[event.key.job_id, event.key.rank]
    message = f"step {event.step} failed verification: {event.message}; {instead}"
    if "found no file" in event.message and not turn.state.jobs[worker.job_id].spec.checkpoint_uri:
        message = f"{message}. {_UNSEEN}"
    turn.tell_worker("CheckpointQuarantined", message, worker)


def _without(gang: Gang, step: int) -> Gang:
    """The gang without a commit of its history."""
    return replace(
        gang,
        kept=tuple(each for each in gang.kept if each.step != step),
        pins=tuple(pin for pin in gang.pins if pin.step != step),
    )


def _drained(turn: Turn, event: CheckpointReported, gang: Gang) -> None:
    key, newest = event.key, gang.commit
    held = turn.state.prepared.get((key.job_id, key.rank), {}).get(event.step)
    if held is not None and held.attempt == key.attempt:
        turn.put(replace(held, shard=replace(held.shard, local_only=False)))
    if newest is None or event.step > newest.step:
        return
    if event.step == newest.step:
        if key.attempt < newest.attempt:
            turn.drop(f"step {event.step} was committed anew by attempt {newest.attempt}")
            return
        done = replace(newest, shards=tuple(_drain(shard, key.rank) for shard in newest.shards))
        if done == newest:
            return
        gang = replace(gang, commit=done)
        turn.put(gang)
        _tell_of_degraded(turn, gang, newest)
    turn.mark_drained(gang, event.step, key.rank)


def _drain(shard: Shard, rank: int) -> Shard:
    return replace(shard, local_only=False) if shard.rank == rank else shard


# Requests


def find_gang(state: State, job: Job, rank: int | None) -> Gang | Refusal:
    """The gang whose checkpoints are meant: `rank` is given where ranks commit by themselves, and nowhere else."""
    gang = state.gang_of(job, rank)
    if gang is not None:
        return gang
    if state.gang_of(job, None) is not None:
        message = f"the ranks of job {job.id} commit their checkpoints together"
        return Refusal(Problem.FAILED_PRECONDITION, message, "name no rank")
    if rank is None:
        message = f"every rank of job {job.id} commits its own checkpoints"
        return Refusal(Problem.FAILED_PRECONDITION, message, "say which rank is meant")
    message = f"job {job.id} has no rank {rank}"
    return Refusal(Problem.NOT_FOUND, message, f"its ranks are 0 to {job.spec.world_size - 1}")


def no_checkpoint(job: Job, step: int | None) -> Refusal:
    """The refusal of a request about a checkpoint that there is not."""
    which = "" if step is None else f" of step {step}"
    return Refusal(
        Problem.NOT_FOUND,
        f"job {job.id} has no checkpoint{which}",
        "list its checkpoints to see what is kept",
    )


def _asked_for(turn: Turn, event: CheckpointRequest) -> tuple[Job, Gang] | None:
    """The job and gang of the checkpoint that a request is about; None when it was refused."""
    job = turn.find_job(event.job_id)
    if job is None:
        return None
    found = find_gang(turn.state, job, event.rank)
    if isinstance(found, Gang) and event.kept is not None and event.kept.step == event.step:
        return job, found
    refusal = found if isinstance(found, Refusal) else no_checkpoint(job, event.step)
    turn.refuse(refusal.problem, refusal.message, refusal.remedy)
    return None


def delete_requested(turn: Turn, event: CheckpointDeleteRequested) -> None:
    """Forget a checkpoint, and have its files deleted by a worker while there is one."""
    found = _asked_for(turn, event)
    if found is None:
        return
    job, gang = found
    about = f"the checkpoint of step {event.step} of job {job.id}"
    pin = next((pin for pin in gang.pins if pin.step == event.step), None)
    if gang.commit is not None and gang.commit.step == event.step:
        remedy = "delete older ones, or wait for a newer one"
        turn.refuse(Problem.FAILED_PRECONDITION, f"{about} is its newest", remedy)
    elif event.step in _resumed(turn.state, gang):
        remedy = "wait until its attempt is over"
        turn.refuse(Problem.FAILED_PRECONDITION, f"{about} is being resumed from", remedy)
    elif pin is not None:
        turn.refuse(Problem.FAILED_PRECONDITION, f'{about} is pinned as "{pin.name}"', "unpin it first")
    else:
        turn.drop_commit(gang, event.step)
        turn.tell_gang("CheckpointDropped", f"step {event.step}: deleted by a user", gang)
        gang = _without(gang, event.step)
        turn.put(gang if job.state in TERMINAL else _with_dropping(turn, gang, (event.step,)))


def pin_requested(turn: Turn, event: CheckpointPinRequested) -> None:
    """Keep a checkpoint under a name whatever the policy says, or, without a name, no longer."""
    found = _asked_for(turn, event)
    if found is None:
        return
    _, gang = found
    before = next((pin for pin in gang.pins if pin.step == event.step), None)
    if (before.name if before is not None else "") == event.name:
        return
    others = tuple(pin for pin in gang.pins if pin.step != event.step)
    taken = next((pin for pin in others if pin.name == event.name), None)
    if taken is not None:
        remedy = "unpin that one first, or use another name"
        turn.refuse(Problem.ALREADY_EXISTS, f'"{event.name}" is the name of step {taken.step}', remedy)
    elif event.name and len(others) >= MOST_PINS:
        turn.refuse(Problem.FAILED_PRECONDITION, f"{MOST_PINS} checkpoints are pinned", "unpin one first")
    elif event.name:
        pins = (*others, Pin(event.step, event.name))
        turn.put(replace(gang, pins=tuple(sorted(pins, key=lambda pin: pin.step))))
        turn.tell_gang("CheckpointPinned", f'step {event.step} as "{event.name}"', gang)
    else:
        turn.put(_looked_at_again(turn, event, replace(gang, pins=others)))
        turn.tell_gang("CheckpointUnpinned", f"step {event.step}", gang)


def _looked_at_again(turn: Turn, event: CheckpointPinRequested, gang: Gang) -> Gang:
    """Let the policy decide about a commit again that it was not asked about while it was pinned."""
    policy, found = turn.state.jobs[gang.job_id].spec.retention, event.kept
    known = any(each.step == event.step for each in gang.kept)
    if policy is None or found is None or known or retention.is_nth(policy, event.step):
        return gang
    added = Kept(found.step, retention.metric_of(policy, found.shards[0]))
    return replace(gang, kept=tuple(sorted((*gang.kept, added), key=lambda each: each.step)))
