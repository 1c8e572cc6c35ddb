"""The agent's decisions, pure: `handle(state, event) -> actions`.

It knows which workers there are, what the coordinator has not acknowledged yet, and what was done already. The shell
around it (agent.py) carries the actions out and turns what comes of them into the next events.

Three rules keep every command at most once (P6) and every fact at least once:

- A start is taken once for its key, and never for an attempt at or below one that was taken before for that rank.
  Its process begins when that of an older attempt is gone: a rank never has two here (P2).
- An exit is kept until the coordinator releases it, a prepared shard until it is acked or refused, a report about a
  checkpoint until it is noted. Whatever the coordinator may not have heard goes out again after every Welcome.
- A message of an older epoch than one seen before is dropped: its leader is deposed.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, NamedTuple

MOST_REPORTS = 256
"""Of one worker, unanswered; of more the oldest are forgotten, for the worker says them again to the next agent."""


class Key(NamedTuple):
    """Names one attempt of one rank for ever."""

    job_id: str
    rank: int
    attempt: int


class Phase(StrEnum):
    """Where a worker is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    ENDED = "ended"


class Stop(StrEnum):
    """How a worker was told to stop."""

    NO = ""
    GRACE = "grace"
    RESTART = "restart"
    """With the grace of those who have to go because another rank of their gang died."""
    FORCE = "force"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a worker ended, and how far it came: opaque here."""

    exit: Any
    progress: Any = None


@dataclass(frozen=True, slots=True)
class Worker:
    """One attempt of one rank on this node."""

    key: Key
    phase: Phase
    pid: int = 0
    pid_start: int = 0
    ended: Ended | None = None
    stop: Stop = Stop.NO


@dataclass(frozen=True, slots=True)
class Shard:
    """A prepared shard that is not answered yet; what it holds is opaque here."""

    step: int
    content: Any


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker says became of a checkpoint, not noted yet. A worker says of each kind and step one thing."""

    kind: int
    step: int
    content: Any = None


@dataclass(frozen=True, slots=True)
class Start:
    """What is to be started; how is opaque here."""

    key: Key
    how: Any = None


@dataclass(slots=True)
class AgentState:
    """All that the agent knows."""

    epoch: int = 0
    connected: bool = False
    workers: dict[Key, Worker] = field(default_factory=dict)
    fences: dict[tuple[str, int], int] = field(default_factory=dict)
    """The highest attempt that was taken for each rank of each job."""
    prepared: dict[Key, Shard] = field(default_factory=dict)
    reports: dict[Key, dict[tuple[int, int], Report]] = field(default_factory=dict)
    """By kind and step, oldest first. They outlive their worker: what it did to its files stays true."""
    told: dict[Key, Phase] = field(default_factory=dict)
    """What the Hello of this session said."""
    deferred: dict[Key, Start] = field(default_factory=dict)
    """Starts that wait for an older attempt of their rank to be gone."""
    forgotten: set[str] = field(default_factory=set)
    """Deleted jobs of which a worker is still here; what is on disk goes with the last one."""


# Events


@dataclass(frozen=True, slots=True)
class Welcomed:
    """The coordinator opened the session."""

    epoch: int


@dataclass(frozen=True, slots=True)
class StreamLost:
    """The session is over."""


@dataclass(frozen=True, slots=True)
class LeftAlone:
    """There has been no session for as long as the operator lets workers run without one."""


@dataclass(frozen=True, slots=True)
class StartCommanded:
    """The coordinator wants workers started."""

    epoch: int
    starts: tuple[Start, ...]


@dataclass(frozen=True, slots=True)
class StopCommanded:
    """The coordinator wants workers stopped."""

    epoch: int
    keys: tuple[Key, ...]
    how: Stop


@dataclass(frozen=True, slots=True)
class ReleaseCommanded:
    """The exits of these workers are durable at the coordinator."""

    epoch: int
    keys: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class CommitAcked:
    """The checkpoint is committed; the first of the ranks publishes, where `publish` is set."""

    epoch: int
    job_id: str
    attempt: int
    step: int
    ranks: tuple[int, ...]
    publish: Any = None
    drop: tuple[int, ...] = ()
    """With `publish`: steps whose files that rank deletes."""


@dataclass(frozen=True, slots=True)
class ShardRefused:
    """The shard was not taken and never will be."""

    epoch: int
    key: Key
    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class ReportNoted:
    """The report is durable at the coordinator, or about something that is over."""

    epoch: int
    key: Key
    kind: int
    step: int


@dataclass(frozen=True, slots=True)
class JobForgotten:
    """The job was deleted."""

    epoch: int
    job_id: str


@dataclass(frozen=True, slots=True)
class WorkerSpawned:
    """A worker's process exists."""

    key: Key
    pid: int
    pid_start: int


@dataclass(frozen=True, slots=True)
class WorkerEnded:
    """A worker's process tree is gone, or never was."""

    key: Key
    ended: Ended


@dataclass(frozen=True, slots=True)
class ShardPrepared:
    """A worker says that its file of a checkpoint is durable."""

    key: Key
    shard: Shard


@dataclass(frozen=True, slots=True)
class CheckpointReported:
    """A worker says what became of a checkpoint; or the agent itself does, of what a worker that is gone left."""

    key: Key
    report: Report
    by_worker: bool = True


Commanded = (
    StartCommanded
    | StopCommanded
    | ReleaseCommanded
    | CommitAcked
    | ShardRefused
    | ReportNoted
    | JobForgotten
)
Event = (
    Welcomed
    | StreamLost
    | LeftAlone
    | Commanded
    | WorkerSpawned
    | WorkerEnded
    | ShardPrepared
    | CheckpointReported
)


# Actions


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a worker. Its directory makes the fence durable before its process exists."""

    start: Start


@dataclass(frozen=True, slots=True)
class Signal:
    """Stop a worker: SIGTERM, one of the graces, SIGKILL; or SIGKILL at once."""

    key: Key
    how: Stop


@dataclass(frozen=True, slots=True)
class Fence:
    """Stop a worker with grace, and note on disk before that its agent did so of its own accord."""

    key: Key


@dataclass(frozen=True, slots=True)
class TellStarted:
    """Tell the coordinator."""

    worker: Worker


@dataclass(frozen=True, slots=True)
class TellEnded:
    """Tell the coordinator."""

    worker: Worker


@dataclass(frozen=True, slots=True)
class TellPrepared:
    """Tell the coordinator."""

    key: Key
    shard: Shard


@dataclass(frozen=True, slots=True)
class TellReported:
    """Tell the coordinator."""

    key: Key
    report: Report


@dataclass(frozen=True, slots=True)
class AnswerCommitted:
    """Tell the worker; with `publish` it publishes the manifest, and deletes the files of the steps to `drop`."""

    key: Key
    step: int
    publish: Any
    drop: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class AnswerRefused:
    """Tell the worker."""

    key: Key
    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class AnswerNoted:
    """Tell the worker."""

    key: Key
    kind: int
    step: int


@dataclass(frozen=True, slots=True)
class MarkReleased:
    """Note on disk that the exit need not be reported again; logs stay."""

    key: Key


@dataclass(frozen=True, slots=True)
class RemoveJob:
    """Remove the job's directory."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Leave this leader."""

    reason: str


Action = (
    Spawn
    | Signal
    | Fence
    | TellStarted
    | TellEnded
    | TellPrepared
    | TellReported
    | AnswerCommitted
    | AnswerRefused
    | AnswerNoted
    | MarkReleased
    | RemoveJob
    | Disconnect
)


def recover(workers: Iterable[Worker], fences: dict[tuple[str, int], int]) -> AgentState:
    """Begin again from what is on disk: workers that run or whose exit was not released, and every fence."""
    return AgentState(workers={worker.key: worker for worker in workers}, fences=dict(fences))


def inventory(state: AgentState) -> list[Worker]:
    """Everything that the coordinator should hear of in a Hello; remembers what was told."""
    workers = [state.workers[key] for key in sorted(state.workers)]
    state.told = {worker.key: worker.phase for worker in workers}
    return workers


def handle(state: AgentState, event: Event) -> list[Action]:
    """Advance the state by one event, and say what to do."""
    match event:
        case Welcomed(epoch):
            return _welcomed(state, epoch)
        case StreamLost():
            state.connected = False
            return []
        case LeftAlone():
            return [] if state.connected else _fence(state)
        case WorkerSpawned():
            return _spawned(state, event)
        case WorkerEnded():
            return _ended(state, event)
        case ShardPrepared():
            return _prepared(state, event)
        case CheckpointReported():
            return _reported(state, event)
        case _:
            return _commanded(state, event) if event.epoch >= state.epoch else []


def _welcomed(state: AgentState, epoch: int) -> list[Action]:
    if epoch < state.epoch:
        return [Disconnect(f"its epoch {epoch} is older than {state.epoch}")]
    state.epoch = epoch
    state.connected = True
    actions: list[Action] = []
    for key, worker in sorted(state.workers.items()):
        if worker.phase is not state.told.get(key):
            if worker.phase is Phase.RUNNING:
                actions.append(TellStarted(worker))
            elif worker.phase is Phase.ENDED:
                actions.append(TellEnded(worker))
    actions += [TellPrepared(key, shard) for key, shard in sorted(state.prepared.items())]
    for key, reports in sorted(state.reports.items()):
        actions += [TellReported(key, report) for report in reports.values()]
    return actions


def _commanded(state: AgentState, event: Commanded) -> list[Action]:
    match event:
        case StartCommanded():
            return [action for start in event.starts for action in _start(state, start)]
        case StopCommanded():
            return [action for key in event.keys for action in _stop(state, key, event.how)]
        case ReleaseCommanded():
            return [action for key in event.keys for action in _release(state, key)]
        case CommitAcked():
            return _commit_acked(state, event)
        case ShardRefused(_, key, step, reason):
            if key in state.prepared and state.prepared[key].step == step:
                del state.prepared[key]
            return [AnswerRefused(key, step, reason)]
        case ReportNoted(_, key, kind, step):
            _forget_report(state, key, kind, step)
            return [AnswerNoted(key, kind, step)]
        case JobForgotten(_, job_id):
            return _forget(state, job_id)


def _start(state: AgentState, start: Start) -> list[Action]:
    key = start.key
    if key.attempt <= state.fences.get((key.job_id, key.rank), 0):
        return []
    state.fences[key.job_id, key.rank] = key.attempt
    older = _live_attempts(state, key)
    state.workers[key] = Worker(key, Phase.STARTING)
    if not older:
        return [Spawn(start)]
    # The coordinator has superseded what still runs of this rank.
    state.deferred[key] = start
    return [action for superseded in older for action in _stop(state, superseded, Stop.FORCE)]


def _live_attempts(state: AgentState, of: Key) -> list[Key]:
    """The attempts of one rank that have not ended, oldest first."""
    return sorted(
        key
        for key, worker in state.workers.items()
        if (key.job_id, key.rank) == (of.job_id, of.rank) and worker.phase is not Phase.ENDED
    )


def _stop(state: AgentState, key: Key, how: Stop) -> list[Action]:
    worker = state.workers.get(key)
    if worker is None or worker.phase is Phase.ENDED or worker.stop in (how, Stop.FORCE):
        return []
    state.workers[key] = replace(worker, stop=how)
    # One that is still being started is signalled as soon as it exists.
    return [Signal(key, how)] if worker.phase is Phase.RUNNING else []


def _fence(state: AgentState) -> list[Action]:
    actions: list[Action] = []
    for key, worker in sorted(state.workers.items()):
        if worker.phase is not Phase.ENDED and worker.stop is Stop.NO:
            state.workers[key] = replace(worker, stop=Stop.GRACE)
            actions.append(Fence(key))
    return actions


def _release(state: AgentState, key: Key) -> list[Action]:
    worker = state.workers.get(key)
    if worker is None or worker.phase is not Phase.ENDED:
        return []
    del state.workers[key]
    return [MarkReleased(key), *_remove_forgotten(state, key.job_id)]


def _forget(state: AgentState, job_id: str) -> list[Action]:
    state.forgotten.add(job_id)
    of_job = sorted(key for key in state.workers if key.job_id == job_id)
    stops = [action for key in of_job for action in _stop(state, key, Stop.FORCE)]
    return [*stops, *_remove_forgotten(state, job_id)]


def _remove_forgotten(state: AgentState, job_id: str) -> list[Action]:
    """Remove what a deleted job has on disk, unless a worker is still here whose end has to be told."""
    if job_id not in state.forgotten or any(key.job_id == job_id for key in state.workers):
        return []
    state.forgotten.remove(job_id)
    state.fences = {rank: fence for rank, fence in state.fences.items() if rank[0] != job_id}
    state.reports = {key: reports for key, reports in state.reports.items() if key.job_id != job_id}
    return [RemoveJob(job_id)]


def _commit_acked(state: AgentState, event: CommitAcked) -> list[Action]:
    actions: list[Action] = []
    for rank in event.ranks:
        key = Key(event.job_id, rank, event.attempt)
        if key in state.prepared and state.prepared[key].step <= event.step:
            del state.prepared[key]
        publish, drop = (event.publish, event.drop) if rank == event.ranks[0] else (None, ())
        actions.append(AnswerCommitted(key, event.step, publish, drop))
    return actions


def _spawned(state: AgentState, event: WorkerSpawned) -> list[Action]:
    worker = state.workers.get(event.key)
    if worker is None or worker.phase is not Phase.STARTING:
        return []
    worker = replace(worker, phase=Phase.RUNNING, pid=event.pid, pid_start=event.pid_start)
    state.workers[event.key] = worker
    actions: list[Action] = [TellStarted(worker)] if state.connected else []
    if worker.stop is not Stop.NO:
        actions.append(Signal(event.key, worker.stop))
    return actions


def _ended(state: AgentState, event: WorkerEnded) -> list[Action]:
    worker = state.workers.get(event.key)
    if worker is None or worker.phase is Phase.ENDED:
        return []
    worker = replace(worker, phase=Phase.ENDED, ended=event.ended)
    state.workers[event.key] = worker
    state.prepared.pop(event.key, None)
    actions: list[Action] = [TellEnded(worker)] if state.connected else []
    left = _live_attempts(state, event.key)
    if left and left[0] in state.deferred:
        actions.append(Spawn(state.deferred.pop(left[0])))
    return actions


def _prepared(state: AgentState, event: ShardPrepared) -> list[Action]:
    worker = state.workers.get(event.key)
    if worker is None or worker.phase is Phase.ENDED:
        return [AnswerRefused(event.key, event.shard.step, "this attempt is over")]
    newest = state.fences.get((event.key.job_id, event.key.rank), 0)
    if event.key.attempt < newest:
        reason = f"attempt {event.key.attempt} is superseded by attempt {newest}"
        return [AnswerRefused(event.key, event.shard.step, reason)]
    state.prepared[event.key] = event.shard
    return [TellPrepared(event.key, event.shard)] if state.connected else []


def _reported(state: AgentState, event: CheckpointReported) -> list[Action]:
    key, report = event.key, event.report
    worker = state.workers.get(key)
    if event.by_worker and (worker is None or worker.phase is Phase.ENDED):
        return [AnswerNoted(key, report.kind, report.step)]
    reports = state.reports.setdefault(key, {})
    reports[report.kind, report.step] = report
    if len(reports) > MOST_REPORTS:
        del reports[next(iter(reports))]
    return [TellReported(key, report)] if state.connected else []


def _forget_report(state: AgentState, key: Key, kind: int, step: int) -> None:
    reports = state.reports.get(key, {})
    reports.pop((kind, step), None)
    if not reports:
        state.reports.pop(key, None)
