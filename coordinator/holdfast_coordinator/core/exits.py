"""An exit, from what the agent says of it to what is done about it.

The smallest thing that helps: the rank or the gang, then the gang without the node. Rules (rules.py) come first, then
the budget (restart.py).
"""

from collections.abc import Mapping
from dataclasses import replace

from holdfast_coordinator.core import restart, rules
from holdfast_coordinator.core.exclusion import exclude, fits_without
from holdfast_coordinator.core.fence import give_up, supersede
from holdfast_coordinator.core.jobspec import Action, ExitKind, Scope
from holdfast_coordinator.core.model import Exit, Gang, Job, Output, Repeat, Worker, WorkerState
from holdfast_coordinator.core.turn import Turn

CANNOT_START = "built-in rule cannot_start"
NO_PROGRESS = "built-in rule no_progress"
BAD_NODE = "built-in rule bad_node"

MOST_TAILS = 16
"""Of a gang that ends: the rest of 10,000 ranks say the same."""


def align(exited: Exit, clock_offset_ns: int, earliest_ms: int, latest_ms: int) -> Exit:
    """Put the times of an exit on the coordinator's clock. A wall clock that jumped is of no account."""
    ended_ns = exited.ended_ns + clock_offset_ns if exited.ended_ns else 0
    at = ended_ns // 1_000_000 if ended_ns else exited.at_ms
    return replace(exited, ended_ns=ended_ns, at_ms=min(max(at, earliest_ms), latest_ms))


def evidence(tally: Mapping[WorkerState, int], worker: Worker, output: Output) -> str:
    """What goes to the timeline of what it said last: nothing of who was told to go, and went."""
    exited = worker.exit
    assert exited is not None
    obeyed = worker.state is WorkerState.STOPPED and (exited.signal or not exited.code)
    if obeyed or worker.state is WorkerState.SUCCEEDED:
        return ""
    gone = tally[WorkerState.FAILED] + tally[WorkerState.STOPPED]
    return output.tail if gone <= MOST_TAILS else ""


def ignored_by(turn: Turn, worker: Worker, output: Output) -> str:
    """The rule that takes a worker which failed as one that has finished; empty when none does."""
    job = turn.state.jobs[worker.job_id]
    gang = turn.state.gangs[worker.job_id, worker.gang]
    if worker.exit is None or job.ending is not None or worker.attempt < gang.attempt:
        return ""
    verdict = rules.judge(job.spec.rules, worker.exit, worker.progress, output)
    return verdict.rule if verdict is not None and verdict.action is Action.IGNORE else ""


def decide(turn: Turn, worker: Worker, output: Output, cause: str) -> None:
    """Decide what becomes of the gang of a worker that failed."""
    job = turn.state.jobs[worker.job_id]
    gang = turn.state.gangs[worker.job_id, worker.gang]
    exited = worker.exit
    if job.ending is not None or worker.attempt < gang.attempt or exited is None:
        return  # the job is being stopped, or this one fell with its gang: nothing to decide
    committed = gang.commit.step if gang.commit else -1
    reached = worker.progress.step if worker.progress.step is not None else -1
    best = max(committed, reached)
    if exited.kind is ExitKind.ABANDONED:
        supersede(turn, gang, restart.after_loss(gang, best), cause)
        return
    gang = replace(gang, repeat=rules.count(gang, worker, progressed=best > gang.best_step))
    verdict = rules.judge(job.spec.rules, exited, worker.progress, output)
    if verdict is None:
        _by_default(turn, job, gang, worker, cause, best)
        return
    match verdict.action:
        case Action.FAIL:
            give_up(turn, job, worker, f"{cause}; {verdict.reason}")
        case Action.EXCLUDE_NODE:
            gang = exclude(turn, gang, worker.node, f"{verdict.rule}, {exited.message}")
            uncharged = restart.after_loss(gang, best)
            reason = f"{verdict.reason}; {uncharged.reason}"
            supersede(turn, gang, replace(uncharged, reason=reason), cause)
        case _:
            others = verdict.action is Action.RESTART_GANG
            _retry(turn, job, gang, worker, cause, best, verdict.reason)
            if others and job.spec.restart.scope is Scope.RANK and turn.state.jobs[job.id].ending is None:
                _restart_others(turn, job, gang, f"{cause}; {verdict.reason}")


def _by_default(turn: Turn, job: Job, gang: Gang, worker: Worker, cause: str, best: int) -> None:
    """The built-in rules, then the budget."""
    exited = worker.exit
    assert exited is not None
    hopeless = rules.cannot_start(gang, worker)
    if hopeless:
        give_up(turn, job, worker, f"{cause}; {hopeless}, and starting it again cannot help ({CANNOT_START})")
        return
    limit, repeat = job.spec.restart.no_progress_limit, gang.repeat
    if limit and repeat.times >= limit:
        if _only_there(turn, gang, exited):
            why = f"{repeat.times} times in a row {repeat.how} there, and nowhere else"
            gang = exclude(turn, replace(gang, repeat=Repeat()), worker.node, why)
            _retry(turn, job, gang, worker, cause, best, f"goes on without the node ({BAD_NODE})")
            return
        if rules.own_doing(exited):
            times = f"{repeat.times} times in a row" if repeat.times > 1 else "once"
            give_up(turn, job, worker, f"{cause}; it ended so {times} without progress ({NO_PROGRESS})")
            return
    _retry(turn, job, gang, worker, cause, best, "")


def _only_there(turn: Turn, gang: Gang, exited: Exit) -> bool:
    """Whether one node is what its exits have in common, and the gang has room without it.

    Of what the program may have done itself, one node of several that it is on. Tried once: a program that fails
    everywhere is not to be carried around the fleet.
    """
    nodes = {worker.node for worker in turn.state.members(gang)}
    node = gang.repeat.node
    if not node or gang.excluded or not (len(nodes) > 1 or rules.nodes_doing(exited)):
        return False
    return fits_without(turn, gang, node)


def _retry(turn: Turn, job: Job, gang: Gang, worker: Worker, cause: str, best: int, why: str) -> None:
    exited = worker.exit
    assert exited is not None
    if why:  # a rule wants it tried again, whatever it was
        exited = replace(exited, never_ran=False)
    decision = restart.after_exit(job.spec.restart, gang, exited, cause, best)
    if isinstance(decision, restart.GiveUp):
        give_up(turn, job, worker, decision.reason)
        return
    if why:
        decision = replace(decision, reason=f"{why}; {decision.reason}")
    supersede(turn, gang, decision, cause)


def _restart_others(turn: Turn, job: Job, gang: Gang, cause: str) -> None:
    """Restart the other ranks of a job whose ranks otherwise restart alone."""
    for other in turn.state.gangs_of(job):
        if other.index != gang.index:
            supersede(turn, other, restart.Retry(0, other.streak, "not charged to the restart budget"), cause)
