"""Watchers of a job share what is looked up for them."""

import asyncio
from contextlib import contextmanager

import pytest

from holdfast.v1 import job_pb2
from holdfast_coordinator.core.effects import Problem, Refusal
from holdfast_coordinator.engine import RefusedError
from holdfast_coordinator.rpc.job_watch import JobWatches

RUNNING, SUCCEEDED = job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_SUCCEEDED


class Engine:
    """Holds one job, if any, and tells who watches it."""

    def __init__(self):
        self.job = job_pb2.Job(id="a", state=RUNNING)
        self.looks = 0
        self.watches = []

    async def read(self, ask):
        await asyncio.sleep(0)
        return ask(self)

    @contextmanager
    def watch(self, job_id):
        changed = asyncio.Event()
        self.watches.append(changed)
        yield changed
        self.watches.remove(changed)

    def change(self, **fields):
        self.job = job_pb2.Job(id="a", **fields) if fields else None
        for changed in self.watches:
            changed.set()


def look(engine, job_id):
    engine.looks += 1
    if engine.job is None:
        raise RefusedError(Refusal(Problem.NOT_FOUND, f"there is no job {job_id}", "list them"))
    return engine.job


@pytest.fixture
def engine():
    return Engine()


@pytest.fixture
def watches(engine):
    return JobWatches(engine, look)


async def following(watches, count):
    """Watchers, each of which has seen the job once."""
    found = [watches.follow("a") for _ in range(count)]
    for each in found:
        await anext(each)
    return found


async def rest(watching):
    return [job.state async for job in watching]


async def test_a_change_is_looked_at_once_for_all(engine, watches):
    found = await following(watches, 100)
    assert len(engine.watches) == 1
    waiting = [asyncio.create_task(rest(each)) for each in found]
    await asyncio.sleep(0)
    looks = engine.looks
    engine.change(state=SUCCEEDED)
    async with asyncio.timeout(60):
        assert await asyncio.gather(*waiting) == [[SUCCEEDED]] * 100
    assert engine.looks == looks + 1


async def test_who_comes_later_sees_what_is_now_and_nothing_older(engine, watches):
    (first,) = await following(watches, 1)
    engine.change(state=RUNNING, restarts=1)
    assert (await anext(first)).restarts == 1
    engine.change(state=RUNNING, restarts=2)
    second = watches.follow("a")  # before the others are shown
    async with asyncio.timeout(60):
        seen = [(await anext(second)).restarts]
        engine.change(state=SUCCEEDED, restarts=3)
        seen += [job.restarts async for job in second]
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (2, 3)
    assert await rest(first) == [SUCCEEDED]


async def test_a_slow_one_is_shown_the_newest(engine, watches):
    quick, slow = await following(watches, 2)
    for restarts in range(1, 5):
        engine.change(state=RUNNING, restarts=restarts)
        assert (await anext(quick)).restarts == restarts
    assert (await anext(slow)).restarts == 4


async def test_nothing_is_left_of_those_who_went(engine, watches):
    found = await following(watches, 3)
    waiting = asyncio.create_task(anext(found[0]))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    for each in found[1:]:
        await each.aclose()
    assert (engine.watches, watches._watched) == ([], {})
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert len(await following(watches, 1)) == 1


async def test_a_job_that_is_deleted_ends_every_watch(engine, watches):
    waiting = [asyncio.create_task(rest(each)) for each in await following(watches, 3)]
    await asyncio.sleep(0)
    engine.change()
    async with asyncio.timeout(60):
        told = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(error) for error in told] == ["there is no job a"] * 3
    with pytest.raises(RefusedError):
        await anext(watches.follow("a"))
    assert (engine.watches, watches._watched) == ([], {})
