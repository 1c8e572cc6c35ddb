"""Summaries of jobs, kept for a moment: those who look at a large job ask for its sums again and again."""

from collections import OrderedDict
from dataclasses import dataclass
from operator import is_

from holdfast.v1 import job_pb2
from holdfast_coordinator import codec
from holdfast_coordinator.core.account import summarize
from holdfast_coordinator.core.model import Gang, Job, Worker
from holdfast_coordinator.core.state import State
from holdfast_coordinator.engine import Engine

KEPT_MS_A_RANK = 0.5
"""So long it may lag behind what ranks report: of 1,000 ranks half a second, and each reports once a second."""
MOST = 100


@dataclass(frozen=True, slots=True)
class _Kept:
    at_ms: int
    rows: list[Job | Gang | Worker]
    summary: job_pb2.JobSummary


class Summaries:
    """Sums up jobs. What is durable shows at once: a row that was replaced makes what was kept void."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    def of(self, state: State, job: Job) -> job_pb2.JobSummary:
        """The summary of a job. Not to be changed: others get the same."""
        now = self._engine.clock.now()
        gangs, workers = state.gangs_of(job), state.workers_of(job)
        rows: list[Job | Gang | Worker] = [job, *gangs, *workers]
        kept = self._kept.get(job.id)
        young = kept is not None and now - kept.at_ms < len(workers) * KEPT_MS_A_RANK
        if kept is not None and young and all(map(is_, rows, kept.rows)):
            return kept.summary
        numbers = summarize(job, gangs, workers, self._engine.running(job, workers), now)
        summary = codec.summary_to_proto(job, numbers)
        self._kept[job.id] = _Kept(now, rows, summary)
        self._kept.move_to_end(job.id)
        if len(self._kept) > MOST:
            self._kept.popitem(last=False)
        return summary
