"""Where the time of a rank went, and what a job's numbers are: goodput, badput, steps."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from holdfast_coordinator.core.model import LIVE, Account, Gang, Job, Progress, Worker, WorkerState


def close_attempt(worker: Worker, committed: int | None) -> Worker:
    """Add the attempt that is over to the worker's account, once: its exit is counted, its progress cleared.

    Steps after `committed` (None: no commit at all) will be done again, unless the worker has succeeded.
    Time in steps is kept in the proportion of the steps that were.
    """
    if worker.exit is None or not worker.started_ms or worker.state in LIVE:
        return worker
    progress = worker.progress
    kept = _steps_kept(worker, committed)
    alive = max(0, worker.exit.at_ms - worker.started_ms)
    stepping = min(progress.stepping_ms, alive)
    old = worker.account
    account = Account(
        steps_done=old.steps_done + progress.steps_done,
        steps_redone=old.steps_redone + progress.steps_done - kept,
        alive_ms=old.alive_ms + alive,
        stepping_ms=old.stepping_ms + stepping,
        kept_ms=old.kept_ms + (stepping * kept // progress.steps_done if progress.steps_done else 0),
    )
    return replace(worker, account=account, started_ms=0)


def retract(worker: Worker, steps: int | None) -> Worker:
    """Count the last `steps` that were kept (None: all) as steps that are done again: their checkpoint was none."""
    account = worker.account
    kept = account.steps_done - account.steps_redone
    lost = kept if steps is None else min(steps, kept)
    if lost <= 0:
        return worker
    left = account.kept_ms * (kept - lost) // kept
    return replace(worker, account=replace(account, steps_redone=account.steps_redone + lost, kept_ms=left))


def _steps_kept(worker: Worker, committed: int | None) -> int:
    done, last = worker.progress.steps_done, worker.progress.step
    if worker.state is WorkerState.SUCCEEDED or last is None:
        return done
    if committed is None:
        return 0
    return min(done, max(0, done - (last - committed)))


@dataclass(frozen=True, slots=True)
class Summary:
    """A job in numbers. Times in milliseconds; `badput_ms` in rank-milliseconds by cause."""

    restarts: int
    steps: int | None
    last_committed_step: int | None
    steps_redone: int
    steps_per_second: float
    elapsed_ms: int
    goodput: float | None
    badput_ms: dict[str, int]
    degraded_commits: int
    degraded: bool


def summarize(
    job: Job, gangs: Iterable[Gang], workers: Iterable[Worker], running: dict[int, Progress], now: int
) -> Summary:
    """Sum up a job. `running` holds the newest progress of the ranks that are running, by rank."""
    gangs, workers = list(gangs), list(workers)
    commits = {gang.index: gang.commit.step if gang.commit else None for gang in gangs}
    totals = Account()
    reached: list[int | None] = []
    for worker in workers:
        progress = running.get(worker.rank, worker.progress)
        reached.append(progress.step if progress.step is not None else worker.resume_step)
        totals = _plus(totals, close_attempt(worker, commits[worker.gang]).account)
        if worker.state in LIVE:
            totals = _plus(totals, _so_far(worker, progress, now))
    world = len(workers)
    elapsed = max(0, (job.finished_ms or now) - (job.started_ms or job.finished_ms or now))
    rank_ms = sum(_needed_ms(job, worker, elapsed) for worker in workers)
    stepping_seconds = totals.stepping_ms / 1000 / world
    steps = [step for step in reached if step is not None]
    return Summary(
        restarts=sum(gang.restarts for gang in gangs),
        steps=min(steps) if len(steps) == world else None,
        last_committed_step=last_committed(gangs),
        steps_redone=totals.steps_redone,
        steps_per_second=totals.steps_done / stepping_seconds if stepping_seconds else 0.0,
        elapsed_ms=elapsed,
        goodput=min(1.0, totals.kept_ms / rank_ms) if totals.steps_done and rank_ms else None,
        badput_ms={
            "setup": max(0, totals.alive_ms - totals.stepping_ms),
            "redone": max(0, totals.stepping_ms - totals.kept_ms),
            "waiting": max(0, rank_ms - totals.alive_ms),
        },
        degraded_commits=sum(gang.degraded_commits for gang in gangs),
        degraded=any(gang.commit.degraded for gang in gangs if gang.commit),
    )


def last_committed(gangs: Iterable[Gang]) -> int | None:
    """The step that every gang has committed; None while one of them has none."""
    steps = [gang.commit.step if gang.commit else None for gang in gangs]
    known = [step for step in steps if step is not None]
    return min(known) if len(known) == len(steps) else None


def _needed_ms(job: Job, worker: Worker, elapsed: int) -> int:
    """How much of the job's time was this rank's: until it succeeded, or all of it."""
    if worker.state is WorkerState.SUCCEEDED and worker.exit is not None:
        return min(elapsed, max(0, worker.exit.at_ms - job.started_ms))
    return elapsed


def _so_far(worker: Worker, progress: Progress, now: int) -> Account:
    """Count the attempt that still runs as if all of it will be kept."""
    return Account(
        steps_done=progress.steps_done,
        alive_ms=now - worker.started_ms,
        stepping_ms=progress.stepping_ms,
        kept_ms=progress.stepping_ms,
    )


def _plus(a: Account, b: Account) -> Account:
    return Account(
        a.steps_done + b.steps_done,
        a.steps_redone + b.steps_redone,
        a.alive_ms + b.alive_ms,
        a.stepping_ms + b.stepping_ms,
        a.kept_ms + b.kept_ms,
    )
