"""Where the time of a rank went, and what a job's numbers are: goodput, badput, steps."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from operator import attrgetter

from holdfast_coordinator.core.model import (
    LIVE,
    TERMINAL,
    Account,
    Commit,
    Gang,
    Job,
    Progress,
    Worker,
    WorkerState,
)


def close_attempt(worker: Worker, committed: int | None) -> Worker:
    """Add the attempt that is over to the worker's account, once: its exit is counted, its progress cleared.

    Steps after `committed` (None: no commit at all) will be done again, unless the worker has succeeded.
    Time in steps is kept in the proportion of the steps that were.
    """
    if worker.exit is None or not worker.started_ms or worker.state in LIVE:
        return worker
    alive = max(0, worker.exit.at_ms - worker.started_ms)
    stepping, checkpoint, other, setup, rest = _split(worker.progress, alive)
    done, kept = worker.progress.steps_done, _steps_kept(worker, committed)
    hung = min(rest, worker.exit.hung_ms)
    rest -= hung
    # Who left by itself, for a stop too, was on its way out; who did not, in a step that it did not end.
    left = worker.state is WorkerState.SUCCEEDED or not (worker.exit.code or worker.exit.signal)
    attempt = Account(
        steps_done=done,
        steps_redone=done - kept,
        alive_ms=alive,
        setup_ms=setup,
        stepping_ms=stepping + (0 if left else rest),
        kept_ms=stepping * kept // done if done else 0,
        checkpoint_ms=checkpoint,
        other_ms=other + (rest if left else 0),
        hang_ms=hung,
    )
    return replace(worker, account=_sum([worker.account, attempt]), started_ms=0)


def reached(worker: Worker, commit: Commit | None) -> Progress:
    """How far an attempt came that was lost with its node, as far as that is known: to its last commit.

    What came after it is as good as steps that are done again. Nothing is known of one that committed nothing.
    """
    if commit is None or commit.attempt != worker.attempt:
        return Progress()
    return Progress(
        step=commit.step,
        steps_done=max(0, commit.step - (worker.resume_step or 0)),
        stepping_ms=max(0, commit.at_ms - worker.started_ms),
        setup_ms=1,  # or all the rest would count as that
    )


def _split(progress: Progress, alive: int) -> tuple[int, int, int, int, int]:
    """Where `alive` milliseconds of an attempt went: steps, checkpoints, other, setup, and since its last step.

    What a worker says is taken in this order, and none of it beyond the time that there was.
    """
    if not progress.steps_done:
        return 0, 0, 0, alive, 0
    left = alive
    left -= (stepping := _within(left, progress.stepping_ms - progress.aside_ms))
    left -= (checkpoint := _within(left, progress.checkpoint_ms))
    left -= (other := _within(left, progress.other_ms))
    left -= (setup := _within(left, progress.setup_ms or left))
    return stepping, checkpoint, other, setup, left


def _within(most: int, ms: int) -> int:
    if ms < 0:
        return 0
    return ms if ms < most else most  # noqa: FURB136  min() takes thrice as long


def waited(worker: Worker, ms: int) -> Worker:
    """Count time in which there was no room for the worker."""
    account = worker.account
    return replace(worker, account=replace(account, waiting_ms=account.waiting_ms + max(0, ms)))


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
    """A job in numbers. Times in milliseconds."""

    restarts: int
    steps: int | None
    total_steps: int
    last_committed_step: int | None
    steps_redone: int
    steps_per_second: float
    elapsed_ms: int
    """Since it was created, but for the time in which it had ended."""
    goodput: float | None
    time_ms: dict[str, float]
    """Where the elapsed time went, the mean of all ranks; the parts sum to it. See `_parts`."""
    metrics: dict[str, float]
    """The newest of each rank that reports it, their mean."""
    left_ms: int | None
    """Until the last step, if it goes on like that; None: nobody knows."""
    degraded_commits: int
    degraded: bool


def summarize(
    job: Job, gangs: Iterable[Gang], workers: Iterable[Worker], running: dict[int, Progress], now: int
) -> Summary:
    """Sum up a job. `running` holds the newest progress of the ranks that are running, by rank."""
    gangs, workers = list(gangs), list(workers)
    by_index = {gang.index: gang for gang in gangs}
    accounts = [Account()]
    newest = {worker.rank: running.get(worker.rank, worker.progress) for worker in workers}
    for worker in workers:
        gang = by_index[worker.gang]
        committed = gang.commit.step if gang.commit else None
        accounts.append(close_attempt(worker, committed).account)
        if worker.state in LIVE:
            accounts.append(_so_far(worker, newest[worker.rank], now))
        elif gang.short_since_ms and worker.state is WorkerState.WAITING:
            accounts.append(Account(waiting_ms=max(0, now - gang.short_since_ms)))
    totals = _sum(accounts)
    world = len(workers)
    elapsed = max(0, (job.finished_ms or now) - job.created_ms - job.over_ms)
    needed = sum(_needed_ms(job, worker, elapsed) for worker in workers)
    restarts = sum(gang.restarts for gang in gangs)
    rate = totals.steps_done / (totals.stepping_ms / 1000 / world) if totals.stepping_ms else 0.0
    reached = [
        progress.step if progress.step is not None else worker.resume_step
        for worker, progress in zip(workers, newest.values(), strict=True)
    ]
    steps = min((step for step in reached if step is not None), default=None) if None not in reached else None
    total = max((progress.total_steps for progress in newest.values()), default=0)
    return Summary(
        restarts=restarts,
        steps=steps,
        total_steps=total,
        last_committed_step=last_committed(gangs),
        steps_redone=totals.steps_redone,
        steps_per_second=rate,
        elapsed_ms=elapsed,
        goodput=min(1.0, totals.kept_ms / needed) if totals.steps_done and needed else None,
        time_ms=_parts(totals, world, elapsed, needed, restarted=restarts > 0),
        metrics=_mean_metrics(newest.values()),
        left_ms=_left_ms(job, steps, total, rate / world),
        degraded_commits=sum(gang.degraded_commits for gang in gangs),
        degraded=any(gang.commit.degraded for gang in gangs if gang.commit),
    )


def _parts(totals: Account, world: int, elapsed: int, needed: int, *, restarted: bool) -> dict[str, float]:
    """Where the time went, as the mean of the ranks.

    "kept" and "redone" are steps; "restart" is being without a process that could have been, "waiting" being without
    for want of room; "finished" is having nothing more to do while other ranks do.
    """
    without = max(0, needed - totals.alive_ms - totals.waiting_ms)
    parts = {
        "kept": totals.kept_ms,
        "redone": totals.stepping_ms - totals.kept_ms,
        "checkpoint": totals.checkpoint_ms,
        "setup": totals.setup_ms + (0 if restarted else without),
        "restart": without if restarted else 0,
        "waiting": totals.waiting_ms,
        "hang": totals.hang_ms,
        "other": totals.other_ms,
        "finished": world * elapsed - needed,
    }
    return {name: ms / world for name, ms in parts.items()}


def _mean_metrics(progress: Iterable[Progress]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for each in progress:
        for name, value in each.metrics.items():
            found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _left_ms(job: Job, steps: int | None, total: int, rate: float) -> int | None:
    if job.state in TERMINAL or not rate or total <= 0:
        return None
    return round(max(0, total - (steps or 0)) / rate * 1000)


def last_committed(gangs: Iterable[Gang]) -> int | None:
    """The step that every gang has committed; None while one of them has none."""
    steps = [gang.commit.step if gang.commit else None for gang in gangs]
    known = [step for step in steps if step is not None]
    return min(known) if len(known) == len(steps) else None


def _needed_ms(job: Job, worker: Worker, elapsed: int) -> int:
    """How much of the job's time was this rank's: until it succeeded, or all of it."""
    if worker.state is WorkerState.SUCCEEDED and worker.exit is not None:
        return min(elapsed, max(0, worker.exit.at_ms - job.created_ms))
    return elapsed


def _so_far(worker: Worker, progress: Progress, now: int) -> Account:
    """Count the attempt that still runs as if all of it will be kept."""
    alive = max(0, now - worker.started_ms)
    stepping, checkpoint, other, setup, rest = _split(progress, alive)
    hung = min(rest, max(0, now - worker.hang.since_ms)) if worker.hang is not None else 0
    stepping += rest - hung
    return Account(
        steps_done=progress.steps_done,
        alive_ms=alive,
        setup_ms=setup,
        stepping_ms=stepping,
        kept_ms=stepping,
        checkpoint_ms=checkpoint,
        other_ms=other,
        hang_ms=hung,
    )


_values = attrgetter(*(each.name for each in fields(Account)))


def _sum(accounts: Iterable[Account]) -> Account:
    return Account(*map(sum, zip(*map(_values, accounts), strict=True)))
