"""Stops a gang just in time: all of its ranks take a checkpoint at one step, it is committed, and they end.

1. Every rank is asked (`AskStop`), and answers with the lowest step that its training loop has not passed and will
   not pass before it hears more. Whoever gets there waits.
2. When all have answered, the highest of these steps is the one. None has passed it, and all are told.
3. Each takes its checkpoint there, and ends when that is committed, if its program looks whether it should. One
   that does not is signalled then.

What is answered is a row, and so is what was agreed: a coordinator that is killed in between goes on where it was, and
asks again whoever comes back. What does not answer, does not listen or does not end is signalled in time: SIGTERM when
`term_ms` has come, SIGKILL at `kill_ms`.
"""

from collections.abc import Iterable
from dataclasses import replace

from holdfast_coordinator.core import restart
from holdfast_coordinator.core.effects import AskStop
from holdfast_coordinator.core.events import StopAnswered
from holdfast_coordinator.core.fence import stop_live, supersede
from holdfast_coordinator.core.model import (
    DEAD,
    LIVE,
    Exit,
    Gang,
    Job,
    JobState,
    Key,
    Progress,
    Stopping,
    Worker,
    WorkerState,
)
from holdfast_coordinator.core.state import State
from holdfast_coordinator.core.turn import Turn

PUBLISHED_WITHIN_MS = 1_000
"""After its last commit a program that does not look whether to stop has so long to publish the manifest."""
SHARE_OF_SIGTERM = 4
"""One part in so many of the time is for SIGTERM, and never more than the job's grace."""


def ask(turn: Turn, gangs: Iterable[Gang], reason: str, cause: str, by_ms: int) -> list[Gang]:
    """Have gangs stop after a checkpoint, all over at `by_ms`. Those that were asked before keep the earlier time.

    Returns those that cannot: they have ranks that are starting, or have ended, or there is no time.
    """
    asked, cannot = [], []
    for gang in gangs:
        before = gang.stopping
        if before is not None:
            if not before.signalled:
                asked.append(_hastened(turn, gang, reason, cause, by_ms))
            continue
        tally = turn.state.gang_tallies[gang.job_id, gang.index]
        grace = turn.state.jobs[gang.job_id].spec.stop_grace_ms
        left = by_ms - turn.at
        if left <= 0 or tally[WorkerState.RUNNING] < tally.total():
            cannot.append(gang)
            continue
        term_ms = by_ms - min(grace, left // SHARE_OF_SIGTERM)
        now = replace(gang, stopping=Stopping(reason, cause, turn.at, term_ms, by_ms))
        turn.put(now)
        for worker in turn.state.members(now):
            turn.put(replace(worker, state=WorkerState.STOPPING, stop_at=None))
        asked.append(now)
    _say(turn, [(gang, worker) for gang in asked for worker in turn.state.members(gang)])
    return cannot


def ask_to_restart(turn: Turn, gangs: Iterable[Gang], reason: str, cause: str, by_ms: int) -> None:
    """Have gangs begin their next attempt after a checkpoint, uncharged; those that cannot take one, without it."""
    for gang in ask(turn, gangs, reason, cause, by_ms):
        stop_live(turn, turn.state.members(gang), force=False, reason=cause)  # with all of their grace
        supersede(turn, gang, _retry(gang), cause)


def _hastened(turn: Turn, gang: Gang, reason: str, cause: str, by_ms: int) -> Gang:
    before = gang.stopping
    assert before is not None
    left = max(0, by_ms - turn.at)
    grace = turn.state.jobs[gang.job_id].spec.stop_grace_ms
    term_ms = min(before.term_ms, turn.at + left - min(grace, left // SHARE_OF_SIGTERM))
    kill_ms = min(before.kill_ms, turn.at + left)
    now = replace(before, reason=reason, cause=cause, term_ms=term_ms, kill_ms=kill_ms)
    gang = replace(gang, stopping=now)
    turn.put(gang)
    return gang


def ask_again(turn: Turn, node: str, keys: Iterable[Key]) -> None:
    """Say again what workers were asked that a new session may not have heard of."""
    found = [turn.state.workers[key.job_id, key.rank] for key in keys]
    asked = [(turn.state.gangs[w.job_id, w.gang], w) for w in found if w.node == node]
    _say(turn, [(gang, w) for gang, w in asked if is_asked(gang) and w.attempt == gang.attempt])


def is_asked(gang: Gang) -> bool:
    """Tell whether a gang is to stop, and no signal was sent yet."""
    return gang.stopping is not None and not gang.stopping.signalled


def answered(turn: Turn, event: StopAnswered) -> None:
    """Take a rank's answer; with the last one it is agreed where they stop."""
    key = event.key
    worker = turn.state.workers.get((key.job_id, key.rank))
    if worker is None or worker.key != key or worker.node != event.node or worker.state not in LIVE:
        turn.drop(f"{key} does not run on node {event.node}")
        return
    gang = turn.state.gangs[key.job_id, worker.gang]
    stop = gang.stopping
    if stop is None or stop.signalled or worker.attempt != gang.attempt:
        turn.drop(f"{key} is not asked to stop")
    elif event.step is None:
        signal(turn, gang, f"rank {key.rank} does not listen for requests to stop")
    elif stop.agreed and event.step > stop.step:
        signal(
            turn, gang, f"rank {key.rank} can stop at step {event.step} only, and step {stop.step} is agreed"
        )
    elif worker.stop_at is None or event.step > worker.stop_at:
        first = worker.stop_at is None
        turn.put(replace(worker, stop_at=event.step))
        stop = replace(
            stop,
            answers=stop.answers + first,
            step=max(stop.step, event.step),
            leaves=stop.leaves and event.leaves,
        )
        _count(turn, replace(gang, stopping=stop), stop)


def _count(turn: Turn, gang: Gang, stop: Stopping) -> None:
    world = turn.state.gang_tallies[gang.job_id, gang.index].total()
    if stop.answers < world:
        turn.put(gang)
        return
    gang = replace(gang, stopping=replace(stop, agreed=True))
    turn.put(gang)
    turn.tell_gang("StopAgreed", f"{stop.reason}: all ranks stop at step {stop.step}", gang)
    _say(turn, [(gang, worker) for worker in turn.state.members(gang)])


def _say(turn: Turn, asked: Iterable[tuple[Gang, Worker]]) -> None:
    """Tell workers that live what their gangs are asked; one message for all on a node that are told the same."""
    told: dict[tuple[str, str, int, int | None], list[Key]] = {}
    for gang, worker in asked:
        stop = gang.stopping
        if stop is None or worker.state not in LIVE:
            continue
        within = max(0, stop.term_ms - turn.at)
        about = (worker.node, stop.reason, within, stop.step if stop.agreed else None)
        told.setdefault(about, []).append(worker.key)
    for (node, reason, within, step), keys in sorted(told.items(), key=lambda item: item[1]):
        turn.send(node, AskStop(tuple(keys), reason, within, step))


def follow(turn: Turn, job: Job, gang: Gang) -> None:
    """Look where a gang is that was asked to stop; called whenever it or its ranks have changed."""
    stop = gang.stopping
    if stop is None or stop.signalled:
        return
    tally = turn.state.gang_tallies[gang.job_id, gang.index]
    if not any(tally[state] for state in LIVE):
        if job.ending is None and any(tally[state] for state in DEAD):
            supersede(turn, gang, _retry(gang), stop.cause)
        else:
            turn.put(replace(gang, stopping=None))
    elif job.ending not in (None, JobState.STOPPED):
        signal(turn, gang, job.reason)
    elif not stop.leaves and _is_committed(gang, stop):
        term_ms = min(stop.term_ms, turn.at + PUBLISHED_WITHIN_MS)
        if term_ms < stop.term_ms:
            turn.put(replace(gang, stopping=replace(stop, term_ms=term_ms)))


def end_with(turn: Turn, job: Job) -> None:
    """Signal whatever was asked to stop of a job that is given up meanwhile."""
    for job_id, index in list(turn.state.stopping):
        if job_id == job.id:
            follow(turn, job, turn.state.gangs[job_id, index])


def went_wrong(turn: Turn, worker: Worker) -> None:
    """A rank that was asked to stop has died, and the others may wait for it: signal them, unless all is committed."""
    gang = turn.state.gangs[worker.job_id, worker.gang]
    stop = gang.stopping
    if stop is None or stop.signalled or worker.exit is None or _is_committed(gang, stop):
        return
    tally = turn.state.gang_tallies[gang.job_id, gang.index]
    if any(tally[state] for state in LIVE):
        signal(turn, gang, f"rank {worker.rank}: {worker.exit.message}")


def came_to_its_end(gang: Gang, worker: Worker, ended: Exit, progress: Progress) -> bool:
    """Tell whether a rank that was asked to stop has ended because it was done: it was never told to stop.

    A program is told so from the agreed step on.
    """
    stop = gang.stopping
    if stop is None or stop.signalled or worker.attempt != gang.attempt or ended.code or ended.signal:
        return False
    reached = -1 if progress.step is None else progress.step
    if gang.commit is not None and gang.commit.attempt == gang.attempt:
        reached = max(reached, gang.commit.step)
    return not stop.agreed or reached < stop.step


def signal(turn: Turn, gang: Gang, why: str) -> None:
    """Wait no longer: SIGTERM for what still runs of a gang. What was to move begins its next attempt."""
    stop = gang.stopping
    assert stop is not None
    turn.tell_gang("StopSignalled", f"{stop.reason}: {why}", gang)
    job = turn.state.jobs[gang.job_id]
    done = replace(stop, signalled=True)
    if job.ending is None:
        supersede(turn, gang, _retry(gang), stop.cause)
        turn.put(replace(turn.state.gangs[gang.job_id, gang.index], stopping=done))
    else:
        turn.put(replace(gang, stopping=done))
        stop_live(turn, turn.state.members(gang), force=job.force, reason=job.reason, again=True)


def due(turn: Turn) -> None:
    """Signal what has not ended by itself in time; end by force what has not ended by SIGTERM."""
    for key in list(turn.state.stopping):
        gang = turn.state.gangs[key]
        if gang.stopping is not None and not gang.stopping.signalled and turn.at >= gang.stopping.term_ms:
            signal(turn, gang, _why_now(gang, gang.stopping))
            gang = turn.state.gangs[key]
        if gang.stopping is not None and turn.at >= gang.stopping.kill_ms:
            turn.put(replace(gang, stopping=None))
            members = turn.state.members(gang)
            stop_live(turn, members, force=True, reason=f"{gang.stopping.reason}: time is up", again=True)


def _why_now(gang: Gang, stop: Stopping) -> str:
    if _is_committed(gang, stop) and not stop.leaves:
        return f"step {stop.step} is committed, and the program does not look whether to stop"
    return "it has not ended in time"


def next_due(state: State) -> int | None:
    """When `due` has something to do next."""
    times = [
        gang.stopping.kill_ms if gang.stopping.signalled else gang.stopping.term_ms
        for gang in (state.gangs[key] for key in state.stopping)
        if gang.stopping is not None
    ]
    return min(times, default=None)


def take_over(turn: Turn) -> None:
    """A clock set back must not turn a deadline into an eternity."""
    for key in list(turn.state.stopping):
        gang = turn.state.gangs[key]
        stop = gang.stopping
        if stop is not None and stop.asked_ms > turn.at:
            back = stop.asked_ms - turn.at
            stop = replace(stop, asked_ms=turn.at, term_ms=stop.term_ms - back, kill_ms=stop.kill_ms - back)
            turn.put(replace(gang, stopping=stop))


def _is_committed(gang: Gang, stop: Stopping) -> bool:
    made = gang.commit
    return made is not None and stop.agreed and made.attempt == gang.attempt and made.step >= stop.step


def _retry(gang: Gang) -> restart.Retry:
    return restart.after_loss(gang, gang.commit.step if gang.commit else -1)
