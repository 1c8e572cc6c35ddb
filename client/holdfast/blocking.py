"""The Python API without asyncio: typed, with errors that say what to do.

    with Client("127.0.0.1:7070") as client:
        job = client.create_job(spec)
        for job in client.watch_job(job.id):
            print(job.reason)

Every method raises holdfast.errors.HoldfastError or one of its kinds. Written by `make client`.
"""

from collections.abc import Collection, Generator, Sequence
from datetime import datetime, timedelta

from holdfast.blocking_calls import BlockingCalls
from holdfast.client import TERMINAL
from holdfast.v1 import job_pb2, node_pb2, worker_pb2


class Client(BlockingCalls):
    """A connection to one coordinator: `host:port`, or `unix:/path`. Threads may share it.

    Iterators end their calls when they are closed or dropped.
    """

    def create_job(self, spec: job_pb2.JobSpec, request_id: str = "") -> job_pb2.Job:
        """Create a job. The same `request_id` never makes a second one; by default each call has its own."""
        return self._run(self._client.create_job(spec, request_id))

    def get_job(self, job_id: str) -> job_pb2.Job:
        """Look at a job."""
        return self._run(self._client.get_job(job_id))

    def list_jobs(
        self, *, states: Sequence[job_pb2.JobState.ValueType] = (), name: str = ""
    ) -> Generator[job_pb2.Job, None, None]:
        """Iterate over jobs, newest first."""
        return self._iterate(self._client.list_jobs(states=states, name=name))

    def list_jobs_page(
        self,
        *,
        states: Sequence[job_pb2.JobState.ValueType] = (),
        name: str = "",
        size: int = 0,
        token: str = "",
    ) -> job_pb2.ListJobsResponse:
        """Give a page of jobs, newest first: at most `size`, 100 unless given, from where the page before ended."""
        return self._run(self._client.list_jobs_page(states=states, name=name, size=size, token=token))

    def watch_job(self, job_id: str) -> Generator[job_pb2.Job, None, None]:
        """Give the job now and after every change, until it has ended; goes on when the coordinator was away."""
        return self._iterate(self._client.watch_job(job_id))

    def watch_jobs(self, *, with_workers: bool = False) -> Generator[job_pb2.WatchJobsResponse, None, None]:
        """Give all jobs, newest first, then `ready`, then each as it changes, or the id of one that was `deleted`.

        Which of them it is `WhichOneof("change")` says: "job", "deleted" or "ready". It goes on when the coordinator
        was away, with what has changed meanwhile, and never ends. Without workers unless asked: of them there are many.
        """
        return self._iterate(self._client.watch_jobs(with_workers=with_workers))

    def stop_job(self, job_id: str, *, force: bool = False) -> job_pb2.Job:
        """Ask a job to stop after a last checkpoint, within its grace; or, with `force`, SIGKILL at once."""
        return self._run(self._client.stop_job(job_id, force=force))

    def restart_job(self, job_id: str, *, force: bool = False, request_id: str = "") -> job_pb2.Job:
        """Have a job begin its next attempt after a checkpoint of all its ranks; or, with `force`, at once.

        One that has failed or was stopped goes on from its last commit. The same `request_id` never restarts it twice;
        by default each call has its own.
        """
        return self._run(self._client.restart_job(job_id, force=force, request_id=request_id))

    def plan_job(self, spec: job_pb2.JobSpec) -> job_pb2.JobPlan:
        """Say where the ranks of a job would be placed if it were created now, or why it would wait."""
        return self._run(self._client.plan_job(spec))

    def delete_job(self, job_id: str, *, stop_first: bool = False, force: bool = False) -> None:
        """Forget an ended job and its logs.

        With `stop_first` also one that runs: it is stopped as `stop_job` does it, also with `force`, and waited for.
        Raises ValueError.
        """
        self._run(self._client.delete_job(job_id, stop_first=stop_first, force=force))

    def purge_jobs(
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
        return self._run(
            self._client.purge_jobs(older_than=older_than, states=states, name=name, dry_run=dry_run)
        )

    def job_summary(self, job_id: str) -> job_pb2.JobSummary:
        """Give a job in numbers."""
        return self._run(self._client.job_summary(job_id))

    def job_metrics(
        self, job_id: str, names: Sequence[str] = (), points: int = 0
    ) -> Sequence[job_pb2.MetricSeries]:
        """Give the curves of a job by name: what it reports, "steps_per_second", "goodput".

        Of these `names` alone, if any are given; each of at most `points` points, 0: all that are kept.
        """
        return self._run(self._client.job_metrics(job_id, names, points))

    def stream_logs(
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
    ) -> Generator[job_pb2.StreamLogsResponse, None, None]:
        """Iterate over what workers wrote, in order for each of them; goes on where it was when somebody was away.

        `since` is by the clock of the node that wrote; `tail` counts lines of each worker's stdout, and of its stderr;
        `grep` is a regular expression, of the lines that the others leave. What lies on a node that is away comes
        from the archive in the checkpoint storage; where there is none, `away` of a response says so, and why. Every
        byte comes once; what was freed is counted in `skipped`. Of logs that have a cursor in `cursors` comes what lies
        behind it: so whoever kept them goes on where they were. Raises ValueError.
        """
        return self._iterate(
            self._client.stream_logs(
                job_id,
                ranks=ranks,
                attempt=attempt,
                follow=follow,
                since=since,
                tail=tail,
                grep=grep,
                cursors=cursors,
            )
        )

    def list_checkpoints(self, job_id: str) -> Generator[job_pb2.Checkpoint, None, None]:
        """Iterate over committed checkpoints, newest first."""
        return self._iterate(self._client.list_checkpoints(job_id))

    def list_checkpoints_page(
        self, job_id: str, *, size: int = 0, token: str = ""
    ) -> job_pb2.ListCheckpointsResponse:
        """Give a page of committed checkpoints, newest first: at most `size`, 100 unless given."""
        return self._run(self._client.list_checkpoints_page(job_id, size=size, token=token))

    def get_checkpoint(
        self, job_id: str, step: int | None = None, rank: int | None = None
    ) -> job_pb2.GetCheckpointResponse:
        """Look at a committed checkpoint, by default the newest, with the record that names its files.

        `rank` is given where every rank commits by itself, and nowhere else.
        """
        return self._run(self._client.get_checkpoint(job_id, step, rank))

    def delete_checkpoint(
        self, job_id: str, step: int, rank: int | None = None
    ) -> worker_pb2.CommitRecord | None:
        """Forget a checkpoint. While the job runs a worker deletes its files; once it has ended they are the caller's.

        Gives what names the files then, and None otherwise.
        """
        return self._run(self._client.delete_checkpoint(job_id, step, rank))

    def pin_checkpoint(
        self, job_id: str, step: int, name: str, rank: int | None = None
    ) -> job_pb2.Checkpoint:
        """Keep a checkpoint under a name, whatever the retention policy says; an empty name lets go of it."""
        return self._run(self._client.pin_checkpoint(job_id, step, name, rank))

    def explain_job(self, job_id: str, *, incidents: int = 0) -> job_pb2.JobStory:
        """What ended the attempts of a job, what was done, what it cost; the newest `incidents`, 0: some."""
        return self._run(self._client.explain_job(job_id, incidents=incidents))

    def list_events(self, job_id: str = "", *, after: int = 0) -> Generator[job_pb2.Event, None, None]:
        """Iterate over the timeline of a job, or of all, oldest first, from behind the event of seq `after` on."""
        return self._iterate(self._client.list_events(job_id, after=after))

    def list_events_page(
        self, job_id: str = "", *, after: int = 0, size: int = 0, token: str = ""
    ) -> job_pb2.ListEventsResponse:
        """Give a page of the timeline, oldest first: at most `size`, 100 unless given."""
        return self._run(self._client.list_events_page(job_id, after=after, size=size, token=token))

    def watch_events(self, job_id: str = "", *, after: int = 0) -> Generator[job_pb2.Event, None, None]:
        """Give the timeline of a job, or of all, from behind the event of seq `after` on, then each event as it comes.

        No gap and no repeat, also when the coordinator was away, or when it is begun again with the `seq` of the last
        one that was seen. Of one job it ends when that is deleted; otherwise never.
        """
        return self._iterate(self._client.watch_events(job_id, after=after))

    def list_nodes(self) -> Generator[node_pb2.Node, None, None]:
        """Iterate over the nodes by name."""
        return self._iterate(self._client.list_nodes())

    def list_nodes_page(self, *, size: int = 0, token: str = "") -> node_pb2.ListNodesResponse:
        """Give a page of the nodes, by name: at most `size`, 100 unless given."""
        return self._run(self._client.list_nodes_page(size=size, token=token))

    def get_node(self, name: str) -> node_pb2.Node:
        """Look at a node."""
        return self._run(self._client.get_node(name))

    def watch_nodes(self) -> Generator[node_pb2.WatchNodesResponse, None, None]:
        """Give all nodes by name, then `ready`, then each as it changes, or the name of one that was `deleted`.

        As `watch_jobs` does. That a node was heard from is no change.
        """
        return self._iterate(self._client.watch_nodes())

    def cordon_node(self, name: str, reason: str = "") -> node_pb2.Node:
        """Have a node take no new work; what runs there goes on."""
        return self._run(self._client.cordon_node(name, reason))

    def uncordon_node(self, name: str) -> node_pb2.Node:
        """Have a node take new work again."""
        return self._run(self._client.uncordon_node(name))

    def drain_node(self, name: str, *, within: timedelta | None = None, reason: str = "") -> node_pb2.Node:
        """Cordon a node and move its work elsewhere after a checkpoint, `within` 2 minutes unless given."""
        return self._run(self._client.drain_node(name, within=within, reason=reason))

    def forget_node(self, name: str) -> None:
        """Forget a lost node: it is listed no more. An agent that comes back under its name is new."""
        self._run(self._client.forget_node(name))

    def clock_offset(self) -> timedelta | None:
        """How far the coordinator's clock is ahead of the one here, to half of a round trip; None: it does not tell."""
        return self._run(self._client.clock_offset())
