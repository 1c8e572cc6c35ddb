"""Killing a worker on purpose: `--chaos kill-worker@step=200[,rank=1]`."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import click

from holdfast.cli.late import asyncio

LOOK_S = 0.002

_FORM = re.compile(r"kill-worker@step=(\d+)(?:,rank=(\d+))?")


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL one worker, once, when it has done this step."""

    step: int
    rank: int | None

    def chooses(self, rank: int, step: int | None) -> bool:
        """Whether it is this worker, now."""
        return step is not None and step >= self.step and self.rank in (None, rank)


class Target(Protocol):
    """What chaos has to know of a worker."""

    @property
    def rank(self) -> int: ...
    @property
    def pid(self) -> int: ...
    @property
    def step(self) -> int | None: ...


def parse(text: str) -> Kill:
    """Read the option. Raises click.UsageError."""
    found = _FORM.fullmatch(text)
    if not found:
        known = "kill-worker@step=200 or kill-worker@step=200,rank=1"
        raise click.UsageError(f'--chaos "{text}" is not known; write {known}')
    return Kill(int(found[1]), int(found[2]) if found[2] else None)


async def wreak(kill: Kill, workers: Callable[[], Iterable[Target]], tell: Callable[[str], None]) -> None:
    """Look at the workers every few milliseconds until the kill is done."""
    while True:
        for worker in workers():
            if kill.chooses(worker.rank, worker.step):
                try:
                    os.kill(worker.pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue  # it has just ended by itself
                tell(f"chaos: SIGKILL to rank {worker.rank}, pid {worker.pid}, at step {worker.step}")
                return
        await asyncio.sleep(LOOK_S)
