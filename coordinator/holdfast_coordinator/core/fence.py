"""The fence: from the moment that a gang's attempt is superseded, nothing that it says is accepted (P2).

And how workers are told to end, which follows from it.
"""

from dataclasses import replace

from holdfast_coordinator.core.effects import StopWorkers
from holdfast_coordinator.core.model import LIVE, Gang, Worker, WorkerState
from holdfast_coordinator.core.restart import Retry
from holdfast_coordinator.core.turn import Turn


def supersede(turn: Turn, gang: Gang, decision: Retry, cause: str) -> None:
    """Begin the gang's next attempt; what still runs of this one is stopped by `reconcile.settle`.

    But for workers that were asked to stop after a checkpoint: they look as if they had been told, and are told here.
    """
    members = turn.state.members(gang)
    for member in members:
        held = turn.state.prepared.get((gang.job_id, member.rank))
        if held is not None:
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
        stopping=None,
    )
    turn.put(gang)
    resume = f"from step {gang.commit.step}" if gang.commit else "from the beginning"
    turn.tell_gang("RestartDecided", f"{cause}; restarts {resume} ({decision.reason})", gang)
    if asked:
        stop_live(turn, members, force=False, reason=cause, again=True)


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
