"""`--chaos`: what it reads, whom it kills."""

import asyncio
import signal
from dataclasses import dataclass

import click
import pytest

from holdfast.cli import chaos


@dataclass
class Worker:
    rank: int
    pid: int
    step: int | None


@pytest.mark.parametrize(
    ("text", "kill"),
    [
        ("kill-worker@step=200", chaos.Kill(200, None)),
        ("kill-worker@step=0,rank=3", chaos.Kill(0, 3)),
    ],
)
def test_plans(text, kill):
    assert chaos.parse(text) == kill


@pytest.mark.parametrize(
    "text", ["", "kill-worker", "kill-worker@step=", "kill-worker@step=-1", "kill-worker@step=2,rank=", "x"]
)
def test_what_is_no_plan(text):
    with pytest.raises(click.UsageError, match="write kill-worker@step=200"):
        chaos.parse(text)


@pytest.mark.parametrize(
    ("rank", "step", "chosen"),
    [(1, 200, True), (1, 201, True), (1, 199, False), (0, 200, False), (1, None, False)],
)
def test_who_is_killed(rank, step, chosen):
    assert chaos.Kill(200, 1).chooses(rank, step) is chosen


async def test_one_worker_is_killed_once_and_it_is_told(monkeypatch):
    killed, told = [], []
    monkeypatch.setattr(chaos.os, "kill", lambda pid, number: killed.append((pid, number)))
    monkeypatch.setattr(chaos, "LOOK_S", 0)
    looks = iter([[], [Worker(0, 10, None), Worker(1, 11, 5)], [Worker(0, 10, 7), Worker(1, 11, 8)]])
    await asyncio.wait_for(chaos.wreak(chaos.Kill(7, None), lambda: next(looks), told.append), 20)
    assert killed == [(10, signal.SIGKILL)]
    assert told == ["chaos: SIGKILL to rank 0, pid 10, at step 7"]


async def test_a_worker_that_is_gone_at_that_moment_is_let_be(monkeypatch):
    killed = []

    def kill(pid, number):
        if pid == 10:
            raise ProcessLookupError
        killed.append(pid)

    monkeypatch.setattr(chaos.os, "kill", kill)
    workers = [Worker(0, 10, 7), Worker(1, 11, 7)]
    await asyncio.wait_for(chaos.wreak(chaos.Kill(7, None), lambda: workers, lambda _: None), 20)
    assert killed == [11]
