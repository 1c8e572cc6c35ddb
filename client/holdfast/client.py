"""The Python API over the stubs: asyncio, typed, with errors that say what to do.

    async with Client("127.0.0.1:7070") as client:
        job = await client.create_job(spec)
        async for job in client.watch_job(job.id):
            print(job.reason)

Every method raises holdfast.wire.HoldfastError or one of its kinds.
"""

import asyncio
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

import grpc

from holdfast import tracing, wire
from holdfast.log_reading import RECONNECT_S, read_logs
from holdfast.log_wire import AnyChunk, as_message, stream_logs
from holdfast.v1 import job_pb2, job_pb2_grpc, node_pb2, node_pb2_grpc, worker_pb2
from holdfast.watches import follow, keep_up

T = TypeVar("T")

PAGE = 500

TERMINAL = frozenset({job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_STOPPED})


class Client:
    """A connection to one coordinator: `host:port`, or `unix:/path`; or to whichever serves of `ip:port,ip:port`."""

    def __init__(self, target: str = wire.DEFAULT_TARGET) -> None:
        self.target = target
        self._channel = wire.open_channel(target)
        self._jobs = job_pb2_grpc.JobServiceStub(self._channel)
        self._nodes = node_pb2_grpc.NodeServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        """Use it as a context manager, so that the connection is closed."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def create_job(self, spec: job_pb2.JobSpec, request_id: str = "") -> job_pb2.Job:
        """Create a job. The same `request_id` never makes a second one; by default each call has its own."""
        request = job_pb2.CreateJobRequest(spec=spec, request_id=request_id or secrets.token_hex(16))
        with tracing.span("create job", spec.env.get(tracing.VARIABLE, "")) as traced:
            if traced:
                request.spec.env[tracing.VARIABLE] = traced
            async with self._errors():
                return (await self._jobs.CreateJob(request)).job

    async def get_job(self, job_id: str) -> job_pb2.Job:
        """Look at a job."""
        async with self._errors():
            return (await self._jobs.GetJob(job_pb2.GetJobRequest(job_id=job_id))).job

    async def list_jobs(
        self, *, states: Sequence[job_pb2.JobState.ValueType] = (), name: str = ""
    ) -> AsyncIterator[job_pb2.Job]:
        """Iterate over jobs, newest first."""

        async def page(token: str) -> tuple[Sequence[job_pb2.Job], str]:
            answer = await self.list_jobs_page(states=states, name=name, size=PAGE, token=token)
            return answer.jobs, answer.next_page_token

        async for job in self._pages(page):
            yield job

    async def list_jobs_page(
        self,
        *,
        states: Sequence[job_pb2.JobState.ValueType] = (),
        name: str = "",
        size: int = 0,
        token: str = "",
    ) -> job_pb2.ListJobsResponse:
        """Give a page of jobs, newest first: at most `size`, 100 unless given, from where the page before ended."""
        wanted = job_pb2.JobFilter(states=states, name=name)
        async with self._errors():
            request = job_pb2.ListJobsRequest(page_size=size, page_token=token, filter=wanted)
            return await self._jobs.ListJobs(request)

    async def watch_job(self, job_id: str) -> AsyncIterator[job_pb2.Job]:
        """Give the job now and after every change, until it has ended; goes on when the coordinator was away."""
        await self.get_job(job_id)  # to wait for a coordinator that was never there helps nobody
        while True:
            try:
                with wire.ended_after(self._jobs.WatchJob(job_pb2.WatchJobRequest(job_id=job_id))) as answers:
                    async for answer in answers:
                        yield answer.job
                        if answer.job.state in TERMINAL:
                            return
            except grpc.aio.AioRpcError as error:
                self.raise_unless_away(error)
            await asyncio.sleep(RECONNECT_S)

    async def watch_jobs(self, *, with_workers: bool = False) -> AsyncIterator[job_pb2.WatchJobsResponse]:
        """Give all jobs, newest first, then `ready`, then each as it changes, or the id of one that was `deleted`.

        Which of them it is `WhichOneof("change")` says: "job", "deleted" or "ready". It goes on when the coordinator
        was away, with what has changed meanwhile, and never ends. Without workers unless asked: of them there are many.
        """
        await self._answers()
        request = job_pb2.WatchJobsRequest(with_workers=with_workers)

        def what(change: job_pb2.WatchJobsResponse) -> tuple[str, bytes]:
            return change.job.id, change.job.SerializeToString(deterministic=True)

        async with aclosing(keep_up(self, lambda: self._jobs.WatchJobs(request), what)) as changes:
            async for change in changes:
                yield change

    async def stop_job(self, job_id: str, *, force: bool = False) -> job_pb2.Job:
        """Ask a job to stop after a last checkpoint, within its grace; or, with `force`, SIGKILL at once."""
        async with self._errors():
            return (await self._jobs.StopJob(job_pb2.StopJobRequest(job_id=job_id, force=force))).job

    async def restart_job(self, job_id: str, *, force: bool = False, request_id: str = "") -> job_pb2.Job:
        """Have a job begin its next attempt after a checkpoint of all its ranks; or, with `force`, at once.

        One that has failed or was stopped goes on from its last commit. The same `request_id` never restarts it twice;
        by default each call has its own.
        """
        request = job_pb2.RestartJobRequest(
            job_id=job_id, force=force, request_id=request_id or secrets.token_hex(16)
        )
        async with self._errors():
            return (await self._jobs.RestartJob(request)).job

    async def plan_job(self, spec: job_pb2.JobSpec) -> job_pb2.JobPlan:
        """Say where the ranks of a job would be placed if it were created now, or why it would wait."""
        async with self._errors():
            return (await self._jobs.PlanJob(job_pb2.PlanJobRequest(spec=spec))).plan

    async def delete_job(self, job_id: str, *, stop_first: bool = False, force: bool = False) -> None:
        """Forget an ended job and its logs.

        With `stop_first` also one that runs: it is stopped as `stop_job` does it, also with `force`, and waited for.
        Raises ValueError.
        """
        if force and not stop_first:
            raise ValueError("force says how to stop; give stop_first, too")
        if stop_first:
            await self.stop_job(job_id, force=force)
            async for _ in self.watch_job(job_id):
                pass
        async with self._errors():
            await self._jobs.DeleteJob(job_pb2.DeleteJobRequest(job_id=job_id))

    async def purge_jobs(
        self,
        *,
        older_than: timedelta,
        states: Collection[job_pb2.JobState.ValueType] = TERMINAL,
        name: str = "",
        dry_run: bool = False,
    ) -> list[job_pb2.Job]:
        """Forget the jobs that ended at least `older_than` ago, by the clock here, and give them as they were.

        Only those in one of the states, which are ones of ended jobs, and whose name matches `name`, a glob. One that
        was begun again meanwhile is left. With `dry_run` nothing is deleted. Raises ValueError.
        """
        if not TERMINAL.issuperset(states):
            raise ValueError("jobs that have not ended are never purged; give states of ended jobs")
        latest = datetime.now(UTC) - older_than
        found = [
            job
            async for job in self.list_jobs(states=list(states))
            if job.state in states
            and job.finished_at.ToDatetime(UTC) <= latest
            and (not name or fnmatchcase(job.spec.name, name))
        ]
        if dry_run:
            return found
        deleted = []
        for job in found:
            with suppress(wire.FailedPrecondition):
                await self.delete_job(job.id)
                deleted.append(job)
        return deleted

    async def job_summary(self, job_id: str) -> job_pb2.JobSummary:
        """Give a job in numbers."""
        async with self._errors():
            request = job_pb2.GetJobSummaryRequest(job_id=job_id)
            return (await self._jobs.GetJobSummary(request)).summary

    async def job_metrics(
        self, job_id: str, names: Sequence[str] = (), points: int = 0
    ) -> Sequence[job_pb2.MetricSeries]:
        """Give the curves of a job by name: what it reports, "steps_per_second", "goodput".

        Of these `names` alone, if any are given; each of at most `points` points, 0: all that are kept.
        """
        async with self._errors():
            request = job_pb2.GetJobMetricsRequest(job_id=job_id, names=names, max_points=points)
            return (await self._jobs.GetJobMetrics(request)).series

    async def stream_logs(
        self,
        job_id: str,
        *,
        ranks: Sequence[int] = (),
        attempt: int = 0,
        follow: bool = False,
        since: datetime | None = None,
        tail: int | None = None,
        grep: str = "",
        cursors: Sequence[job_pb2.LogCursor] = (),
    ) -> AsyncIterator[job_pb2.StreamLogsResponse]:
        """Iterate over what workers wrote, in order for each of them; goes on where it was when somebody was away.

        `since` is by the clock of the node that wrote; `tail` counts lines of each worker's stdout, and of its stderr;
        `grep` is a regular expression, of the lines that the others leave. What lies on a node that is away comes
        from the archive in the checkpoint storage; where there is none, `away` of a response says so, and why. Every
        byte comes once; what was freed is counted in `skipped`. Of logs that have a cursor in `cursors` comes what lies
        behind it: so whoever kept them goes on where they were. Raises ValueError.
        """
        from holdfast.log_text import Filter

        try:
            wanted = Filter(grep) if grep else None
        except re.error as error:
            raise ValueError(f"{grep!r} is no regular expression: {error}") from error
        request = job_pb2.StreamLogsRequest(
            job_id=job_id, ranks=ranks, attempt=attempt, follow=follow, tail=tail, cursors=cursors
        )
        if since is not None:
            request.since.FromDatetime(since)
        async with aclosing(self._log_chunks(request)) as chunks:
            async for chunk in chunks:
                for found in [chunk] if wanted is None else wanted.add(chunk):
                    yield as_message(found)
            for rest in [] if wanted is None else wanted.finish():
                yield rest

    def _log_chunks(self, request: job_pb2.StreamLogsRequest) -> AsyncGenerator[AnyChunk, None]:
        return read_logs(self, partial(stream_logs, self._channel), request)

    async def list_checkpoints(self, job_id: str) -> AsyncIterator[job_pb2.Checkpoint]:
        """Iterate over committed checkpoints, newest first."""

        async def page(token: str) -> tuple[Sequence[job_pb2.Checkpoint], str]:
            answer = await self.list_checkpoints_page(job_id, size=PAGE, token=token)
            return answer.checkpoints, answer.next_page_token

        async for checkpoint in self._pages(page):
            yield checkpoint

    async def list_checkpoints_page(
        self, job_id: str, *, size: int = 0, token: str = ""
    ) -> job_pb2.ListCheckpointsResponse:
        """Give a page of committed checkpoints, newest first: at most `size`, 100 unless given."""
        async with self._errors():
            request = job_pb2.ListCheckpointsRequest(job_id=job_id, page_size=size, page_token=token)
            return await self._jobs.ListCheckpoints(request)

    async def get_checkpoint(
        self, job_id: str, step: int | None = None, rank: int | None = None
    ) -> job_pb2.GetCheckpointResponse:
        """Look at a committed checkpoint, by default the newest, with the record that names its files.

        `rank` is given where every rank commits by itself, and nowhere else.
        """
        async with self._errors():
            request = job_pb2.GetCheckpointRequest(job_id=job_id, step=step, rank=rank)
            return await self._jobs.GetCheckpoint(request)

    async def delete_checkpoint(
        self, job_id: str, step: int, rank: int | None = None
    ) -> worker_pb2.CommitRecord | None:
        """Forget a checkpoint. While the job runs a worker deletes its files; once it has ended they are the caller's.

        Gives what names the files then, and None otherwise.
        """
        async with self._errors():
            request = job_pb2.DeleteCheckpointRequest(job_id=job_id, step=step, rank=rank)
            answer = await self._jobs.DeleteCheckpoint(request)
        return answer.record if answer.HasField("record") else None

    async def pin_checkpoint(
        self, job_id: str, step: int, name: str, rank: int | None = None
    ) -> job_pb2.Checkpoint:
        """Keep a checkpoint under a name, whatever the retention policy says; an empty name lets go of it."""
        async with self._errors():
            request = job_pb2.PinCheckpointRequest(job_id=job_id, step=step, rank=rank, name=name)
            return (await self._jobs.PinCheckpoint(request)).checkpoint

    async def explain_job(self, job_id: str, *, incidents: int = 0) -> job_pb2.JobStory:
        """What ended the attempts of a job, what was done, what it cost; the newest `incidents`, 0: some."""
        async with self._errors():
            request = job_pb2.ExplainJobRequest(job_id=job_id, incidents=incidents)
            return (await self._jobs.ExplainJob(request)).story

    async def list_events(self, job_id: str = "", *, after: int = 0) -> AsyncIterator[job_pb2.Event]:
        """Iterate over the timeline of a job, or of all, oldest first, from behind the event of seq `after` on."""

        async def page(token: str) -> tuple[Sequence[job_pb2.Event], str]:
            answer = await self.list_events_page(job_id, after=after, size=PAGE, token=token)
            return answer.events, answer.next_page_token

        async for event in self._pages(page):
            yield event

    async def list_events_page(
        self, job_id: str = "", *, after: int = 0, size: int = 0, token: str = ""
    ) -> job_pb2.ListEventsResponse:
        """Give a page of the timeline, oldest first: at most `size`, 100 unless given."""
        async with self._errors():
            request = job_pb2.ListEventsRequest(
                job_id=job_id, page_size=size, page_token=token, after_seq=after
            )
            return await self._jobs.ListEvents(request)

    async def watch_events(self, job_id: str = "", *, after: int = 0) -> AsyncIterator[job_pb2.Event]:
        """Give the timeline of a job, or of all, from behind the event of seq `after` on, then each event as it comes.

        No gap and no repeat, also when the coordinator was away, or when it is begun again with the `seq` of the last
        one that was seen. Of one job it ends when that is deleted; otherwise never.
        """
        await self._answers()

        def begin() -> grpc.aio.UnaryStreamCall[job_pb2.WatchEventsRequest, job_pb2.WatchEventsResponse]:
            return self._jobs.WatchEvents(job_pb2.WatchEventsRequest(job_id=job_id, after_seq=after))

        async with aclosing(follow(self, begin)) as answers:
            async for answer in answers:
                after = answer.event.seq
                yield answer.event

    async def list_nodes(self) -> AsyncIterator[node_pb2.Node]:
        """Iterate over the nodes by name."""

        async def page(token: str) -> tuple[Sequence[node_pb2.Node], str]:
            answer = await self.list_nodes_page(size=PAGE, token=token)
            return answer.nodes, answer.next_page_token

        async for node in self._pages(page):
            yield node

    async def list_nodes_page(self, *, size: int = 0, token: str = "") -> node_pb2.ListNodesResponse:
        """Give a page of the nodes, by name: at most `size`, 100 unless given."""
        async with self._errors():
            return await self._nodes.ListNodes(node_pb2.ListNodesRequest(page_size=size, page_token=token))

    async def get_node(self, name: str) -> node_pb2.Node:
        """Look at a node."""
        async with self._errors():
            return (await self._nodes.GetNode(node_pb2.GetNodeRequest(name=name))).node

    async def watch_nodes(self) -> AsyncIterator[node_pb2.WatchNodesResponse]:
        """Give all nodes by name, then `ready`, then each as it changes, or the name of one that was `deleted`.

        As `watch_jobs` does. That a node was heard from is no change.
        """
        await self._answers()

        def what(change: node_pb2.WatchNodesResponse) -> tuple[str, bytes]:
            node = node_pb2.Node()
            node.CopyFrom(change.node)
            node.ClearField("last_heard_at")
            return node.name, node.SerializeToString(deterministic=True)

        request = node_pb2.WatchNodesRequest()
        async with aclosing(keep_up(self, lambda: self._nodes.WatchNodes(request), what)) as changes:
            async for change in changes:
                yield change

    async def cordon_node(self, name: str, reason: str = "") -> node_pb2.Node:
        """Have a node take no new work; what runs there goes on."""
        async with self._errors():
            return (await self._nodes.CordonNode(node_pb2.CordonNodeRequest(name=name, reason=reason))).node

    async def uncordon_node(self, name: str) -> node_pb2.Node:
        """Have a node take new work again."""
        async with self._errors():
            return (await self._nodes.UncordonNode(node_pb2.UncordonNodeRequest(name=name))).node

    async def drain_node(
        self, name: str, *, within: timedelta | None = None, reason: str = ""
    ) -> node_pb2.Node:
        """Cordon a node and move its work elsewhere after a checkpoint, `within` 2 minutes unless given."""
        async with self._errors():
            request = node_pb2.DrainNodeRequest(name=name, reason=reason)
            if within is not None:
                request.within.FromTimedelta(within)
            return (await self._nodes.DrainNode(request)).node

    async def forget_node(self, name: str) -> None:
        """Forget a lost node: it is listed no more. An agent that comes back under its name is new."""
        async with self._errors():
            await self._nodes.ForgetNode(node_pb2.ForgetNodeRequest(name=name))

    async def clock_offset(self) -> timedelta | None:
        """How far the coordinator's clock is ahead of the one here, to half of a round trip; None: it does not tell."""
        async with self._errors():
            before = time.time_ns()
            call = self._nodes.ListNodes(node_pb2.ListNodesRequest(page_size=1))
            await call
            after = time.time_ns()
            said = dict(await call.trailing_metadata())
        if wire.TIME_KEY not in said:
            return None
        return timedelta(microseconds=(int(said[wire.TIME_KEY]) - (before + after) // 2) // 1000)

    async def _answers(self) -> None:
        """Make sure that the coordinator is there: to wait for one that never was helps nobody."""
        async with self._errors():
            await self._nodes.ListNodes(node_pb2.ListNodesRequest(page_size=1))

    async def _pages(self, page: Callable[[str], Awaitable[tuple[Sequence[T], str]]]) -> AsyncIterator[T]:
        token = ""
        while True:
            async with self._errors():
                items, token = await page(token)
            for item in items:
                yield item
            if not token:
                return

    def raise_unless_away(self, error: grpc.aio.AioRpcError) -> None:
        """Raise what a call that failed means, unless it is that the coordinator can't be reached now."""
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise wire.from_rpc_error(error, self.target) from error

    @asynccontextmanager
    async def _errors(self) -> AsyncIterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise wire.from_rpc_error(error, self.target) from error
