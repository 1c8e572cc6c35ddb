"""The fence: from the moment that a gang's attempt is superseded, nothing that it says is accepted (P2)."""

from dataclasses import replace

from holdfast_coordinator.core.model import Gang, Job, JobState, Worker
from holdfast_coordinator.core.restart import Retry
from holdfast_coordinator.core.turn import Turn


def supersede(turn: Turn, gang: Gang, decision: Retry, cause: str) -> None:
    """Begin the gang's next attempt; what still runs of this one is stopped by `reconcile.settle`."""
    for member in turn.state.members(gang):
        held = turn.state.prepared.get((gang.job_id, member.rank))
        if held is not None:
            turn.delete(held)
    gang = replace(
        gang,
        attempt=gang.attempt + 1,
        restarts=gang.restarts + 1,
        streak=decision.streak,
        not_before_ms=turn.at + decision.delay_ms if decision.delay_ms else 0,
        cause=cause,
        failed_step=-1,
    )
    turn.put(gang)
    resume = f"from step {gang.commit.step}" if gang.commit else "from the beginning"
    turn.tell_gang("RestartDecided", f"{cause}; restarts {resume} ({decision.reason})", gang)


def give_up(turn: Turn, job: Job, worker: Worker, reason: str) -> None:
    """End the job for what became of a worker; what still runs of it is stopped by `reconcile.settle`."""
    turn.put(replace(job, ending=JobState.FAILED, reason=reason))
    turn.tell_worker("JobGivenUp", reason, worker)
