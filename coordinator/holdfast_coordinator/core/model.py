"""What is: the rows that the coordinator keeps, one frozen dataclass an entity.

Times are milliseconds since the Unix epoch, durations milliseconds. A row is replaced, never changed.

Scope decides who restarts and commits together, and that is all a `Gang` is: in restart scope "gang" a job has
one gang of all its ranks, in scope "rank" it has one gang of one rank for each. Nothing else in the core
asks for the scope.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from holdfast_coordinator.core.jobspec import ExitKind, JobSpec


class Desired(StrEnum):
    """What the user wants of a job."""

    RUNNING = "running"
    STOPPED = "stopped"


class JobState(StrEnum):
    """What is observed of a job."""

    PENDING = "pending"
    STARTING = "starting"
    RUNNING = "running"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"


class WorkerState(StrEnum):
    """What is observed of a rank, in its newest attempt."""

    WAITING = "waiting"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    LOST = "lost"


class NodeState(StrEnum):
    """What is known of a node."""

    READY = "ready"
    SUSPECT = "suspect"
    LOST = "lost"


class ReportKind(StrEnum):
    """What became of a checkpoint outside its commit; see worker.proto."""

    SAVE_FAILED = "save_failed"
    CORRUPT = "corrupt"
    DRAINED = "drained"
    DROPPED = "dropped"


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED})
"""Job states that a job leaves only when its user restarts it, and `SUCCEEDED` never."""

LIVE = frozenset({WorkerState.STARTING, WorkerState.RUNNING, WorkerState.STOPPING})
"""Worker states in which a process may exist on the worker's node."""

DEAD = frozenset({WorkerState.FAILED, WorkerState.STOPPED, WorkerState.LOST})
"""Worker states after an attempt that did not succeed."""


@dataclass(frozen=True, slots=True)
class Job:
    """A training command with what is wanted of it and what has become of it."""

    id: str
    request_id: str
    spec: JobSpec
    desired: Desired
    state: JobState
    reason: str
    """Why it is in this state, in one sentence."""
    created_ms: int
    started_ms: int = 0
    finished_ms: int = 0
    ending: JobState | None = None
    """The terminal state that it is being brought to, while workers are still being stopped."""
    force: bool = False
    """Stop without grace."""
    restarts_asked: tuple[str, ...] = ()
    """The ids of the newest requests that restarted it: one that is sent again changes nothing."""
    over_ms: int = 0
    """For how long it had ended before it was restarted."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank's file of a checkpoint; see worker.proto."""

    rank: int
    file: str
    size_bytes: int
    digest: str
    cursor: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    local_only: bool = False
    """It lies on the rank's node alone; a storage that could not be reached gets it later."""

    def same_file(self, other: "Shard") -> bool:
        """Tell whether both mean one file, wherever it lies by now."""
        return (self.rank, self.file, self.size_bytes, self.digest) == (
            other.rank,
            other.file,
            other.size_bytes,
            other.digest,
        )


@dataclass(frozen=True, slots=True)
class Commit:
    """A checkpoint that all of its ranks prepared; the one to resume from, or one before it."""

    job_id: str
    gang: int
    step: int
    attempt: int
    at_ms: int
    rank: int | None
    """Set in scope "rank"."""
    world_size: int
    shards: tuple[Shard, ...]

    @property
    def degraded(self) -> bool:
        """Some of it lies on nodes alone, and is lost with them."""
        return True in [shard.local_only for shard in self.shards]  # faster than any() over 1,000

    @property
    def metrics(self) -> Mapping[str, float]:
        """What the program reported with the step: the lowest rank's word."""
        return self.shards[0].metrics


@dataclass(frozen=True, slots=True)
class Kept:
    """A commit that retention may have to drop one day."""

    step: int
    metric: float | None = None
    """None: the program did not report it, or it was no number."""


@dataclass(frozen=True, slots=True)
class Pin:
    """A commit that a user wants kept, by a name."""

    step: int
    name: str


@dataclass(frozen=True, slots=True)
class Repeat:
    """Exits that were the program's own doing, of one kind, in a row and without progress."""

    how: str = ""
    times: int = 0
    node: str = ""
    """Where all of them were; empty when they were not on one node."""


@dataclass(frozen=True, slots=True)
class Stopping:
    """A gang is to stop after a checkpoint that all of its ranks take at one step; see stopping.py."""

    reason: str
    """In a few words, as the program reads it."""
    cause: str
    """In one sentence."""
    asked_ms: int
    term_ms: int
    """What has not ended by itself until then gets SIGTERM,"""
    kill_ms: int
    """and SIGKILL then."""
    answers: int = 0
    """How many of its ranks have said at which step they can stop."""
    step: int = -1
    """The highest of these; when all have answered, the step that they stop at."""
    agreed: bool = False
    leaves: bool = True
    """All programs end by themselves when they should."""
    signalled: bool = False
    """SIGTERM was sent: nothing more is waited for."""


@dataclass(frozen=True, slots=True)
class Gang:
    """Ranks that are placed, restarted and committed together.

    `attempt` is the fencing token: whatever a worker of a lower attempt says is refused from the moment that
    this number grows, which is the moment that the first death in the gang is known.
    """

    job_id: str
    index: int
    """0 in scope "gang"; the rank in scope "rank"."""
    attempt: int = 1
    restarts: int = 0
    streak: tuple[int, ...] = ()
    """When it was restarted since it last made progress: what the budget and the backoff count."""
    best_step: int = -1
    """The furthest step at which any attempt ended; going beyond it is progress."""
    not_before_ms: int = 0
    """Its backoff ends here."""
    cause: str = ""
    """Why its last attempt ended, in one sentence."""
    master_addr: str = ""
    master_port: int = 0
    commit: Commit | None = None
    """The newest."""
    kept: tuple[Kept, ...] = ()
    """What retention decides about, oldest first; empty without a policy. The whole history is the store's."""
    pins: tuple[Pin, ...] = ()
    dropping: tuple[int, ...] = ()
    """Steps that are no longer kept, and whose files a worker is still asked to delete; oldest first."""
    failed_step: int = -1
    """The furthest step of this attempt of which a rank could not write its file."""
    degraded_commits: int = 0
    """How many of its commits lay on nodes alone when they were made."""
    repeat: Repeat = Repeat()
    excluded: Mapping[str, str] = field(default_factory=dict)
    """Nodes that it is not placed on any more, and why not."""
    short_since_ms: int = 0
    """Since when it could start and there is no room for it; 0: it does not wait."""
    broke_ms: int = 0
    """When the attempt before this one came to its end; 0 when all of this one are up."""
    redone: int = 0
    """How many steps that one had done in vain."""
    stopping: Stopping | None = None


@dataclass(frozen=True, slots=True)
class Exit:
    """How an attempt ended."""

    code: int
    signal: int
    message: str
    at_ms: int
    never_ran: bool = False
    hung_ms: int = 0
    """How long it had not moved when it ended, if it was noticed to hang."""
    kind: ExitKind = ExitKind.EXITED
    line: str = ""
    """The line of its output that matters."""
    ended_ns: int = 0
    """When, in nanoseconds since the Unix epoch by the coordinator's clock, to which those of all machines are aligned;
    0: not known. An agent gives it by its machine's own clock."""


@dataclass(frozen=True, slots=True)
class Output:
    """What the output of an attempt that has ended says; it goes to the timeline, and no further."""

    tail: str = ""
    matched: tuple[int, ...] = ()
    """The rules of the spec, from 0, whose `log` was found in it."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an attempt came: what its heartbeat file says."""

    step: int | None = None
    steps_done: int = 0
    stepping_ms: int = 0
    """From its first to its last report of a step."""
    section: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    setup_ms: int = 0
    """From the start of its process to its first report."""
    checkpoint_ms: int = 0
    """In the section "checkpoint" since its first report."""
    other_ms: int = 0
    """The same in other sections in which no step is reported."""
    aside_ms: int = 0
    """How much of those two is part of `stepping_ms`."""
    total_steps: int = 0
    """How many there will be in all; 0: not known."""
    waiting_ms: int = 0
    """For other ranks, in the section "wait"."""


@dataclass(frozen=True, slots=True)
class Hang:
    """How a worker hangs, as its agent noticed it."""

    since_ns: int
    """Names it: when the worker last moved, by its node's CLOCK_MONOTONIC."""
    since_ms: int
    section: str
    step: int | None
    silent_ms: int
    """How long it had not moved when that was noticed."""
    limit_ms: int
    learned: bool
    """The limit was not set in the spec."""
    stopped: bool = False
    """By a signal."""
    where: str = ""
    """The innermost frame of its main thread, where it could be had."""
    acted: bool = False
    """It is being stopped for that."""


@dataclass(frozen=True, slots=True)
class Straggler:
    """How a rank compares with its peers, on the node that it is on."""

    score: float | None = None
    """Set while it is a straggler."""
    strikes: int = 0
    """For how many windows it was one."""


@dataclass(frozen=True, slots=True)
class Account:
    """Where a rank's time went in the attempts that are over; see account.py."""

    steps_done: int = 0
    steps_redone: int = 0
    alive_ms: int = 0
    setup_ms: int = 0
    """Before its first steps."""
    stepping_ms: int = 0
    """In steps, those that were kept and those that are done again."""
    kept_ms: int = 0
    checkpoint_ms: int = 0
    other_ms: int = 0
    """In sections of the program's own, for instance "eval", and after its last step."""
    hang_ms: int = 0
    waiting_ms: int = 0
    """Without a process, for want of room on the nodes."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One rank of a job, in its newest attempt."""

    job_id: str
    rank: int
    gang: int
    state: WorkerState
    attempt: int = 1
    node: str = ""
    homes: tuple[str, ...] = ()
    """Every node that it was placed on: where its logs are."""
    local_rank: int = 0
    group_rank: int = 0
    local_world_size: int = 1
    gpus: tuple[int, ...] = ()
    pid: int = 0
    pid_start: int = 0
    started_ms: int = 0
    resume_step: int | None = None
    exit: Exit | None = None
    """Of the newest attempt that ended."""
    progress: Progress = Progress()
    """As it was when the attempt ended; while it runs, see the engine's telemetry."""
    account: Account = Account()
    hang: Hang | None = None
    """Set while it hangs."""
    straggler: Straggler = Straggler()
    stop_at: int | None = None
    """The step that it waits at until it is told where its gang stops."""

    @property
    def key(self) -> "Key":
        """Names this attempt of this rank for ever."""
        return Key(self.job_id, self.rank, self.attempt)


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Names one attempt of one rank for ever."""

    job_id: str
    rank: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """A shard that waits for the rest of its gang."""

    job_id: str
    gang: int
    rank: int
    attempt: int
    step: int
    shard: Shard


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a node has."""

    slots: int = 0
    cpus: float = 0.0
    memory_bytes: int = 0
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class Cordon:
    """Why a node takes no new work, and until when it is to be empty."""

    reason: str
    """In a few words; empty: its user gave none."""
    by_notice: bool = False
    """Its agent asked for it: an agent that comes back without a notice lifts it."""
    drain_by_ms: int = 0
    """0: what runs there stays."""
    drained: bool = False
    """All that ran there is gone since."""

    @property
    def draining(self) -> bool:
        """Work is being moved away."""
        return bool(self.drain_by_ms) and not self.drained


@dataclass(frozen=True, slots=True)
class Node:
    """A machine and the agent on it."""

    name: str
    instance_id: str
    state: NodeState
    reason: str
    address: str
    capacity: Capacity
    joined_ms: int
    session: str = ""
    """The session that speaks for it; empty while none is open."""
    boot_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    agent_version: str = ""
    ports: tuple[int, ...] = ()
    """Held free by its agent for MASTER_PORT."""
    strays: tuple[Key, ...] = ()
    """Superseded workers that are still being killed there; nothing is placed on it before they are gone."""
    clock_offset_ns: int = 0
    """From its CLOCK_MONOTONIC to nanoseconds since the Unix epoch by the coordinator's clock."""
    gone_after_ms: int = 0
    """After so much silence it is lost, since its stream broke and its workers end with its agent; 0: no such thing."""
    cordon: Cordon | None = None
    lost_ms: int = 0
    """Since when it is lost; 0: it is not."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the timeline."""

    seq: int
    at_ms: int
    kind: str
    message: str
    job_id: str = ""
    node: str = ""
    rank: int | None = None
    attempt: int = 0
    evidence: str = ""
    """What the message rests on, as it was found: the last lines of a log, a stack."""
    outcome: str = ""
    """What came of it or is done about it, in one sentence; empty: nothing."""
