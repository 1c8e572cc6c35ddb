"""What happened: past-tense nouns that carry their own time and ids.

`at` is milliseconds since the Unix epoch. Events of an agent name the session they came in on; from a session
that no longer speaks for its node they are dropped.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from holdfast_coordinator.core.jobspec import JobSpec
from holdfast_coordinator.core.model import (
    Capacity,
    Commit,
    Exit,
    Hang,
    Key,
    Output,
    Progress,
    ReportKind,
    Shard,
)


@dataclass(frozen=True, slots=True)
class LeaderElected:
    """This coordinator took over: started, restarted, or read its state anew after the store failed."""

    at: int
    epoch: int


@dataclass(frozen=True, slots=True)
class BackupRestored:
    """The state was read from a backup. Nobody has led with it yet; it is stepped behind a LeaderElected."""

    at: int
    commits: Mapping[tuple[str, int], tuple[Commit, ...]]
    """By job and gang: those of which there is a manifest."""


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed. `heard` says when each node was last heard from; one that is not in it counts as heard now."""

    at: int
    heard: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class JobSubmitted:
    """A user wants a job. The spec has been validated."""

    at: int
    job_id: str
    request_id: str
    spec: JobSpec


@dataclass(frozen=True, slots=True)
class JobStopRequested:
    """A user wants a job to end."""

    at: int
    job_id: str
    force: bool = False


@dataclass(frozen=True, slots=True)
class JobRestartRequested:
    """A user wants a job to begin its next attempt, or one that has ended to go on."""

    at: int
    job_id: str
    request_id: str
    force: bool = False


@dataclass(frozen=True, slots=True)
class JobDeleteRequested:
    """A user wants an ended job to be forgotten."""

    at: int
    job_id: str


@dataclass(frozen=True, slots=True)
class Found:
    """A worker in an agent's inventory: running, or ended and not yet released."""

    key: Key
    pid: int = 0
    pid_start: int = 0
    exit: Exit | None = None
    progress: Progress = Progress()
    output: Output = Output()


@dataclass(frozen=True, slots=True)
class Notice:
    """A machine is about to go away."""

    reason: str
    within_ms: int


@dataclass(frozen=True, slots=True)
class AgentJoined:
    """An agent opened a session and said what runs on its node."""

    at: int
    node: str
    session: str
    instance_id: str
    address: str
    capacity: Capacity
    inventory: tuple[Found, ...] = ()
    boot_id: str = ""
    ports: tuple[int, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    agent_version: str = ""
    clock_offset_ns: int = 0
    """As in Node."""
    notice: Notice | None = None


@dataclass(frozen=True, slots=True)
class StreamLost:
    """The stream of a session broke."""

    at: int
    node: str
    session: str
    silent_ms: int = 0
    """How long before that its node was heard from."""
    ends_workers: bool = False
    """Its agent said that its workers end with it."""


@dataclass(frozen=True, slots=True)
class WorkerStarted:
    """A worker's process exists."""

    at: int
    node: str
    session: str
    key: Key
    pid: int
    pid_start: int


@dataclass(frozen=True, slots=True)
class WorkerExited:
    """A worker's process tree is gone, or could not be started."""

    at: int
    node: str
    session: str
    key: Key
    exit: Exit
    progress: Progress = Progress()
    output: Output = Output()


@dataclass(frozen=True, slots=True)
class ShardPrepared:
    """A rank's file of a checkpoint is durable."""

    at: int
    node: str
    session: str
    key: Key
    step: int
    shard: Shard


@dataclass(frozen=True, slots=True)
class PortsOffered:
    """An agent holds these ports free."""

    at: int
    node: str
    session: str
    ports: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NodeNoticed:
    """An agent heard that its machine is about to go away."""

    at: int
    node: str
    session: str
    notice: Notice


@dataclass(frozen=True, slots=True)
class StopAnswered:
    """A worker says at which step it can stop: it waits there. None: it does not listen for such requests."""

    at: int
    node: str
    session: str
    key: Key
    step: int | None
    leaves: bool = False
    """It ends by itself when it should."""


@dataclass(frozen=True, slots=True)
class CheckpointReported:
    """Something became of a checkpoint outside its commit."""

    at: int
    node: str
    session: str
    key: Key
    kind: ReportKind
    step: int
    message: str = ""
    kept: Commit | None = None
    """What the history had when the engine looked; see `checkpoints.lookup`."""


@dataclass(frozen=True, slots=True)
class CheckpointDeleteRequested:
    """A user wants a checkpoint gone. `rank` is set in scope "rank"."""

    at: int
    job_id: str
    step: int
    rank: int | None = None
    kept: Commit | None = None
    """As in CheckpointReported."""


@dataclass(frozen=True, slots=True)
class CheckpointPinRequested:
    """A user wants a checkpoint kept under a name; an empty name lets go of it. `rank` is set in scope "rank"."""

    at: int
    job_id: str
    step: int
    name: str
    rank: int | None = None
    kept: Commit | None = None
    """As in CheckpointReported."""


@dataclass(frozen=True, slots=True)
class WorkerHung:
    """A worker has not moved for longer than it may; with `over`, it moves again."""

    at: int
    node: str
    session: str
    key: Key
    hang: Hang
    over: bool = False
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class StepsCompared:
    """What ranks of a job took for a step, in milliseconds, over one window: those that reported all through it."""

    at: int
    job_id: str
    step_ms: Mapping[Key, float]


@dataclass(frozen=True, slots=True)
class NodeCordonRequested:
    """A user wants a node to take no new work."""

    at: int
    node: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class NodeUncordonRequested:
    """A user wants a node to take new work again."""

    at: int
    node: str


@dataclass(frozen=True, slots=True)
class NodeDrainRequested:
    """A user wants a node to be empty in time."""

    at: int
    node: str
    within_ms: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class NodeForgetRequested:
    """A user wants a lost node to be forgotten."""

    at: int
    node: str


AgentEvent = (
    StreamLost
    | WorkerStarted
    | WorkerExited
    | ShardPrepared
    | PortsOffered
    | CheckpointReported
    | NodeNoticed
    | StopAnswered
    | WorkerHung
)
CheckpointRequest = CheckpointDeleteRequested | CheckpointPinRequested
NodeRequest = NodeCordonRequested | NodeUncordonRequested | NodeDrainRequested | NodeForgetRequested
JobRequest = JobSubmitted | JobStopRequested | JobRestartRequested | JobDeleteRequested
ClientEvent = JobRequest | CheckpointRequest | NodeRequest
Event = LeaderElected | BackupRestored | Ticked | StepsCompared | AgentJoined | AgentEvent | ClientEvent
