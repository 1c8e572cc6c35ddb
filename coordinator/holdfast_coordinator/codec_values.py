"""proto <-> core: the values that every message has, and the bounds of what may come in."""

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from holdfast.v1 import agent_pb2
from holdfast_coordinator.core import model

MOST_STEPS = 2**40
"""What a worker says beyond this is nonsense, and must not add up to more than its job's summary can hold."""

LONGEST_MESSAGE = 1_000
"""Of what a worker reports: a sentence, not a log."""


def key_from_proto(key: agent_pb2.WorkerKey) -> model.Key:
    """Read a worker's name."""
    return model.Key(key.job_id, key.rank, key.attempt)


def bounded(number: int) -> int:
    """Refuse what no clock since boot reaches, and no database column holds."""
    if number >= 2**63:
        raise ValueError(f"a time of {number} since boot can't be")
    return number


def timestamp(ms: int) -> Timestamp | None:
    """Write a moment; none for 0."""
    if not ms:
        return None
    stamp = Timestamp()
    stamp.FromMilliseconds(ms)
    return stamp


def duration(ms: int) -> Duration:
    """Write milliseconds."""
    found = Duration()
    found.FromMilliseconds(ms)
    return found


def to_ms(duration: Duration) -> int:
    """Read milliseconds, rounded towards zero: `ToMilliseconds` in a third of its time, for there are many."""
    return duration.seconds * 1_000 + int(duration.nanos / 10**6)
