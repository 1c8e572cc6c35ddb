"""JobService."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing

from google.rpc import code_pb2

from holdfast import tracing
from holdfast.log_wire import AnyChunk
from holdfast.v1 import job_pb2, job_pb2_grpc
from holdfast_coordinator import codec, codec_metrics, codec_plan
from holdfast_coordinator.core import story
from holdfast_coordinator.core.checkpoints import find_gang, no_checkpoint
from holdfast_coordinator.core.effects import Problem, Refusal
from holdfast_coordinator.core.events import (
    CheckpointDeleteRequested,
    CheckpointPinRequested,
    JobDeleteRequested,
    JobRestartRequested,
    JobStopRequested,
    JobSubmitted,
)
from holdfast_coordinator.core.jobspec import JobSpec
from holdfast_coordinator.core.model import TERMINAL, Commit, Entry, Gang, Job, JobState
from holdfast_coordinator.core.plan import plan
from holdfast_coordinator.core.series import Point
from holdfast_coordinator.core.state import State
from holdfast_coordinator.core.story import Story
from holdfast_coordinator.core.validate import Violation, pin_violations, violations
from holdfast_coordinator.engine import Engine, NotLeadingError, RefusedError
from holdfast_coordinator.recorder import Recorder
from holdfast_coordinator.rpc import paging, watches
from holdfast_coordinator.rpc.errors import Context, abort, abort_refused
from holdfast_coordinator.rpc.job_watch import JobWatches
from holdfast_coordinator.rpc.logs import LogRelay
from holdfast_coordinator.rpc.summaries import Summaries
from holdfast_coordinator.store.api import Store, StoreError

MAX_REQUEST_ID = 128
INCIDENTS, MOST_INCIDENTS = 10, 1_000
ENTRIES_AT_ONCE = 1_000
_ID_LETTERS = "abcdefghjkmnpqrstvwxyz23456789"


def new_job_id() -> str:
    """Make an id that is safe in paths and easy to type: a letter and nine letters or digits."""
    first = secrets.choice(_ID_LETTERS[:22])
    return first + "".join(secrets.choice(_ID_LETTERS) for _ in range(9))


class JobService(job_pb2_grpc.JobServiceServicer):
    """What users do with jobs."""

    def __init__(self, engine: Engine, logs: LogRelay, recorder: Recorder) -> None:
        self._engine = engine
        self._logs = logs
        self._recorder = recorder
        self._watches = JobWatches(engine, self._watched)
        self._summaries = Summaries(engine)

    async def CreateJob(
        self, request: job_pb2.CreateJobRequest, context: Context
    ) -> job_pb2.CreateJobResponse:
        if tracing.VARIABLE not in request.spec.env and (parent := _traceparent(context)):
            request.spec.env[tracing.VARIABLE] = parent
        spec = await _checked(context, request.spec, _wrong_id(request.request_id))
        event = JobSubmitted(self._engine.clock.now(), new_job_id(), request.request_id, spec)
        with tracing.span("CreateJob", spec.env.get(tracing.VARIABLE, ""), job=event.job_id):
            job_id = await _served(context, lambda: self._engine.submit(event))
        return job_pb2.CreateJobResponse(job=await self._job(context, job_id))

    async def GetJob(self, request: job_pb2.GetJobRequest, context: Context) -> job_pb2.GetJobResponse:
        return job_pb2.GetJobResponse(job=await self._job(context, request.job_id))

    async def ListJobs(self, request: job_pb2.ListJobsRequest, context: Context) -> job_pb2.ListJobsResponse:
        size = paging.size(request.page_size)
        after = await paging.token(context, request.page_token, (0, ""))
        wanted = _matcher(request.filter)

        def ask(state: State) -> list[job_pb2.Job]:
            newest_first = sorted(state.jobs.values(), key=_age, reverse=True)
            rest = (job for job in newest_first if not request.page_token or _age(job) < after)
            found = (job for job in rest if wanted(job))
            some = [job for job, _ in zip(found, range(size + 1), strict=False)]
            return [self._view(state, job, datasets=False) for job in some]

        jobs = await _served(context, lambda: self._engine.read(ask))
        more = len(jobs) > size
        jobs = jobs[:size]
        token = paging.encode([jobs[-1].created_at.ToMilliseconds(), jobs[-1].id]) if more else ""
        return job_pb2.ListJobsResponse(jobs=jobs, next_page_token=token)

    async def WatchJob(
        self, request: job_pb2.WatchJobRequest, context: Context
    ) -> AsyncIterator[job_pb2.WatchJobResponse]:
        async with aclosing(watches.told(context, self._watches.follow(request.job_id))) as told:
            async for job in told:
                yield job_pb2.WatchJobResponse(job=job)

    async def WatchJobs(
        self, request: job_pb2.WatchJobsRequest, context: Context
    ) -> AsyncIterator[job_pb2.WatchJobsResponse]:
        def look(state: State, job_id: str) -> job_pb2.Job | None:
            job = state.jobs.get(job_id)
            if job is None:
                return None
            return self._view(state, job, datasets=False, workers=request.with_workers)

        changes = watches.jobs(self._engine, look, with_workers=request.with_workers)
        async with aclosing(watches.told(context, changes)) as told:
            async for change in told:
                yield change

    async def StopJob(self, request: job_pb2.StopJobRequest, context: Context) -> job_pb2.StopJobResponse:
        event = JobStopRequested(self._engine.clock.now(), request.job_id, request.force)
        await _served(context, lambda: self._engine.submit(event))
        return job_pb2.StopJobResponse(job=await self._job(context, request.job_id))

    async def RestartJob(
        self, request: job_pb2.RestartJobRequest, context: Context
    ) -> job_pb2.RestartJobResponse:
        wrong = _wrong_id(request.request_id)
        if wrong:
            message = f"{wrong[0].field} {wrong[0].description}"
            await abort(context, code_pb2.INVALID_ARGUMENT, message, violations=wrong)
        now = self._engine.clock.now()
        event = JobRestartRequested(now, request.job_id, request.request_id, request.force)
        await _served(context, lambda: self._engine.submit(event))
        return job_pb2.RestartJobResponse(job=await self._job(context, request.job_id))

    async def PlanJob(self, request: job_pb2.PlanJobRequest, context: Context) -> job_pb2.PlanJobResponse:
        spec = await _checked(context, request.spec)
        made = await _served(context, lambda: self._engine.read(lambda state: plan(state, spec)))
        return job_pb2.PlanJobResponse(plan=codec_plan.plan_to_proto(spec, made))

    async def DeleteJob(
        self, request: job_pb2.DeleteJobRequest, context: Context
    ) -> job_pb2.DeleteJobResponse:
        event = JobDeleteRequested(self._engine.clock.now(), request.job_id)
        await _served(context, lambda: self._engine.submit(event))
        return job_pb2.DeleteJobResponse()

    async def GetJobSummary(
        self, request: job_pb2.GetJobSummaryRequest, context: Context
    ) -> job_pb2.GetJobSummaryResponse:
        return job_pb2.GetJobSummaryResponse(summary=await self._summary(context, request.job_id))

    async def GetJobMetrics(
        self, request: job_pb2.GetJobMetricsRequest, context: Context
    ) -> job_pb2.GetJobMetricsResponse:
        most = max(2, request.max_points) if request.max_points > 0 else 0

        async def look_up() -> dict[str, list[Point]]:
            await self._engine.read(lambda state: _find(state, request.job_id))
            return await self._recorder.series(request.job_id, request.names, most)

        return codec_metrics.metrics_to_proto(await _served(context, look_up))

    async def ExplainJob(
        self, request: job_pb2.ExplainJobRequest, context: Context
    ) -> job_pb2.ExplainJobResponse:
        job = await self._job(context, request.job_id, datasets=False)
        summary = await self._summary(context, request.job_id)
        alone = job.spec.restart.scope == job_pb2.RESTART_SCOPE_RANK
        most = min(request.incidents, MOST_INCIDENTS) or INCIDENTS

        def ask(store: Store) -> Story:
            return story.tell(_all_entries(store, request.job_id), most, alone=alone)

        told = await _served(context, lambda: self._engine.history(ask))
        return job_pb2.ExplainJobResponse(story=codec.story_to_proto(summary, told))

    async def StreamLogs(  # type: ignore[override]  # its own serializer, see rpc.logs
        self, request: job_pb2.StreamLogsRequest, context: Context
    ) -> AsyncIterator[AnyChunk]:
        job = await self._job(context, request.job_id)
        beyond = [rank for rank in request.ranks if not 0 <= rank < job.spec.world_size]
        if beyond:
            message = f"job {job.id} has no rank {beyond[0]}"
            remedy = f"its ranks are 0 to {job.spec.world_size - 1}"
            await abort(context, code_pb2.INVALID_ARGUMENT, message, remedy=remedy)
        async with aclosing(watches.told(context, self._logs.read(request))) as told:
            async for chunk in told:
                yield chunk

    async def ListCheckpoints(
        self, request: job_pb2.ListCheckpointsRequest, context: Context
    ) -> job_pb2.ListCheckpointsResponse:
        size = paging.size(request.page_size)
        before = await paging.token(context, request.page_token, (0, 0))
        job = await self._job(context, request.job_id)
        commits = await self._history(
            context,
            lambda store: store.commits(
                job.id, limit=size + 1, before=before if request.page_token else None
            ),
        )
        more, commits = len(commits) > size, commits[:size]
        return job_pb2.ListCheckpointsResponse(
            checkpoints=await self._checkpoints(context, job.id, commits),
            next_page_token=paging.encode([commits[-1].step, commits[-1].gang]) if more else "",
        )

    async def GetCheckpoint(
        self, request: job_pb2.GetCheckpointRequest, context: Context
    ) -> job_pb2.GetCheckpointResponse:
        step = request.step if request.HasField("step") else None
        commit = await self._commit(context, request.job_id, step, _rank(request))
        (checkpoint,) = await self._checkpoints(context, request.job_id, [commit])
        return job_pb2.GetCheckpointResponse(checkpoint=checkpoint, record=codec.record_to_proto(commit))

    async def DeleteCheckpoint(
        self, request: job_pb2.DeleteCheckpointRequest, context: Context
    ) -> job_pb2.DeleteCheckpointResponse:
        rank, now = _rank(request), self._engine.clock.now()
        commit = await self._commit(context, request.job_id, request.step, rank)
        event = CheckpointDeleteRequested(now, request.job_id, request.step, rank)
        await _served(context, lambda: self._engine.submit(event))
        job = await self._job(context, request.job_id)
        over = codec.JOB_STATES[job.state] in TERMINAL
        return job_pb2.DeleteCheckpointResponse(record=codec.record_to_proto(commit) if over else None)

    async def PinCheckpoint(
        self, request: job_pb2.PinCheckpointRequest, context: Context
    ) -> job_pb2.PinCheckpointResponse:
        wrong = tuple(pin_violations(request.name))
        if wrong:
            message = f"the checkpoint can't be pinned: {wrong[0].field}: {wrong[0].description}"
            await abort(context, code_pb2.INVALID_ARGUMENT, message, violations=wrong)
        rank, now = _rank(request), self._engine.clock.now()
        event = CheckpointPinRequested(now, request.job_id, request.step, request.name, rank)
        await _served(context, lambda: self._engine.submit(event))
        commit = await self._commit(context, request.job_id, request.step, rank)
        (checkpoint,) = await self._checkpoints(context, request.job_id, [commit])
        return job_pb2.PinCheckpointResponse(checkpoint=checkpoint)

    async def ListEvents(
        self, request: job_pb2.ListEventsRequest, context: Context
    ) -> job_pb2.ListEventsResponse:
        size = paging.size(request.page_size)
        (after,) = await paging.token(context, request.page_token, (0,))
        after = max(after, request.after_seq)
        entries = await self._history(
            context, lambda store: store.entries(job_id=request.job_id, after=after, limit=size + 1)
        )
        more, entries = len(entries) > size, entries[:size]
        return job_pb2.ListEventsResponse(
            events=[codec.event_to_proto(entry) for entry in entries],
            next_page_token=paging.encode([entries[-1].seq]) if more else "",
        )

    async def WatchEvents(
        self, request: job_pb2.WatchEventsRequest, context: Context
    ) -> AsyncIterator[job_pb2.WatchEventsResponse]:
        job_id = request.job_id
        if job_id and not await self._history(context, lambda store: store.entries(job_id=job_id, limit=1)):
            await self._job(context, job_id)  # which ends the call: one that was deleted has a timeline
        coming = watches.events(self._engine, job_id, request.after_seq)
        async with aclosing(watches.told(context, coming)) as told:
            async for event in told:
                yield event

    async def _commit(self, context: Context, job_id: str, step: int | None, rank: int | None) -> Commit:
        """The commit of a step, or the newest; ends the call when there is none."""

        def ask(state: State) -> tuple[Job, Gang]:
            job = _find(state, job_id)
            gang = find_gang(state, job, rank)
            if isinstance(gang, Refusal):
                raise RefusedError(gang)
            return job, gang

        async def look_up() -> Commit:
            job, gang = await self._engine.read(ask)
            if step is None or (gang.commit is not None and gang.commit.step == step):
                found = gang.commit
            else:
                found = await self._engine.history(lambda store: store.commit_upto(job_id, gang.index, step))
            if found is None or step not in (None, found.step):
                raise RefusedError(no_checkpoint(job, step))
            return found

        return await _served(context, look_up)

    async def _checkpoints(
        self, context: Context, job_id: str, commits: list[Commit]
    ) -> list[job_pb2.Checkpoint]:
        def ask(state: State) -> list[job_pb2.Checkpoint]:
            job = _find(state, job_id)
            return [codec.checkpoint_to_proto(c, job, state.gangs[job.id, c.gang]) for c in commits]

        return await _served(context, lambda: self._engine.read(ask))

    async def _summary(self, context: Context, job_id: str) -> job_pb2.JobSummary:
        def ask(state: State) -> job_pb2.JobSummary:
            return self._summaries.of(state, _find(state, job_id))

        return await _served(context, lambda: self._engine.read(ask))

    async def _history(self, context: Context, ask: Callable[[Store], list[paging.T]]) -> list[paging.T]:
        return await _served(context, lambda: self._engine.history(ask))

    async def _job(self, context: Context, job_id: str, *, datasets: bool = True) -> job_pb2.Job:
        def ask(state: State) -> job_pb2.Job:
            return self._view(state, _find(state, job_id), datasets=datasets)

        return await _served(context, lambda: self._engine.read(ask))

    def _watched(self, state: State, job_id: str) -> job_pb2.Job:
        return self._view(state, _find(state, job_id), datasets=False)

    def _view(self, state: State, job: Job, *, datasets: bool, workers: bool = True) -> job_pb2.Job:
        shown = state.workers_of(job) if workers else []
        running = self._engine.running(job, shown)
        return codec.job_to_proto(job, state.gangs_of(job), shown, running, datasets=datasets)


def _traceparent(context: Context) -> str:
    """What a client of another language says by the W3C's header."""
    said = [str(value) for key, value in context.invocation_metadata() or () if key == "traceparent"]
    return said[0] if said and tracing.trace_id(said[0]) else ""


async def _served(context: Context, call: Callable[[], Awaitable[paging.T]]) -> paging.T:
    try:
        return await call()
    except (RefusedError, NotLeadingError, StoreError) as error:
        await abort_refused(context, error)


async def _checked(context: Context, given: job_pb2.JobSpec, wrong: tuple[Violation, ...] = ()) -> JobSpec:
    """Read a spec; end the call when it can't be, or for what else is wrong."""
    spec = codec.spec_from_proto(given)
    wrong = (*violations(spec), *wrong)
    if wrong:
        message = f"the job can't be: {wrong[0].field}: {wrong[0].description}"
        await abort(context, code_pb2.INVALID_ARGUMENT, message, violations=wrong)
    return spec


def _wrong_id(request_id: str) -> tuple[Violation, ...]:
    if len(request_id) <= MAX_REQUEST_ID:
        return ()
    return (Violation("request_id", f"is longer than {MAX_REQUEST_ID} characters"),)


def _all_entries(store: Store, job_id: str) -> Iterator[Entry]:
    """Every line about a job, oldest first, a piece at a time."""
    after = 0
    while found := store.entries(job_id=job_id, after=after, limit=ENTRIES_AT_ONCE):
        yield from found
        after = found[-1].seq


def _find(state: State, job_id: str) -> Job:
    job = state.jobs.get(job_id)
    if job is None:
        raise RefusedError(
            Refusal(Problem.NOT_FOUND, f"there is no job {job_id}", "list the jobs to see their ids")
        )
    return job


def _rank(
    request: job_pb2.GetCheckpointRequest | job_pb2.DeleteCheckpointRequest | job_pb2.PinCheckpointRequest,
) -> int | None:
    return request.rank if request.HasField("rank") else None


def _age(job: Job) -> tuple[int, str]:
    return job.created_ms, job.id


def _matcher(wanted: job_pb2.JobFilter) -> Callable[[Job], bool]:
    states: set[JobState] = {
        codec.JOB_STATES[number] for number in wanted.states if number in codec.JOB_STATES
    }
    labels = dict(wanted.labels)

    def matches(job: Job) -> bool:
        return (
            (not wanted.states or job.state in states)
            and (not wanted.name or job.spec.name == wanted.name)
            and all(job.spec.labels.get(name) == value for name, value in labels.items())
        )

    return matches
