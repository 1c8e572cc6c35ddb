"""What to do: rows to make durable, then commands to send.

`Effects.writes` are one transaction. Nothing of `Effects.commands` may leave the process before that
transaction is on disk (P3); a command that is lost is made good when its agent opens its next session.
"""

from dataclasses import dataclass
from enum import StrEnum

from holdfast_coordinator.core.jobspec import JobSpec
from holdfast_coordinator.core.model import Commit, Entry, Gang, Job, Key, Node, Prepared, ReportKind, Worker

Row = Job | Gang | Worker | Node | Prepared


@dataclass(frozen=True, slots=True)
class Put:
    """Insert the row, or replace the one with its key."""

    row: Row


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove the row."""

    row: Row


@dataclass(frozen=True, slots=True)
class Append:
    """Add to a history.

    A commit takes the place of what the ranks of its gang hold prepared of its step, which are its shards.
    """

    item: Entry | Commit


@dataclass(frozen=True, slots=True)
class SetEpoch:
    """Take over as the leader of this epoch."""

    epoch: int


@dataclass(frozen=True, slots=True)
class DropHistory:
    """Remove the commits of a job that was deleted."""

    job_id: str


@dataclass(frozen=True, slots=True)
class DropCommit:
    """Remove one commit from its history: it is no longer kept, or was never what it seemed.

    Its gang must no longer have it as its newest.
    """

    job_id: str
    gang: int
    step: int


@dataclass(frozen=True, slots=True)
class MarkDrained:
    """Note of a commit in the history that the file of a rank no longer lies on its node alone.

    If it is its gang's newest, the gang says so too.
    """

    job_id: str
    gang: int
    step: int
    rank: int


Write = Put | Delete | Append | SetEpoch | DropHistory | DropCommit | MarkDrained


@dataclass(frozen=True, slots=True)
class Welcome:
    """Open the session: always the first command on it."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """One worker to start."""

    rank: int
    attempt: int
    local_rank: int
    local_world_size: int
    group_rank: int
    gpus: tuple[int, ...]
    restart_count: int


@dataclass(frozen=True, slots=True)
class StartWorkers:
    """Start workers of a job, each at most once for its key."""

    job_id: str
    spec: JobSpec
    assignments: tuple[Assignment, ...]
    master_addr: str
    master_port: int
    resume: tuple[Commit, ...]


@dataclass(frozen=True, slots=True)
class StopWorkers:
    """Stop workers: SIGTERM, grace, SIGKILL; or at once."""

    keys: tuple[Key, ...]
    force: bool
    reason: str
    restart: bool = False
    """Another rank of their gang died: the grace for that."""


@dataclass(frozen=True, slots=True)
class AskStop:
    """Have workers stop after a checkpoint: they answer with a step or, when `step` is set, stop there."""

    keys: tuple[Key, ...]
    reason: str
    within_ms: int
    """Before they get SIGTERM."""
    step: int | None


@dataclass(frozen=True, slots=True)
class ReleaseWorkers:
    """These exits are durable; the agent may forget them."""

    keys: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class AckCommit:
    """The checkpoint is committed."""

    job_id: str
    attempt: int
    step: int
    ranks: tuple[int, ...]
    publish: Commit | None
    drop: tuple[int, ...] = ()
    """With `publish`: steps whose files are to be deleted."""


@dataclass(frozen=True, slots=True)
class RefuseShard:
    """The shard was not taken and never will be."""

    key: Key
    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class NoteReport:
    """The report is durable, or about something that is over."""

    key: Key
    kind: ReportKind
    step: int


@dataclass(frozen=True, slots=True)
class JobOver:
    """No worker of the job starts there again: what was preloaded for it may end. Nothing is lost when this is."""

    job_id: str


@dataclass(frozen=True, slots=True)
class NoteHang:
    """The hang, or its end, is durable, or about something that is over."""

    key: Key
    since_ns: int
    over: bool


@dataclass(frozen=True, slots=True)
class ForgetJob:
    """Remove the job's logs and scratch files."""

    job_id: str


@dataclass(frozen=True, slots=True)
class CloseSession:
    """End the session: it no longer speaks for its node, or may not."""

    reason: str


Command = (
    Welcome
    | StartWorkers
    | StopWorkers
    | AskStop
    | ReleaseWorkers
    | AckCommit
    | RefuseShard
    | NoteReport
    | NoteHang
    | ForgetJob
    | JobOver
    | CloseSession
)


@dataclass(frozen=True, slots=True)
class Send:
    """A command and the session it is for."""

    session: str
    command: Command


class Problem(StrEnum):
    """Why a request was refused."""

    NOT_FOUND = "not_found"
    ALREADY_EXISTS = "already_exists"
    FAILED_PRECONDITION = "failed_precondition"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that changed nothing, and why."""

    problem: Problem
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Effects:
    """What one event brings about."""

    writes: tuple[Write, ...] = ()
    commands: tuple[Send, ...] = ()
    reason: str = ""
    """Why nothing was done, when an event was dropped."""
    refusal: Refusal | None = None
