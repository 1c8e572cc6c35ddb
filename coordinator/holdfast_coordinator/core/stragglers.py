"""Ranks that are slower than their peers: a score, a mark while it lasts, and strikes.

A rank's score says by how many spreads its time for a step is above the median of its peers. The spread is that of the
peers (1.4826 of their median absolute deviation, a standard deviation where nothing stands out), but no less than
a tenth of the median: ranks that are equal but for noise never stand out. With less than four peers a spread says
nothing; then it is a quarter of the median, so that the ratio alone decides.

Where ranks wait for each other at every step, all take as long as the slowest. So what a rank spent in the section
"wait" is no part of its time.

The engine compares the ranks of a job over windows that follow one another, so that who stands out did so for the
whole of one; each is a strike.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import median

from holdfast_coordinator.core.events import StepsCompared
from holdfast_coordinator.core.exclusion import exclude, fits_without
from holdfast_coordinator.core.fence import supersede
from holdfast_coordinator.core.model import LIVE, TERMINAL, Job, Key, Progress, Straggler, Worker
from holdfast_coordinator.core.restart import after_loss
from holdfast_coordinator.core.turn import Turn

WINDOW_MS = 60_000
LEAST_STEPS = 3
"""In a window, or nothing is said of a rank."""
PEERS = 4
LEAST_SPREAD, LEAST_SPREAD_OF_FEW = 0.1, 0.25
"""Of the median."""
NORMAL = 1.4826
MOST_SCORE = 1_000.0


@dataclass(slots=True)
class Paces:
    """Of one job: where its ranks were when the window began. Of progress, which is not stored."""

    began_ms: int = 0
    at: dict[Key, Progress] = field(default_factory=dict)

    def turn_over(self, now: int, progress: Mapping[Key, Progress]) -> dict[Key, float]:
        """Begin the next window. Returns the milliseconds a step of every rank that stepped in the one that ends.

        A rank whose attempt began within the window is left out, and so is one of fewer steps than LEAST_STEPS.
        """
        step_ms = {}
        for key, newest in progress.items():
            before = self.at.get(key)
            steps = newest.steps_done - before.steps_done if before is not None else 0
            if before is not None and before.steps_done and steps >= LEAST_STEPS:
                waited = newest.waiting_ms - before.waiting_ms
                step_ms[key] = (newest.stepping_ms - before.stepping_ms - waited) / steps
        self.began_ms, self.at = now, dict(progress)
        return {key: ms for key, ms in step_ms.items() if ms > 0}


def scores(step_ms: Mapping[Key, float]) -> dict[Key, float]:
    """Score every rank against the others. Empty when there is nobody to compare with."""
    times = list(step_ms.values())
    if len(times) < 2:
        return {}
    if len(times) > PEERS:  # one among so many changes neither median
        usual = median(times)
        spread = max(NORMAL * median(abs(time - usual) for time in times), LEAST_SPREAD * usual)
        return {key: _score(own, usual, spread) for key, own in step_ms.items()}
    found = {}
    for key, own in step_ms.items():
        usual = median(time for peer, time in step_ms.items() if peer != key)
        found[key] = _score(own, usual, LEAST_SPREAD_OF_FEW * usual)
    return found


def _score(own: float, usual: float, spread: float) -> float:
    return min(MOST_SCORE, (own - usual) / spread) if spread > 0 else 0.0


def worth_telling(job: Job, workers: list[Worker], step_ms: Mapping[Key, float]) -> bool:
    """Tell whether a window changes anything: somebody stands out, or did."""
    slow = any(score >= job.spec.stragglers.threshold for score in scores(step_ms).values())
    return slow or any(worker.straggler.score is not None for worker in workers)


def steps_compared(turn: Turn, event: StepsCompared) -> None:
    """Mark who stood out in a window, and unmark who no longer does. Who could not be compared stays what it was."""
    job = turn.state.jobs.get(event.job_id)
    if job is None or job.state in TERMINAL or job.ending is not None:
        turn.drop(f"job {event.job_id} is over")
        return
    usual = median(event.step_ms.values()) if event.step_ms else 0.0
    for key, score in sorted(scores(event.step_ms).items()):
        worker = turn.state.workers.get((key.job_id, key.rank))
        if worker is None or worker.key != key or worker.state not in LIVE:
            continue
        numbers = f"{event.step_ms[key]:.3g} ms a step, the median is {usual:.3g} ms; score {score:.1f}"
        if score >= job.spec.stragglers.threshold:
            _slow(turn, job, worker, score, numbers)
        elif worker.straggler.score is not None:
            turn.put(replace(worker, straggler=replace(worker.straggler, score=None)))
            turn.tell_worker("StragglerOver", f"{_who(worker)} is no longer slow: {numbers}", worker)


def _slow(turn: Turn, job: Job, worker: Worker, score: float, numbers: str) -> None:
    was, enough = worker.straggler, job.spec.stragglers.strikes
    strikes = was.strikes + 1
    worker = replace(worker, straggler=Straggler(score, strikes))
    turn.put(worker)
    if enough and strikes <= enough:
        counted = f", strike {strikes} of {enough}"
    elif was.score is None:
        counted = ""
    else:
        return  # it is known, and nothing comes of it
    turn.tell_worker("StragglerNoticed", f"{_who(worker)} is slow: {numbers}{counted}", worker)
    if enough and strikes == enough:
        _strike_out(turn, worker)


def _strike_out(turn: Turn, worker: Worker) -> None:
    """Have the gang go on without the node, if it has room without it."""
    gang = turn.state.gangs[worker.job_id, worker.gang]
    cause = f"{_who(worker)} was slow in {worker.straggler.strikes} windows"
    if not fits_without(turn, gang, worker.node):
        outcome = "it stays: there is no room without its node"
        turn.tell_worker("StragglerStruckOut", cause, worker, outcome=outcome)
        return
    turn.tell_worker("StragglerStruckOut", cause, worker, outcome="goes on without its node")
    gang = exclude(turn, gang, worker.node, cause)
    supersede(turn, gang, after_loss(gang, gang.commit.step if gang.commit else -1), cause)


def _who(worker: Worker) -> str:
    return f"rank {worker.rank} on node {worker.node}"
