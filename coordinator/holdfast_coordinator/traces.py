"""What the coordinator adds to the traces of jobs, and to the lines of its log about them."""

from collections.abc import Iterable

from holdfast import tracing
from holdfast.log_fields import note_trace
from holdfast_coordinator.core.effects import Append, Put, Write
from holdfast_coordinator.core.model import Commit, Job
from holdfast_coordinator.core.state import State


def begin(state: State) -> None:
    """Know the jobs that an earlier leader has left."""
    for job in state.jobs.values():
        note_trace(job.id, job.spec.env)


def tell(state: State, writes: Iterable[Write]) -> None:
    """Tell of what is durable now."""
    for write in writes:
        match write:
            case Put(Job(id=job_id, spec=spec)):
                note_trace(job_id, spec.env)
            case Append(Commit() as commit) if tracing.on() and commit.job_id in state.jobs:
                parent = state.jobs[commit.job_id].spec.env.get(tracing.VARIABLE, "")
                tracing.tell(
                    "commit checkpoint",
                    parent,
                    commit.at_ms * 1_000_000,
                    job=commit.job_id,
                    step=commit.step,
                    shards=len(commit.shards),
                )
            case _:
                pass
