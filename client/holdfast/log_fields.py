"""What lines of a daemon's log carry beside what is said: which worker they are about, and under which leader."""

from collections.abc import MutableMapping
from typing import Any

Line = MutableMapping[str, Any]

_carried: dict[str, Any] = {}


def carry(**fields: object) -> None:
    """Have every line from here on carry these: not by task, since a task outlives the epoch that it began in."""
    _carried.update(fields)


def add_carried(_logger: object, _level: str, line: Line) -> Line:
    """Add what all lines carry, where a line does not say it itself."""
    for name, value in _carried.items():
        line.setdefault(name, value)
    return line


def spell_worker(_logger: object, _level: str, line: Line) -> Line:
    """Make `worker=key` into job, rank and attempt."""
    key = line.pop("worker", None)
    if key is not None:
        line.update(job=key.job_id, rank=key.rank, attempt=key.attempt)
    return line
