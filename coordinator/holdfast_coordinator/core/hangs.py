"""Workers that hang: told, and where the spec says so, restarted.

Their agents notice it, see holdfast_agent/hangs.py. A worker that hangs is alive, so that nothing is known of it that
an exit would say; its gang is restarted as after one all the same, and at the cost of one.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from holdfast_coordinator.core import restart
from holdfast_coordinator.core.effects import NoteHang
from holdfast_coordinator.core.events import WorkerHung
from holdfast_coordinator.core.fence import give_up, stop_live, supersede
from holdfast_coordinator.core.jobspec import HangAction
from holdfast_coordinator.core.model import LIVE, Exit, Gang, Hang, Job, Worker
from holdfast_coordinator.core.turn import Turn

OF_THOSE = "; of those that hang, "
"""What comes before who differs from the others."""


def worker_hung(turn: Turn, event: WorkerHung) -> None:
    """Take a hang, or its end. It is noted whatever it says: what is stale, or was said before, changes nothing."""
    key, hang = event.key, event.hang
    turn.send(event.node, NoteHang(key, hang.since_ns, event.over))
    worker = turn.state.workers.get((key.job_id, key.rank))
    if worker is None or worker.key != key or worker.node != event.node or worker.state not in LIVE:
        turn.drop(f"{key} is no live attempt on node {event.node}")
        return
    job, gang = turn.state.jobs[key.job_id], turn.state.gangs[key.job_id, worker.gang]
    if job.ending is not None:
        turn.drop(f"job {job.id} is ending")
    elif event.over:
        _over(turn, worker, gang, hang)
    elif worker.hang is not None and worker.hang.since_ns == hang.since_ns:
        turn.drop(f"{key} is known to hang")
    else:
        _hung(turn, job, gang, replace(worker, hang=hang), event.evidence)


def because(worker: Worker) -> str:
    """What to add to the exit of a worker that hung."""
    hang = worker.hang
    if hang is None:
        return ""
    return f", {'stopped because' if hang.acted else 'while'} it hung in section {hang.section}"


def _over(turn: Turn, worker: Worker, gang: Gang, hang: Hang) -> None:
    if worker.attempt < gang.attempt:
        turn.drop(f"{worker.key} is superseded")
        return
    turn.put(replace(worker, hang=None))
    after = f"after {_seconds(hang.silent_ms)} in section {hang.section}"
    turn.tell_worker("HangOver", f"rank {worker.rank} on node {worker.node} moves again, {after}", worker)


def _hung(turn: Turn, job: Job, gang: Gang, worker: Worker, evidence: str) -> None:
    cause = _cause(worker)
    turn.put(worker)
    live = [member for member in turn.state.members(gang) if member.state in LIVE]
    other = differing({member.rank: member.hang for member in live if member.hang is not None})
    turn.tell_worker("WorkerHung", f"{cause}{_details(worker)}{other}", worker, evidence=evidence)
    if job.spec.hang.action is HangAction.RESTART and worker.attempt == gang.attempt:
        _restart(turn, job, gang, worker, cause)


def _restart(turn: Turn, job: Job, gang: Gang, worker: Worker, cause: str) -> None:
    """Have the gang restarted as after an exit. The grace of what hangs would be wasted: it alone has none."""
    assert worker.hang is not None
    turn.put(replace(worker, hang=replace(worker.hang, acted=True)))
    stop_live(turn, [turn.state.workers[worker.job_id, worker.rank]], force=True, reason=cause)
    committed = gang.commit.step if gang.commit else -1
    reached = worker.hang.step if worker.hang.step is not None else -1
    as_exit = Exit(code=-1, signal=0, message=cause, at_ms=turn.at)
    decision = restart.after_exit(job.spec.restart, gang, as_exit, cause, max(committed, reached))
    if isinstance(decision, restart.GiveUp):
        give_up(turn, job, worker, decision.reason)
    else:
        supersede(turn, gang, decision, cause)


def _cause(worker: Worker) -> str:
    hang = worker.hang
    assert hang is not None
    whence = f"{hang.limit_ms / 1000:g} s, {'learned' if hang.learned else 'set in the spec'}"
    who = f"rank {worker.rank} on node {worker.node}"
    return f"{who} hung in section {hang.section} for {_seconds(hang.silent_ms)} (limit {whence})"


def _details(worker: Worker) -> str:
    hang = worker.hang
    assert hang is not None
    at_step = f" after step {hang.step}" if hang.step is not None else ""
    where = f", in {hang.where}" if hang.where else ""
    return f"{at_step}{where}{', stopped by a signal' if hang.stopped else ''}"


def _seconds(ms: int) -> str:
    return f"{ms / 1000:.0f} s"


def differing(hung: Mapping[int, Hang]) -> str:
    """Say which of the ranks of a gang that hang is likely what the others wait for; empty when none stands out.

    In a collective all ranks stall when one does. That one is stopped, or behind, or somewhere else than most are.
    """
    if len(hung) < 2:
        return ""
    stopped = [rank for rank, hang in hung.items() if hang.stopped]
    if stopped and len(stopped) < len(hung):
        return _named(stopped, "stopped by a signal", "the others are not")
    steps = {rank: -1 if hang.step is None else hang.step for rank, hang in hung.items()}
    least, most = min(steps.values()), max(steps.values())
    if least < most:
        behind = [rank for rank, at in steps.items() if at == least]
        return _named(
            behind, f"at step {least}" if least >= 0 else "before any step", f"others at step {most}"
        )
    for name in ("section", "where"):
        places = {rank: getattr(hang, name) for rank, hang in hung.items() if getattr(hang, name)}
        ((usual, count),) = Counter(places.values()).most_common(1) or [("", 0)]
        other = [rank for rank, place in places.items() if place != usual]
        if other and 2 * count > len(places):
            what = ", ".join(dict.fromkeys(places[rank] for rank in other))
            return _named(other, f"in {what}", f"most are in {usual}")
    return ""


def _named(ranks: list[int], what: str, others: str) -> str:
    named = f"rank {ranks[0]} is" if len(ranks) == 1 else f"ranks {', '.join(map(str, sorted(ranks)))} are"
    return f"{OF_THOSE}{named} {what}, {others}"
