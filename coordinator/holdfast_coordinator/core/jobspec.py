"""What a user asks for: the spec of a job, one frozen dataclass for each of its parts. Never changed from then on.

Durations are milliseconds. See job.proto, which says of every field what it means.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

DEFAULT_STOP_GRACE_MS = 30_000
DEFAULT_RESTART_GRACE_MS = 5_000
DEFAULT_LOG_BYTES = 2**30


class Scope(StrEnum):
    """What has to be restarted when a rank dies."""

    GANG = "gang"
    RANK = "rank"


class Mode(StrEnum):
    """Which values of a metric are good ones."""

    MIN = "min"
    MAX = "max"


class HangAction(StrEnum):
    """What is done about a worker that hangs."""

    NOTIFY = "notify"
    RESTART = "restart"
    OFF = "off"


class ExitKind(StrEnum):
    """How a worker ended, as far as that is known for certain; see job.proto."""

    EXITED = "exited"
    SIGNALLED = "signalled"
    OUT_OF_MEMORY = "out_of_memory"
    DISK_FULL = "disk_full"
    NEVER_RAN = "never_ran"
    SHIM_LOST = "shim_lost"
    ABANDONED = "abandoned"
    LOST = "lost"


class Action(StrEnum):
    """What a rule says to do about an exit."""

    RETRY = "retry"
    FAIL = "fail"
    EXCLUDE_NODE = "exclude_node"
    IGNORE = "ignore"
    RESTART_GANG = "restart_gang"


@dataclass(frozen=True, slots=True)
class Resources:
    """What one worker needs beside its slot."""

    cpus: float = 0.0
    memory_bytes: int = 0
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When to restart, how long to wait before, and when to give up."""

    scope: Scope = Scope.GANG
    backoff_ms: int = 500
    backoff_cap_ms: int = 30_000
    jitter: float = 0.1
    budget: int = 50
    window_ms: int = 0
    """0: the whole life of the job."""
    no_progress_limit: int = 3
    """So many exits of the same kind in a row without progress end the job; 0: never."""
    grace_ms: int = DEFAULT_RESTART_GRACE_MS
    """For those who have to go because another rank died."""


@dataclass(frozen=True, slots=True)
class CodeRange:
    """Exit codes, the first and the last included."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Rule:
    """What to do about an exit of which all that is given here is true."""

    action: Action
    exit_codes: tuple[CodeRange, ...] = ()
    signals: tuple[int, ...] = ()
    kinds: tuple[ExitKind, ...] = ()
    log: str = ""
    """Searched for by the agent, which has the log."""
    section: str = ""
    before_first_step: bool | None = None


@dataclass(frozen=True, slots=True)
class DataShard:
    """One file of a data set; see job.proto."""

    file: str
    samples: int
    size_bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class DataSet:
    """What a job consumes."""

    name: str
    uri: str
    shards: tuple[DataShard, ...]


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """Which checkpoints are kept; see retention.py."""

    keep_last: int = 2
    keep_every: int = 0
    """In steps; 0: none for being the N-th."""
    best: int = 0
    metric: str = ""
    mode: Mode = Mode.MIN


@dataclass(frozen=True, slots=True)
class HangPolicy:
    """When a worker hangs, and what is done about it; see job.proto."""

    action: HangAction = HangAction.NOTIFY
    limits_ms: Mapping[str, int] = field(default_factory=dict)
    """By section."""
    factor: float = 10.0
    floor_ms: int = 600_000


@dataclass(frozen=True, slots=True)
class StragglerPolicy:
    """When a rank is a straggler, and what is done about it; see stragglers.py."""

    threshold: float = 3.0
    strikes: int = 0
    """0: it is only marked."""


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What the user asked for; never changed after the job was created."""

    name: str
    command: tuple[str, ...]
    world_size: int
    env: Mapping[str, str] = field(default_factory=dict)
    working_dir: str = ""
    resources: Resources = Resources()
    restart: RestartPolicy = RestartPolicy()
    stop_grace_ms: int = DEFAULT_STOP_GRACE_MS
    checkpoint_uri: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    datasets: tuple[DataSet, ...] = ()
    retention: RetentionPolicy | None = None
    """None: every checkpoint is kept."""
    resume_from: str = ""
    """A checkpoint of another job, to begin with while there is none of its own."""
    rules: tuple[Rule, ...] = ()
    """The first that matches an exit decides; see rules.py."""
    log_bytes: int = DEFAULT_LOG_BYTES
    """Kept of the workers' output on each node."""
    log_metrics: Mapping[str, str] = field(default_factory=dict)
    """Regular expressions that find metrics in it, by name."""
    hang: HangPolicy = HangPolicy()
    stragglers: StragglerPolicy = StragglerPolicy()
    preload: tuple[str, ...] = ()
    """Modules that are imported once on each node; see job.proto."""
    spares: int = 0
