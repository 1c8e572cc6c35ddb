"""What a coordinator tells Prometheus: docs/metrics.md has it for people.

Series of a job are there while it is live, and of MOST_JOBS jobs at most, however many there are.
"""

import asyncio
from collections import Counter
from itertools import islice

from holdfast import __version__
from holdfast.exposition import Described, Value
from holdfast_coordinator.core.account import last_committed
from holdfast_coordinator.core.model import LIVE, TERMINAL, Job, JobState, NodeState, WorkerState
from holdfast_coordinator.core.state import State
from holdfast_coordinator.engine import Engine, NotLeadingError
from holdfast_coordinator.recorder import Recorder

MOST_JOBS = 1_000
"""Live jobs with series of their own, the oldest first, so that none loses them while it runs."""
ASK_WITHIN_S = 2.0
"""An engine that waits for its disk does not answer; a scrape has to."""

JOB = ("job_id",)
"""Not "job", which Prometheus sets itself on whatever it scrapes."""
INFO = Described("holdfast_coordinator_info", "gauge", "The version that runs; always 1.", ("version",))
LEADING = Described(
    "holdfast_coordinator_leading", "gauge", "1 while it serves, 0 while its store fails or another leads."
)
EPOCH = Described("holdfast_coordinator_epoch", "gauge", "The epoch of this leader.")
JOBS = Described("holdfast_jobs", "gauge", "Jobs by state.", ("state",))
WORKERS = Described("holdfast_workers", "gauge", "Workers of live jobs by state.", ("state",))
NODES = Described("holdfast_nodes", "gauge", "Nodes by state.", ("state",))
CORDONED = Described("holdfast_nodes_cordoned", "gauge", "Nodes that take no new work.")
SLOTS = Described("holdfast_slots", "gauge", "Slots of the nodes that are ready.")
SLOTS_USED = Described("holdfast_slots_used", "gauge", "Those of them that a worker has.")
SESSIONS = Described("holdfast_sessions", "gauge", "Agents that are connected.")
HEARTBEATS = Described("holdfast_heartbeats_total", "counter", "Signs of life of agents.")
EVENTS = Described("holdfast_events_total", "counter", "Lines of the timeline by kind.", ("kind",))
RESTARTS = Described(
    "holdfast_restarts_total", "counter", "Restarts, charged to the restart budget or free.", ("kind",)
)
COMMITS = Described("holdfast_checkpoint_commits_total", "counter", "Checkpoints that were committed.")
CHECKPOINT = Described(
    "holdfast_checkpoint_commit_seconds",
    "histogram",
    "From the first prepared shard of a step to its commit.",
)
STORE = Described("holdfast_store_commit_seconds", "histogram", "Transactions of the store.")
BATCH = Described(
    "holdfast_engine_batch_seconds", "histogram", "Rounds of the engine, with their transaction."
)
QUEUE = Described("holdfast_engine_queue_seconds", "histogram", "How long requests waited for their round.")
BACKLOG = Described("holdfast_engine_queue_length", "gauge", "What waits for the next round now.")
LEFT_OUT = Described(
    "holdfast_jobs_left_out", "gauge", f"Live jobs without series of their own: those beyond {MOST_JOBS}."
)
JOB_INFO = Described("holdfast_job_info", "gauge", "The name of a job; always 1.", ("job_id", "name"))
JOB_STEPS = Described(
    "holdfast_job_steps_total", "counter", "Steps done, all ranks and attempts together.", JOB
)
JOB_STEP = Described("holdfast_job_step", "gauge", "The furthest step that every rank has reached.", JOB)
JOB_RATE = Described("holdfast_job_steps_per_second", "gauge", "Throughput, all ranks together.", JOB)
JOB_GOODPUT = Described(
    "holdfast_job_goodput_ratio", "gauge", "Share of the ranks' time in steps that are kept.", JOB
)
JOB_RESTARTS = Described("holdfast_job_restarts_total", "counter", "Restarts of a job.", JOB)
JOB_COMMITTED = Described("holdfast_job_committed_step", "gauge", "The step to resume from.", JOB)
JOB_COMMIT_TIME = Described(
    "holdfast_job_commit_timestamp_seconds", "gauge", "When that was committed, as Unix time.", JOB
)
JOB_HUNG = Described("holdfast_job_hung_workers", "gauge", "Workers that hang.", JOB)
JOB_SLOW = Described("holdfast_job_straggling_workers", "gauge", "Workers that are stragglers.", JOB)
JOB_DEGRADED = Described(
    "holdfast_job_degraded", "gauge", "1 while files of the newest checkpoint lie on nodes alone.", JOB
)

OF_JOBS = (
    *(JOB_INFO, JOB_STEPS, JOB_STEP, JOB_RATE, JOB_GOODPUT, JOB_RESTARTS, JOB_COMMITTED, JOB_COMMIT_TIME),
    *(JOB_HUNG, JOB_SLOW, JOB_DEGRADED),
)
OF_STATE = (JOBS, WORKERS, NODES, CORDONED, SLOTS, SLOTS_USED, LEFT_OUT)
OWN = (
    *(INFO, LEADING, EPOCH, SESSIONS, HEARTBEATS, EVENTS, RESTARTS, COMMITS),
    *(CHECKPOINT, STORE, BATCH, QUEUE, BACKLOG),
)
ALL = (*OWN, *OF_STATE, *OF_JOBS)


class Exporter:
    """The numbers of one coordinator."""

    def __init__(self, engine: Engine, recorder: Recorder) -> None:
        self._engine = engine
        self._recorder = recorder

    async def collect(self) -> list[tuple[Described, Value]]:
        """Gather all there is. What is of the state is left out while the engine does not answer."""
        found = self._own()
        try:
            async with asyncio.timeout(ASK_WITHIN_S):
                found += await self._engine.read(self._of_state)
        except (NotLeadingError, TimeoutError):
            pass
        return found

    def _own(self) -> list[tuple[Described, Value]]:
        engine, measures = self._engine, self._engine.measures
        return [
            (INFO, {(__version__,): 1}),
            (LEADING, int(engine.leading)),
            (EPOCH, engine.epoch),
            (SESSIONS, engine.sessions),
            (HEARTBEATS, measures.heartbeats),
            (EVENTS, {(kind,): count for kind, count in measures.events.items()}),
            (RESTARTS, {(kind,): count for kind, count in measures.restarts.items()}),
            (COMMITS, measures.commits),
            (CHECKPOINT, measures.checkpoint_s),
            (STORE, measures.store_s),
            (BATCH, measures.batch_s),
            (QUEUE, measures.queue_s),
            (BACKLOG, engine.backlog),
        ]

    def _of_state(self, state: State) -> list[tuple[Described, Value]]:
        jobs = Counter(job.state for job in state.jobs.values())
        nodes = Counter(node.state for node in state.nodes.values())
        workers: Counter[WorkerState] = Counter()
        for job_id in state.unfinished:
            workers.update(state.tallies.get(job_id, Counter()))
        ready = [node for node in state.nodes.values() if node.state is NodeState.READY]
        live = [job for job in state.jobs.values() if job.state not in TERMINAL]
        return [
            (JOBS, {(each.value,): jobs[each] for each in JobState}),
            (WORKERS, {(each.value,): workers[each] for each in WorkerState}),
            (NODES, {(each.value,): nodes[each] for each in NodeState}),
            (CORDONED, sum(node.cordon is not None for node in state.nodes.values())),
            (SLOTS, sum(node.capacity.slots for node in ready)),
            (SLOTS_USED, sum(len(state.live_on(node.name)) for node in ready)),
            (LEFT_OUT, max(0, len(live) - MOST_JOBS)),
            *self._of_jobs(state, live),
        ]

    def _of_jobs(self, state: State, live: list[Job]) -> list[tuple[Described, Value]]:
        found: dict[Described, dict[tuple[str, ...], float]] = {each: {} for each in OF_JOBS}
        for job in islice(live, MOST_JOBS):
            found[JOB_INFO][job.id, job.spec.name] = 1
            for described, value in self._of_job(state, job).items():
                if value is not None:
                    found[described][job.id,] = value
        return list(found.items())

    def _of_job(self, state: State, job: Job) -> dict[Described, float | None]:
        gangs, workers = state.gangs_of(job), state.workers_of(job)
        steps: list[int | None] = []
        for worker in workers:
            now = self._engine.steps_done(job.id, worker.rank, worker.attempt) if worker.state in LIVE else 0
            # Before a worker that runs has spoken to a new leader, a sum without it would look like a new beginning.
            unknown = now is None and worker.state is not WorkerState.STARTING
            steps.append(None if unknown else worker.account.steps_done + (now or 0))
        known = [each for each in steps if each is not None]
        commits = [gang.commit for gang in gangs if gang.commit is not None]
        latest = self._recorder.latest(job.id)
        return {
            JOB_STEPS: sum(known) if len(known) == len(steps) else None,
            JOB_STEP: latest.step,
            JOB_RATE: latest.values.get("steps_per_second"),
            JOB_GOODPUT: latest.values.get("goodput"),
            JOB_RESTARTS: sum(gang.restarts for gang in gangs),
            JOB_COMMITTED: last_committed(gangs),
            JOB_COMMIT_TIME: min(c.at_ms for c in commits) / 1000 if len(commits) == len(gangs) else None,
            JOB_HUNG: sum(worker.hang is not None for worker in workers),
            JOB_SLOW: sum(worker.straggler.score is not None for worker in workers),
            JOB_DEGRADED: int(any(commit.degraded for commit in commits)),
        }
