"""What `holdfast run` shows: the workers' output, notes on what happens to them, a progress line, a last table."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from holdfast.cli.common import printable
from holdfast.cli.job import summary_rows
from holdfast.client import Client
from holdfast.v1 import job_pb2

NOTED = ("RestartDecided", "WorkerLost", "JobGivenUp", "JobWaiting", "JobStopRequested")


class View:
    """Draws on the terminal, stdout for the workers' stdout, stderr for everything else."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._status = ""
        self._seen = 0

    def note(self, text: str) -> None:
        """Print a line about what happens."""
        with self.around():
            click.echo(click.style(f"holdfast: {printable(text)}", dim=True), err=True)

    @contextmanager
    def around(self) -> Iterator[None]:
        """Take the progress line away while something else is printed."""
        if self._terminal and self._status:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        yield
        self._draw()

    def progress(self, job: job_pb2.Job) -> None:
        """Show how far a job is."""
        if self._terminal:
            with self.around():
                self._status = _status(job)

    def end(self) -> None:
        """Take the progress line away for good."""
        with self.around():
            self._status = ""

    async def note_events(self, client: Client, job_id: str) -> None:
        """Note what the timeline has that was not noted yet."""
        async for event in client.list_events(job_id):
            if event.seq > self._seen:
                self._seen = event.seq
                if event.kind in NOTED and "no node is ready" not in event.message:  # its agent is coming
                    self.note(event.message)

    def _draw(self) -> None:
        if self._terminal and self._status:
            sys.stderr.write(self._status)
            sys.stderr.flush()


def _status(job: job_pb2.Job) -> str:
    steps = [worker.step for worker in job.workers if worker.HasField("step")]
    parts = [job.reason]
    if steps:
        parts.append(
            f"step {min(steps)}" if min(steps) == max(steps) else f"steps {min(steps)} to {max(steps)}"
        )
    if job.HasField("last_committed_step"):
        parts.append(f"committed {job.last_committed_step}")
    if job.restarts:
        parts.append(f"restarts {job.restarts}")
    losses = [worker.metrics["loss"] for worker in job.workers if "loss" in worker.metrics]
    if losses:
        parts.append(f"loss {sum(losses) / len(losses):.4g}")
    return printable(" · ".join(parts))[:118]


def show_summary(summary: job_pb2.JobSummary, run: Path, checkpoints: str) -> None:
    """Print the last table."""
    rows = [*summary_rows(summary), ["run", str(run)], ["checkpoints", checkpoints]]
    width = max(len(name) for name, _ in rows)
    click.echo(err=True)
    for name, value in rows:
        click.echo(f"  {name.ljust(width)}  {printable(value)}", err=True)
