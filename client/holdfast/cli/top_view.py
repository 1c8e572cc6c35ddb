"""What `holdfast top` shows, as lines of text: pure, so that a screen of any size is one call."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from holdfast.cli.common import enum_word, printable, short_seconds, short_size
from holdfast.cli.node import state_words
from holdfast.cli.sparkline import sparkline
from holdfast.client import TERMINAL
from holdfast.v1 import job_pb2, node_pb2

SEEN = 240
"""So many values of a metric are kept of each job."""
CURVE = 24
ENDED_S = 300.0
"""For how long a job that has ended is shown."""
NODE_SHARE = 3
"""Nodes get one line in so many, jobs what they leave."""

BOLD, DIM, YELLOW, RED, PLAIN = "1", "2", "33", "31", ""

NODE_HEAD = ("NODE", "STATE", "SLOTS", "CPUS", "MEMORY", "GPUS")
JOB_HEAD = ("JOB", "NAME", "STATE", "WORKERS", "STEP", "STEPS/S", "GOODPUT", "RESTARTS", "LEFT")

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the screen, and how it looks where there is colour."""

    text: str
    style: str = PLAIN


@dataclass(slots=True)
class Seen:
    """What is known of the fleet. Times are seconds since the Unix epoch."""

    server: str
    metric: str = "loss"
    nodes: dict[str, node_pb2.Node] = field(default_factory=dict)
    jobs: dict[str, job_pb2.Job] = field(default_factory=dict)
    summaries: dict[str, job_pb2.JobSummary] = field(default_factory=dict)
    curves: dict[str, deque[float]] = field(default_factory=dict)
    trouble: str = ""
    """Why this is not how it is now; empty: it is."""

    def forget(self, job_id: str) -> None:
        """A job was deleted."""
        for table in (self.jobs, self.summaries, self.curves):
            table.pop(job_id, None)

    def note(self, summary: job_pb2.JobSummary) -> None:
        """A job in numbers, as it is now; while no step was made, its curve stands."""
        before = self.summaries.get(summary.job_id)
        self.summaries[summary.job_id] = summary
        stands = before is not None and before.steps == summary.steps
        if self.metric in summary.metrics and not stands:
            curve = self.curves.setdefault(summary.job_id, deque(maxlen=SEEN))
            curve.append(summary.metrics[self.metric])

    def shown_jobs(self, now: float) -> list[job_pb2.Job]:
        """Those that live, the newest first; then those that ended lately, the last first."""
        jobs = sorted(
            self.jobs.values(), key=lambda job: (job.created_at.ToNanoseconds(), job.id), reverse=True
        )
        live = [job for job in jobs if job.state not in TERMINAL]
        ended = [
            job for job in jobs if job.state in TERMINAL and now - job.finished_at.ToSeconds() <= ENDED_S
        ]
        return live + sorted(ended, key=lambda job: -job.finished_at.ToSeconds())


def frame(seen: Seen, width: int, height: int | None, now: float) -> list[Line]:
    """Draw the screen, at most `height` lines of at most `width` characters; None: all there is to show."""
    lines = [*_head(seen, now), Line("")]
    nodes = [seen.nodes[name] for name in sorted(seen.nodes)]
    jobs = seen.shown_jobs(now)
    rows = [(_node_row(node), _node_style(node)) for node in nodes]
    lines += _table(NODE_HEAD, rows, None if height is None else max(height // NODE_SHARE, 2))
    lines.append(Line(""))
    left = None if height is None else height - len(lines)
    head = (*JOB_HEAD, seen.metric.upper())
    lines += _table(head, [(_job_row(seen, job), _job_style(job)) for job in jobs], left)
    return [Line(_cut(line.text, width), line.style) for line in lines[:height]]


def _head(seen: Seen, now: float) -> Iterator[Line]:
    import time

    nodes, jobs = seen.nodes.values(), seen.jobs.values()
    states = [enum_word(node_pb2.NodeState.Name(node.state)) for node in nodes]
    words = [enum_word(job_pb2.JobState.Name(job.state)) for job in jobs if job.state not in TERMINAL]
    used, slots = sum(node.slots_used for node in nodes), sum(node.capacity.slots for node in nodes)
    clock = time.strftime("%H:%M:%S", time.localtime(now))
    yield Line(f"holdfast top  {seen.server}  {clock}", BOLD)
    yield Line(f"nodes {_counted(states)}; slots {used} of {slots} used; jobs {_counted(words)}")
    if seen.trouble:
        yield Line(f"not up to date: {printable(seen.trouble)}", RED)


def _counted(words: Sequence[str]) -> str:
    """3 ready, 1 lost; or none."""
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words)) or "none"


def _node_row(node: node_pb2.Node) -> Row:
    capacity = node.capacity
    return (
        node.name,
        state_words(node),
        f"{node.slots_used}/{capacity.slots}",
        f"{capacity.cpus:g}",
        short_size(capacity.memory_bytes),
        str(capacity.gpus),
    )


def _node_style(node: node_pb2.Node) -> str:
    return {node_pb2.NODE_STATE_SUSPECT: YELLOW, node_pb2.NODE_STATE_LOST: RED}.get(node.state, PLAIN)


def _job_row(seen: Seen, job: job_pb2.Job) -> Row:
    found = seen.summaries.get(job.id, job_pb2.JobSummary())
    steps = str(found.steps) if found.HasField("steps") else "-"
    return (
        job.id,
        job.spec.name,
        enum_word(job_pb2.JobState.Name(job.state)),
        str(job.spec.world_size),
        f"{steps}/{found.total_steps}" if found.total_steps else steps,
        f"{found.steps_per_second:.1f}" if found.steps_per_second else "-",
        f"{found.goodput:.1%}" if found.HasField("goodput") else "-",
        str(job.restarts),
        short_seconds(found.time_left.seconds) if found.HasField("time_left") else "-",
        _curve(seen.curves.get(job.id, ())),
    )


def _job_style(job: job_pb2.Job) -> str:
    troubled = (job_pb2.JOB_STATE_RESTARTING, job_pb2.JOB_STATE_STOPPING)
    if job.state == job_pb2.JOB_STATE_FAILED:
        return RED
    if job.state in TERMINAL:
        return DIM
    return YELLOW if job.state in troubled or job.degraded else PLAIN


def _curve(values: Sequence[float]) -> str:
    """The last value, and how it came to be; a value that is no number breaks the curve off."""
    if not values:
        return "-"
    known = list(values)
    if not math.isfinite(known[-1]):
        return f"{known[-1]:g}"
    known = [value for value in known if math.isfinite(value)]
    return f"{known[-1]:.4g} {sparkline(known, CURVE)}"


def _table(head: Row, rows: Sequence[tuple[Row, str]], most: int | None) -> Iterator[Line]:
    """Align columns, in at most so many lines; the last one says how many are left out."""
    room = len(rows) if most is None or len(rows) < most else max(most - 2, 0)
    shown = [(tuple(map(printable, row)), style) for row, style in rows[:room]]
    widths = [max(len(row[n]) for row, _ in [(head, ""), *shown]) for n in range(len(head))]
    for row, style in [(head, BOLD), *shown]:
        padded = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield Line(padded.rstrip(), style)
    if room < len(rows):
        yield Line(f"and {len(rows) - room} more", DIM)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"
