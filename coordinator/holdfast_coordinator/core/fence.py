"""The fence: from the moment that a gang's attempt is superseded, nothing that it says is accepted (P2).

And how workers are told to end, which follows from it.
"""

from dataclasses import replace

from holdfast_coordinator.core import blame
from holdfast_coordinator.core.effects import StopWorkers
from holdfast_coordinator.core.model import LIVE, Gang, Job, JobState, Worker, WorkerState
from holdfast_coordinator.core.restart import Retry
from holdfast_coordinator.core.turn import Turn


def tell_of_end(turn: Turn, gang: Gang) -> str:
    """Say who was first when an attempt has come to its end; return what its end was due to."""
    found = blame.verdict(turn.state.members(gang))
    if found is None or turn.rank_of(gang) is not None:
        return gang.cause
    culprit, cause = found.culprit, blame.cause(found.culprit)
    with_it = [f"{blame.shown(w.rank for w in found.victims)} fell with it"] if found.victims else []
    if found.stopped:
        with_it.append(f"{blame.shown(w.rank for w in found.stopped)} stopped")
    turn.tell_worker("AttemptEnded", cause, culprit, outcome="; ".join(with_it))
    return cause


def tell_of_start(turn: Turn, gang: Gang) -> None:
    """Say what a restart cost when all of the gang are up again."""
    after = max(0, turn.at - gang.broke_ms) / 1000
    steps = "1 step is" if gang.redone == 1 else f"{gang.redone} steps are"
    redone = f"; {steps} done again" if gang.redone else ""
    count = len(turn.state.members(gang))
    who = "it is" if count == 1 else f"all {count} ranks are"
    turn.tell_gang("GangUp", f"{who} up again after {after:.1f} s{redone}", gang)
    turn.put(replace(gang, broke_ms=0, redone=0))


def supersede(turn: Turn, gang: Gang, decision: Retry, cause: str) -> None:
    """Begin the gang's next attempt; what still runs of this one is stopped by `reconcile.settle`.

    But for workers that were asked to stop after a checkpoint: they look as if they had been told, and are told here.
    """
    members = turn.state.members(gang)
    for member in members:
        for held in turn.state.held_by(gang.job_id, member.rank):
            turn.delete(held)
    asked = gang.stopping is not None and not gang.stopping.signalled
    gang = replace(
        gang,
        attempt=gang.attempt + 1,
        restarts=gang.restarts + 1,
        streak=decision.streak,
        not_before_ms=turn.at + decision.delay_ms if decision.delay_ms else 0,
        cause=cause,
        failed_step=-1,
        broke_ms=gang.broke_ms or turn.at,
        redone=0,
        stopping=None,
    )
    turn.put(gang)
    resume = f"from step {gang.commit.step}" if gang.commit else "from the beginning"
    turn.tell_gang("RestartDecided", cause, gang, outcome=f"restarts {resume} ({decision.reason})")
    if asked:
        stop_live(turn, members, force=False, reason=cause, again=True)


def give_up(turn: Turn, job: Job, worker: Worker, reason: str) -> None:
    """End the job for what became of a worker; what still runs of it is stopped by `reconcile.settle`."""
    turn.put(replace(job, ending=JobState.FAILED, reason=reason))
    turn.tell_worker("JobGivenUp", reason, worker)


def stop_live(
    turn: Turn,
    workers: list[Worker],
    *,
    force: bool,
    reason: str,
    again: bool = False,
    restart: bool = False,
) -> None:
    """Tell the live ones among the workers to stop; those that were told before only `again`.

    With `restart` they have the grace of those who have to go because another rank died.
    """
    by_node: dict[str, list[Worker]] = {}
    for worker in workers:
        if worker.state in LIVE and (again or worker.state is not WorkerState.STOPPING):
            by_node.setdefault(worker.node, []).append(worker)
    for node, there in sorted(by_node.items()):
        turn.send(node, StopWorkers(tuple(w.key for w in there), force, reason, restart))
        for worker in there:
            turn.put(replace(worker, state=WorkerState.STOPPING))
