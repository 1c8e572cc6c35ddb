"""From a backup back to what is true: a state that is older than the fleet catches up before anybody hears of it.

Since the backup there may have been commits, which their manifests tell of (P1), and attempts, of which nothing tells
for sure. So no number of before is used again: epochs and attempts go on from the minutes since the Unix epoch, which
are more than there ever were of either, and more at every restore of the same backup.
"""

from collections.abc import Sequence
from dataclasses import replace

from holdfast_coordinator.core import restart, retention
from holdfast_coordinator.core.events import BackupRestored
from holdfast_coordinator.core.fence import supersede
from holdfast_coordinator.core.model import TERMINAL, Commit, Gang, Job, Kept, Prepared, WorkerState
from holdfast_coordinator.core.turn import Turn

CAUSE = "the coordinator was restored from a backup"


def fresh(number: int, at: int) -> int:
    """A number that comes after `number`, and after whatever came of it since."""
    return max(number + 1, at // 60_000)


def restored(turn: Turn, event: BackupRestored) -> None:
    """Take up the commits that were made since, and have what is to go on begin a new attempt."""
    for job in list(turn.state.jobs.values()):
        for gang in turn.state.gangs_of(job):
            for member in turn.state.members(gang):
                for held in turn.state.held_by(job.id, member.rank):
                    turn.delete(held)
            _fence(turn, job, _caught_up(turn, job, gang, event.commits.get((job.id, gang.index), ())))
        turn.tell("BackupRestored", CAUSE, job_id=job.id)


def _caught_up(turn: Turn, job: Job, gang: Gang, commits: Sequence[Commit]) -> Gang:
    """The gang with the commits that it did not know."""
    ranks, found = [member.rank for member in turn.state.members(gang)], 0
    for commit in sorted(commits, key=lambda commit: (commit.step, commit.attempt)):
        newest = gang.commit
        known = newest is not None and (commit.step, commit.attempt) <= (newest.step, newest.attempt)
        if known or [shard.rank for shard in commit.shards] != ranks:
            continue
        if newest is not None and newest.step == commit.step:  # it proved corrupt since, and was made anew
            turn.drop_commit(gang, commit.step)
        for shard in commit.shards:
            turn.put(Prepared(job.id, gang.index, shard.rank, commit.attempt, commit.step, shard))
        turn.record(commit)
        gang = replace(
            gang,
            commit=commit,
            kept=_kept(job, gang, commit),
            dropping=tuple(step for step in gang.dropping if step != commit.step),
        )
        found += 1
    if found and gang.commit is not None:
        message = (
            f"{found} since the backup, the newest of step {gang.commit.step}, attempt {gang.commit.attempt}"
        )
        turn.tell_gang("CheckpointsFound", message, gang)
    return gang


def _kept(job: Job, gang: Gang, commit: Commit) -> tuple[Kept, ...]:
    policy = job.spec.retention
    if policy is None:
        return gang.kept
    before = tuple(each for each in gang.kept if each.step != commit.step)
    return (*before, Kept(commit.step, retention.metric_of(policy, commit.shards[0])))


def _fence(turn: Turn, job: Job, gang: Gang) -> None:
    """See to it that its next attempt is one that there never was."""
    tally = turn.state.gang_tallies[job.id, gang.index]
    over = job.state in TERMINAL or job.ending is not None
    if tally[WorkerState.SUCCEEDED] == tally.total() and not over:
        turn.put(gang)
        return
    newest = gang.commit.attempt if gang.commit is not None else 0
    fenced = replace(gang, attempt=fresh(max(gang.attempt, newest), turn.at))
    if over:
        turn.put(replace(fenced, stopping=None))
    else:
        best = gang.commit.step if gang.commit is not None else -1
        supersede(turn, fenced, restart.after_loss(gang, best), CAUSE)
