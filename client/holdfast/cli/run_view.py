"""What `holdfast run` shows: the workers' output, notes on what happens to them, a progress line, a last table.

A thread does the writing. A terminal that is paused, or a pager that is not scrolled, then holds up the output alone,
and not the coordinator and the agent that live in this process too.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import click

from holdfast.cli.common import coloured, lost_shares, printable
from holdfast.cli.events import said
from holdfast.cli.late import api, asyncio, job_pb2
from holdfast.cli.log_lines import LinePrinter

NOTED = (
    "RestartDecided",
    "WorkerHung",
    "HangOver",
    "StragglerNoticed",
    "ExitIgnored",
    "NodeExcluded",
    "CheckpointQuarantined",
    "CheckpointDegraded",
    "CheckpointDrained",
)


class View:
    """Writes the workers' stdout to stdout, and everything else to stderr."""

    def __init__(self) -> None:
        self._writer = ThreadPoolExecutor(1, "output")
        self._printer = LinePrinter(self._around)
        self._terminal = sys.stderr.isatty()
        self._status = ""
        self._seen = 0

    async def show(self, chunk: job_pb2.StreamLogsResponse) -> None:
        """Write what a worker wrote. Raises BrokenPipeError when nobody reads it."""
        await self._write(lambda: self._printer.write(chunk))

    async def show_rests(self) -> None:
        """Write the lines that were never finished."""
        await self._write(self._printer.finish)

    def note(self, text: str) -> None:
        """Write a line about what happens."""
        line = f"holdfast: {printable(text)}"
        self._writer.submit(self._line, f"\x1b[2m{line}\x1b[0m" if coloured(sys.stderr) else line)

    def progress(self, job: job_pb2.Job) -> None:
        """Show how far a job is, on a terminal."""
        if self._terminal:
            self._writer.submit(self._draw, _status(job))

    async def note_events(self, client: api.Client, job_id: str, *, quietly: bool = False) -> None:
        """Note what the timeline has that was not noted yet; `quietly`, pass over it."""
        async for event in client.list_events(job_id, after=self._seen):
            if event.kind in NOTED and not quietly:
                self.note(said(event))
            self._seen = event.seq

    async def end(self) -> None:
        """Take the progress line away; come back when everything is written."""
        if self._terminal:
            self._writer.submit(self._draw, "")
        await self._write(lambda: None)
        self._writer.shutdown(wait=False)

    async def _write(self, write: Callable[[], None]) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._writer, write)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())  # for what is buffered
            os.close(nowhere)
            raise

    # In the thread

    @contextmanager
    def _around(self) -> Iterator[None]:
        """Take the progress line away while something else is written."""
        if self._status:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        yield
        sys.stderr.write(self._status)
        sys.stderr.flush()

    def _line(self, text: str) -> None:
        with self._around():
            sys.stderr.write(f"{text}\n")

    def _draw(self, status: str) -> None:
        with self._around():
            self._status = status


def _status(job: job_pb2.Job) -> str:
    steps = [worker.step for worker in job.workers if worker.HasField("step")]
    parts = [job.reason]
    if steps:
        low, high = min(steps), max(steps)
        parts.append(f"step {low}" if low == high else f"steps {low} to {high}")
    if job.HasField("last_committed_step"):
        parts.append(f"committed {job.last_committed_step}")
    if job.restarts:
        parts.append(f"restarts {job.restarts}")
    losses = [worker.metrics["loss"] for worker in job.workers if "loss" in worker.metrics]
    if losses:
        parts.append(f"loss {sum(losses) / len(losses):.4g}")
    return printable(" · ".join(parts))[: shutil.get_terminal_size().columns - 1]


def show_summary(summary: job_pb2.JobSummary, run: Path, checkpoints: str) -> None:
    """Write the last table: what was done, what it cost, and where it is."""
    rows = []
    if summary.HasField("steps"):
        rows.append(("steps", str(summary.steps)))
        rows.append(("throughput", f"{summary.steps_per_second:.1f} steps/s, all ranks together"))
    rows.append(("elapsed", f"{summary.elapsed.ToMilliseconds() / 1000:.1f} s"))
    rows.append(("restarts", str(summary.restarts)))
    if summary.HasField("steps"):
        rows.append(("steps redone", str(summary.steps_redone)))
    if summary.HasField("goodput"):
        lost = lost_shares(summary)
        rows.append(("goodput", f"{summary.goodput:.1%}" + (f" (the rest: {lost})" if lost else "")))
    rows.append(("logs", _from_here(str(run / "agent" / "jobs" / summary.job_id))))
    if summary.HasField("last_committed_step"):
        where = _from_here(checkpoints)
        rows.append(("checkpoints", f"{where}, the last of step {summary.last_committed_step}"))
    if summary.degraded_commits:
        spool = _from_here(str(run / "agent" / "spool"))
        still = f", the newest still is: holdfast checkpoint drain {spool}" if summary.degraded else ""
        rows.append(("degraded", f"{summary.degraded_commits} checkpoints{still}"))
    width = max(len(name) for name, _ in rows)
    click.echo(err=True)
    for name, value in rows:
        click.echo(f"  {name.ljust(width)}  {printable(value)}", err=True)


def _from_here(path: str) -> str:
    """A path as its user would type it."""
    return path.removeprefix(f"{Path.cwd()}/")
