"""What lines of a daemon's log carry beside what is said: which worker they are about, and under which leader."""

from collections.abc import Mapping, MutableMapping
from typing import Any

from holdfast import tracing

Line = MutableMapping[str, Any]

MOST_TRACES = 10_000

_carried: dict[str, Any] = {}
_traces: dict[str, str] = {}


def carry(**fields: object) -> None:
    """Have every line from here on carry these: not by task, since a task outlives the epoch that it began in."""
    _carried.update(fields)


def add_carried(_logger: object, _level: str, line: Line) -> Line:
    """Add what all lines carry, where a line does not say it itself."""
    for name, value in _carried.items():
        line.setdefault(name, value)
    return line


def note_trace(job_id: str, env: Mapping[str, str]) -> None:
    """Have lines about a job from here on name its trace, if the environment of its spec says one."""
    found = tracing.trace_id(env.get(tracing.VARIABLE, ""))
    if found and job_id not in _traces:
        if len(_traces) >= MOST_TRACES:
            del _traces[next(iter(_traces))]
        _traces[job_id] = found


def add_trace(_logger: object, _level: str, line: Line) -> Line:
    """Add the trace of the job that a line is about."""
    found = _traces.get(line.get("job") or "")
    if found is not None:
        line["trace"] = found
    return line


def spell_worker(_logger: object, _level: str, line: Line) -> Line:
    """Make `worker=key` into job, rank and attempt."""
    key = line.pop("worker", None)
    if key is not None:
        line.update(job=key.job_id, rank=key.rank, attempt=key.attempt)
    return line
