"""The curves of jobs, through a real coordinator that is stopped and started again."""

import asyncio

import pytest

from holdfast.v1 import job_pb2
from holdfast.wire import NotFound, Unreachable
from holdfast_coordinator import recorder
from holdfast_coordinator.store.sqlite_points import FILE, SqlitePoints

pytest_plugins = ["tests.client.cli_fixtures"]

PATIENCE = 60


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch):
    monkeypatch.setattr(recorder, "EVERY_S", 0.02)
    monkeypatch.setattr(recorder, "WRITE_EVERY_S", 0.1)


async def begun(client, agent, world=2):
    spec = job_pb2.JobSpec(name="a", command=["train"], world_size=world)
    job = await client.create_job(spec)
    async for seen in client.watch_job(job.id):
        if seen.state == job_pb2.JOB_STATE_RUNNING:
            return job.id
    raise AssertionError


async def until(client, job_id, condition):
    """Wait until the curves of a job are as wanted."""
    async with asyncio.timeout(PATIENCE):
        while True:
            found = {series.name: list(series.points) for series in await client.job_metrics(job_id)}
            if condition(found):
                return found
            await asyncio.sleep(0.01)


def last(found, name):
    return (found[name][-1].step, found[name][-1].value) if found.get(name) else None


async def test_curves_grow_end_and_are_deleted(house, agent, client):
    job_id = await begun(client, agent)
    agent.progress(0, 10, loss=1.0)
    agent.progress(1, 12, loss=2.0)
    await until(client, job_id, lambda found: last(found, "loss") == (10, 1.5))
    agent.progress(1, 20, loss=1.0, accuracy=0.5)
    agent.progress(0, 20, loss=1.0)
    found = await until(client, job_id, lambda found: last(found, "loss") == (20, 1.0))
    assert len(found["loss"]) >= 2
    (only,) = await client.job_metrics(job_id, ["accuracy"], points=2)
    assert only.name == "accuracy"
    (thinned,) = await client.job_metrics(job_id, ["loss"], points=2)
    assert list(thinned.points) == [found["loss"][0], found["loss"][-1]]

    agent.joined.clear()
    await house.stop()  # which writes what is left
    await house.start()
    await agent.joined.wait()
    again = await until(client, job_id, lambda again: "loss" in again)
    assert again["loss"][: len(found["loss"])] == found["loss"]

    for rank in range(2):
        agent.exit(rank)
    async for _ in client.watch_job(job_id):
        pass
    await client.delete_job(job_id)
    with pytest.raises(NotFound):
        await client.job_metrics(job_id)
    await house.stop()
    left = SqlitePoints(house._state_dir)
    assert left.jobs() == []
    left.close()


async def test_a_job_that_is_over_at_once_has_its_last_values(house, agent, client):
    """Nobody looked at it while it ran: what its exit said is put down."""
    job_id = await begun(client, agent, world=1)
    agent.exit(0, step=30, steps_done=30, metrics={"loss": 0.25})
    found = await until(client, job_id, lambda found: last(found, "loss") == (30, 0.25))
    job = await client.get_job(job_id)
    assert found["loss"][-1].at == job.finished_at


async def test_jobs_do_not_mind_curves_that_can_not_be_kept(house, agent, client):
    await house.stop()
    (house._state_dir / FILE).unlink(missing_ok=True)
    (house._state_dir / FILE).mkdir()
    await house.start()
    job_id = await begun(client, agent, world=1)
    agent.progress(0, 10, loss=1.0)
    agent.exit(0)
    seen = [job.state async for job in client.watch_job(job_id)]
    assert seen[-1] == job_pb2.JOB_STATE_SUCCEEDED
    with pytest.raises(Unreachable, match="can't use the state directory"):
        await client.job_metrics(job_id)
