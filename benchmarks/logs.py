"""Lines a second from a worker to what reads them: through `holdfast job logs -f`, beside a process that has the pipe.

The worker waits until its reader is there, then writes as fast as it can: line by line, as Python programs do under
holdfast and under torchrun, or many lines at once. At the end of both ways is the same reader: it takes the lines
apart, as whoever wants lines has to; or it only counts them, which is the most that can be read. The clock runs from
the first of these lines to the last; all lines arrive, or it fails.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.figures import Table, median

ROUNDS = 5
READ_BYTES = 256 * 1024
SECONDS = 120
HOLDFAST = str(Path(sys.executable).with_name("holdfast"))
BY_LINE, AT_ONCE = 1_000_000, 5_000_000

PROGRAM = """
import os, sys, time
lines, block, go = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
os.write(1, b"\\n")
while not os.path.exists(go):
    time.sleep(0.005)
text = "step 123456 loss=0.123456 lr=0.001\\n"
if block == 1:
    for _ in range(lines):
        sys.stdout.write(text)
        sys.stdout.flush()
else:
    data = text.encode() * block
    for _ in range(lines // block):
        os.write(1, data)
"""


def consume(pipe: int, lines: int, go: Path, *, apart: bool) -> float:
    """Read until all lines are there; returns the seconds that they took."""
    count, began, rest = 0, 0.0, b""
    os.read(pipe, READ_BYTES)  # the worker is ready
    go.touch()
    while count < lines:
        data = os.read(pipe, READ_BYTES)
        if not data:
            raise RuntimeError(f"only {count} of {lines} lines arrived")
        began = began or time.monotonic()
        if apart:
            *whole, rest = (rest + data).split(b"\n")
            count += len(whole)
        else:
            count += data.count(b"\n")
    return time.monotonic() - began


def bare(lines: int, block: int, *, apart: bool) -> float:
    with tempfile.TemporaryDirectory() as folder:
        go = Path(folder, "go")
        command = [sys.executable, "-c", PROGRAM, str(lines), str(block), str(go)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as worker:
            assert worker.stdout is not None
            return lines / consume(worker.stdout.fileno(), lines, go, apart=apart)


def holdfast(lines: int, block: int, *, apart: bool) -> float:
    with tempfile.TemporaryDirectory() as folder, fleet(Path(folder)) as target:
        go = Path(folder, "go")
        command = [sys.executable, "-c", PROGRAM, str(lines), str(block), str(go)]
        submit = [HOLDFAST, "job", "submit", "--server", target, "--", *command]
        job = subprocess.run(submit, capture_output=True, text=True, check=True).stdout.strip()
        follow = [HOLDFAST, "job", "logs", "-f", "--server", target, job]
        with subprocess.Popen(follow, stdout=subprocess.PIPE) as reader:
            assert reader.stdout is not None
            return lines / consume(reader.stdout.fileno(), lines, go, apart=apart)


@contextmanager
def fleet(root: Path) -> Iterator[str]:
    """A coordinator and an agent."""
    target, quiet = f"unix:{root}/c.sock", subprocess.DEVNULL
    coordinator = [HOLDFAST, "coordinator", "--listen", target, "--state-dir", str(root / "coordinator")]
    agent = [HOLDFAST, "agent", "--coordinator", target, "--state-dir", str(root / "agent"), "--slots", "1"]
    daemons = [subprocess.Popen(command, stdout=quiet, stderr=quiet) for command in (coordinator, agent)]
    try:
        until = time.monotonic() + SECONDS
        listing = [HOLDFAST, "node", "list", "-o", "name", "--server", target]
        while not subprocess.run(listing, capture_output=True, check=False).stdout:
            if time.monotonic() > until:
                raise RuntimeError("no agent came")
        yield target
    finally:
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            daemon.wait()


def measure() -> list[Table]:
    rows = []
    for writer, lines, block in (("line by line", BY_LINE, 1), ("1,000 lines at once", AT_ONCE, 1_000)):
        for reader, apart in (("takes them apart", True), ("only counts them", False)):
            pairs = [
                (bare(lines, block, apart=apart), holdfast(lines, block, apart=apart)) for _ in range(ROUNDS)
            ]
            least, ours = (median(side) for side in zip(*pairs, strict=True))
            ratios = [mine / most for most, mine in pairs]
            ratio = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            rows.append((writer, reader, f"{least:,.0f}", f"{ours:,.0f}", ratio))
    head = ("a worker that writes", "a reader that", "bare pipe, lines/s", "job logs -f, lines/s", "ratio")
    note = (
        "From a worker that writes as fast as it can to the pipe behind `holdfast job logs -f`, beside the same reader "
        f"at the worker's own pipe; medians of {ROUNDS} rounds, the ratio with its range. Bar: at least 0.5 of a "
        "reader that takes lines apart. To count is the most that can be read."
    )
    return [Table("Logs", note, head, tuple(rows))]
