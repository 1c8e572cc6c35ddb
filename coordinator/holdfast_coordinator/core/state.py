"""All that the leader knows: rows by key, and the indexes that follow from them.

Only `put` and `delete` change it, so that the same writes applied to an empty state give the same state:
`load(store) == state` (tests/sim holds it to that after every event).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from holdfast_coordinator.core.effects import (
    Append,
    Delete,
    DropCommit,
    DropHistory,
    MarkDrained,
    Put,
    Row,
    SetEpoch,
    Write,
)
from holdfast_coordinator.core.jobspec import Scope
from holdfast_coordinator.core.model import (
    LIVE,
    TERMINAL,
    Commit,
    Entry,
    Gang,
    Job,
    Node,
    Prepared,
    Worker,
    WorkerState,
)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator decides; not part of the store."""

    lost_after_ms: int = 10_000
    suspect_after_ms: int = 5_000
    gone_after_ms: int = 2_000
    """How long an agent with which its workers end may take to come back when its stream broke."""
    forget_after_ms: int = 86_400_000
    """0: only when a user says so."""


@dataclass(slots=True)
class State:
    """Rows by key. Mutable; one writer."""

    settings: Settings = field(default_factory=Settings)
    epoch: int = 0
    next_seq: int = 1
    jobs: dict[str, Job] = field(default_factory=dict)
    gangs: dict[tuple[str, int], Gang] = field(default_factory=dict)
    workers: dict[tuple[str, int], Worker] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    prepared: dict[tuple[str, int], dict[int, Prepared]] = field(default_factory=dict)
    """What each rank has prepared and is not committed, by step."""
    # Indexes; they follow from the rows.
    requests: dict[str, str] = field(default_factory=dict)
    """request_id to job id."""
    unfinished: dict[str, None] = field(default_factory=dict)
    """Ids of the jobs that are not terminal, oldest first."""
    on_node: dict[str, dict[tuple[str, int], None]] = field(default_factory=dict)
    """The live workers of each node."""
    waiting: dict[str, None] = field(default_factory=dict)
    """Ids of the jobs of which a worker waits to be placed."""
    tallies: dict[str, Counter[WorkerState]] = field(default_factory=dict)
    """How many workers of a job are in each state: a job of 10,000 is looked at once for each of them."""
    gang_tallies: dict[tuple[str, int], Counter[WorkerState]] = field(default_factory=dict)
    """The same of each gang."""
    stopping: dict[tuple[str, int], None] = field(default_factory=dict)
    """The gangs that are to stop after a checkpoint."""
    draining: dict[str, None] = field(default_factory=dict)
    """The nodes from which work is being moved away."""
    at_step: dict[tuple[str, int, int], dict[int, Prepared]] = field(default_factory=dict)
    """What a gang has prepared of a step, by rank: a gang of 10,000 is looked at once for each of its shards."""

    def gangs_of(self, job: Job) -> list[Gang]:
        """The gangs of a job by index."""
        count = job.spec.world_size if job.spec.restart.scope is Scope.RANK else 1
        return [self.gangs[job.id, index] for index in range(count)]

    def workers_of(self, job: Job) -> list[Worker]:
        """All workers of a job by rank."""
        return [self.workers[job.id, rank] for rank in range(job.spec.world_size)]

    def members(self, gang: Gang) -> list[Worker]:
        """The workers of a gang by rank."""
        job = self.jobs[gang.job_id]
        if job.spec.restart.scope is Scope.RANK:
            return [self.workers[gang.job_id, gang.index]]
        return self.workers_of(job)

    def ranks(self, gang: Gang) -> Sequence[int]:
        """The ranks of a gang."""
        job = self.jobs[gang.job_id]
        by_rank = job.spec.restart.scope is Scope.RANK
        return (gang.index,) if by_rank else range(job.spec.world_size)

    def gang_of(self, job: Job, rank: int | None) -> Gang | None:
        """The gang of a rank that commits by itself, or, with None, that of all ranks; None where there is no such."""
        by_rank = job.spec.restart.scope is Scope.RANK
        return (
            self.gangs.get((job.id, 0 if rank is None else rank)) if by_rank is (rank is not None) else None
        )

    def live_on(self, node: str) -> list[Worker]:
        """The workers that may have a process on a node, in the order of their keys."""
        return [self.workers[key] for key in sorted(self.on_node.get(node, ()))]

    def held_by(self, job_id: str, rank: int) -> list[Prepared]:
        """What a rank has prepared and is not committed."""
        return list(self.prepared.get((job_id, rank), {}).values())

    def put(self, row: Row) -> None:
        """Insert a row, or replace the one with its key."""
        match row:
            case Job():
                self.jobs[row.id] = row
                if row.request_id:
                    self.requests[row.request_id] = row.id
                if row.state in TERMINAL:
                    self.unfinished.pop(row.id, None)
                else:
                    self.unfinished[row.id] = None
            case Gang():
                self.gangs[row.job_id, row.index] = row
                if row.stopping is not None:
                    self.stopping[row.job_id, row.index] = None
                else:
                    self.stopping.pop((row.job_id, row.index), None)
            case Worker():
                self._index(self.workers.get((row.job_id, row.rank)), row)
                self.workers[row.job_id, row.rank] = row
            case Node():
                self.nodes[row.name] = row
                if row.cordon is not None and row.cordon.draining:
                    self.draining[row.name] = None
                else:
                    self.draining.pop(row.name, None)
            case Prepared():
                self.prepared.setdefault((row.job_id, row.rank), {})[row.step] = row
                self.at_step.setdefault((row.job_id, row.gang, row.step), {})[row.rank] = row

    def delete(self, row: Row) -> None:
        """Remove a row."""
        match row:
            case Job():
                del self.jobs[row.id]
                self.requests.pop(row.request_id, None)
                self.unfinished.pop(row.id, None)
            case Gang():
                del self.gangs[row.job_id, row.index]
                self.stopping.pop((row.job_id, row.index), None)
            case Worker():
                self._index(row, None)
                del self.workers[row.job_id, row.rank]
            case Node():
                del self.nodes[row.name]
                self.draining.pop(row.name, None)
            case Prepared():
                self._forget_prepared(row.job_id, row.rank, row.step)
                at_step = self.at_step[row.job_id, row.gang, row.step]
                del at_step[row.rank]
                if not at_step:
                    del self.at_step[row.job_id, row.gang, row.step]

    def settle_prepared(self, commit: Commit) -> None:
        """Remove what became the shards of a commit."""
        held = self.at_step.pop((commit.job_id, commit.gang, commit.step), {})
        assert [held[rank].shard for rank in sorted(held)] == [*commit.shards], (
            "its shards were never prepared"
        )
        for rank in held:
            self._forget_prepared(commit.job_id, rank, commit.step)

    def _forget_prepared(self, job_id: str, rank: int, step: int) -> None:
        of_rank = self.prepared[job_id, rank]
        del of_rank[step]
        if not of_rank:
            del self.prepared[job_id, rank]

    def apply(self, writes: Iterable[Write]) -> None:
        """Apply writes, as a store does."""
        for write in writes:
            match write:
                case Put(row):
                    self.put(row)
                case Delete(row):
                    self.delete(row)
                case Append(Entry() as entry):
                    self.next_seq = max(self.next_seq, entry.seq + 1)
                case Append(Commit() as commit):
                    self.settle_prepared(commit)
                case SetEpoch(epoch):
                    self.epoch = epoch
                case DropHistory() | DropCommit() | MarkDrained():
                    pass

    def rows(self) -> Iterator[Row]:
        """Every row."""
        yield from self.jobs.values()
        yield from self.gangs.values()
        yield from self.workers.values()
        yield from self.nodes.values()
        for of_rank in self.prepared.values():
            yield from of_rank.values()

    def _index(self, old: Worker | None, new: Worker | None) -> None:
        # In this order: a tally that somebody looks at must not come to nothing in between, and be another after.
        if new is not None:
            self._count(new, +1)
        if old is not None:
            self._count(old, -1)
        if old is not None and old.state in LIVE:
            key = (old.job_id, old.rank)
            there = self.on_node[old.node]
            there.pop(key, None)
            if not there:
                del self.on_node[old.node]
        if new is not None and new.state in LIVE:
            self.on_node.setdefault(new.node, {})[new.job_id, new.rank] = None

    def _count(self, worker: Worker, by: int) -> None:
        job_id, gang = worker.job_id, (worker.job_id, worker.gang)
        of_job = self.tallies.setdefault(job_id, Counter())
        of_gang = self.gang_tallies.setdefault(gang, Counter())
        of_job[worker.state] += by
        of_gang[worker.state] += by
        if worker.state is WorkerState.WAITING:
            if of_job[WorkerState.WAITING]:
                self.waiting[job_id] = None
            else:
                self.waiting.pop(job_id, None)
        if not of_gang.total():
            del self.gang_tallies[gang]
        if not of_job.total():
            del self.tallies[job_id]
