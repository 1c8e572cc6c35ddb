"""Restarts on the user's word: of a job that runs, and of one that has ended.

One that runs goes the way of a drain: its gangs stop at a step that all of their ranks share, take a checkpoint, and
begin their next attempts from it, at no charge to the budget (stopping.py). By force they begin them now, from the last
commit. One that has ended goes on from there under its own id, and its budget, its backoff and the nodes that it was
kept from are forgotten: somebody has seen to what was wrong. One that has succeeded has nothing left to do.

A request has an id, so that one that is sent again restarts nothing twice.
"""

from dataclasses import replace

from holdfast_coordinator.core import restart, stopping
from holdfast_coordinator.core.account import last_committed
from holdfast_coordinator.core.effects import Problem
from holdfast_coordinator.core.events import JobRestartRequested
from holdfast_coordinator.core.fence import stop_live, supersede
from holdfast_coordinator.core.model import (
    LIVE,
    TERMINAL,
    Desired,
    Gang,
    Job,
    JobState,
    Repeat,
    WorkerState,
)
from holdfast_coordinator.core.turn import Turn


def requested(turn: Turn, event: JobRestartRequested) -> None:
    """Do what a user asks for."""
    job = turn.find_job(event.job_id)
    if job is None or (event.request_id and event.request_id == job.restart_id):
        return
    if job.state is JobState.SUCCEEDED:
        turn.refuse(
            Problem.FAILED_PRECONDITION,
            f"job {job.id} has nothing left to do: every rank of it has finished",
            f"submit it anew; with --resume-from {job.id} it begins with what this one has committed",
        )
    elif job.state in TERMINAL:
        _revive(turn, replace(job, restart_id=event.request_id))
    elif job.ending is not None:
        remedy = "wait until it has ended, then restart it"
        turn.refuse(Problem.FAILED_PRECONDITION, f"job {job.id} is being brought to its end", remedy)
    else:
        turn.put(replace(job, restart_id=event.request_id))
        _renew(turn, job, event)


def _renew(turn: Turn, job: Job, event: JobRestartRequested) -> None:
    """Have every gang of a job begin its next attempt; those that wait out a backoff, now."""
    cause = "restarted by its user" + (", by force" if event.force else "")
    how = "its ranks begin anew at once" if event.force else "its ranks begin anew after a checkpoint"
    going = []
    for found in turn.state.gangs_of(job):
        gang = _end_backoff(turn, found)
        members = turn.state.members(gang)
        if not any(worker.state in LIVE for worker in members):
            continue
        if members[0].attempt == gang.attempt:
            going.append(gang)
        elif event.force:  # it is on its way, and is not waited for
            turn.put(replace(gang, stopping=None))
            stop_live(turn, members, force=True, reason=cause, again=True)
    if not going:
        how = "nothing of it runs that could be: it begins as soon as it can"
    turn.tell("JobRestartRequested", cause, job_id=job.id, outcome=how)
    if not event.force:
        by_ms = turn.at + job.spec.stop_grace_ms
        stopping.ask_to_restart(turn, going, "job restart", cause, by_ms)
        return
    for gang in going:
        best = gang.commit.step if gang.commit else -1
        supersede(turn, replace(gang, stopping=None), restart.after_loss(gang, best), cause)
        stop_live(turn, turn.state.members(gang), force=True, reason=cause, again=True)


def _end_backoff(turn: Turn, gang: Gang) -> Gang:
    if not gang.not_before_ms:
        return gang
    gang = replace(gang, not_before_ms=0)
    turn.put(gang)
    turn.room_changed = True  # there is more that may be placed
    return gang


def _revive(turn: Turn, job: Job) -> None:
    """Have a job that has ended go on from its last commit."""
    gangs = turn.state.gangs_of(job)
    committed = last_committed(gangs)
    turn.put(
        replace(
            job,
            desired=Desired.RUNNING,
            state=JobState.PENDING,
            reason=f"restarted by its user after it {_ended(job)}",
            ending=None,
            force=False,
            finished_ms=0,
            over_ms=job.over_ms + max(0, turn.at - job.finished_ms),
        )
    )
    resume = "from the beginning" if committed is None else f"from step {committed}"
    message = f"restarted by its user after it {_ended(job)} ({job.reason})"
    turn.tell("JobRestartRequested", message, job_id=job.id, outcome=f"goes on {resume}")
    for gang in gangs:
        tally = turn.state.gang_tallies[job.id, gang.index]
        if tally[WorkerState.SUCCEEDED] < tally.total():
            _revive_gang(turn, gang)


def _ended(job: Job) -> str:
    return "had failed" if job.state is JobState.FAILED else "was stopped"


def _revive_gang(turn: Turn, gang: Gang) -> None:
    now = replace(
        gang,
        attempt=gang.attempt + 1,
        restarts=gang.restarts + 1,
        streak=(),
        not_before_ms=0,
        cause="restarted by its user",
        failed_step=-1,
        repeat=Repeat(),
        excluded={},
        broke_ms=0,
        redone=0,
    )
    turn.put(now)
    for worker in turn.state.members(now):
        turn.put(
            replace(
                worker,
                state=WorkerState.WAITING,
                attempt=now.attempt,
                pid=0,
                pid_start=0,
                gpus=(),
                stop_at=None,
            )
        )
