"""`holdfast job samples`, against a real coordinator: the ledger of what was committed."""

import asyncio
import json

import pytest

from holdfast.cli.exits import EXIT
from holdfast.v1 import job_pb2

pytest_plugins = ["tests.client.cli_fixtures"]

RUNNING, SUCCEEDED = job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_SUCCEEDED
TRAIN = {"name": "train", "samples": 33, "batch_size": 4, "seed": 0, "partition": False, "done": False}
ARRAYS = {"samples": 10, "batch_size": 5, "seed": 0, "partition": True, "world_size": 2, "done": False}


@pytest.fixture
def make_job(client, agent, job_in):
    async def make(scope):
        spec = job_pb2.JobSpec(name="digits", command=["python", "train.py"], world_size=2)
        spec.restart.scope = job_pb2.RestartScope.Value(f"RESTART_SCOPE_{scope}")
        return (await job_in((await client.create_job(spec)).id, RUNNING)).id

    return make


@pytest.fixture
def commit(client, agent):
    """Have the ranks commit a step with cursors of theirs, and wait until that is so."""

    async def make(job_id, step, cursors):
        for rank, saved in cursors.items():
            agent.prepare(rank, step, json.dumps(saved) if saved is not None else "")
        async with asyncio.timeout(60):
            async for _ in client.watch_job(job_id):
                if step in [found.step async for found in client.list_checkpoints(job_id)]:
                    return

    return make


def table(text):
    """With one space between columns."""
    return [" ".join(line.split()) for line in text.splitlines()]


class TestGang:
    async def test_what_the_newest_commit_says(self, holdfast, make_job, commit):
        job_id = await make_job("GANG")
        for step, batch in ((10, 2), (20, 8)):
            cursor = [TRAIN | {"epoch": 3, "batch": batch}]
            await commit(job_id, step, {0: cursor, 1: cursor})
        done = await holdfast("job", "samples", job_id)
        assert (done.code, done.err) == (0, "")
        assert table(done.out) == [
            "DATA SET EPOCH RANK BATCHES SAMPLES",
            "train 0 to 2, each 0 9 of 9 17 of 17",
            "train 0 to 2, each 1 9 of 9 16 of 16",
            "train 3 0 8 of 9 16 of 17",
            "train 3 1 8 of 9 16 of 16",
        ]

    async def test_json_and_names_of_a_job_that_has_ended(self, holdfast, agent, job_in, make_job, commit):
        job_id = await make_job("GANG")
        cursor = [{"epoch": 0, "batch": 1, **TRAIN}]
        await commit(job_id, 10, {0: cursor, 1: cursor})
        for rank in (0, 1):
            agent.exit(rank)
        await job_in(job_id, SUCCEEDED)
        done = await holdfast("job", "samples", job_id, "-o", "json")
        assert json.loads(done.out) == {
            "samples": [
                {
                    "data": "train",
                    "first_epoch": 0,
                    "last_epoch": 0,
                    "rank": rank,
                    "batches": 1,
                    "of_batches": 9,
                    "samples": 2,
                    "of_samples": of,
                }
                for rank, of in ((0, 17), (1, 16))
            ]
        }
        assert (await holdfast("job", "samples", job_id, "-o", "name")).out == "train\n"


class TestRanks:
    async def test_each_is_where_it_committed_last(self, holdfast, make_job, commit):
        job_id = await make_job("RANK")
        await commit(job_id, 10, {0: [{"epoch": 0, "batch": 1, **ARRAYS}]})
        done = await holdfast("job", "samples", job_id)
        assert table(done.out)[1:] == ["#0 0 0 1 of 1 5 of 5"]
        await commit(job_id, 7, {1: [{"epoch": 2, "batch": 0, **ARRAYS}]})
        done = await holdfast("job", "samples", job_id)
        assert table(done.out)[1:] == [
            "#0 0 0 1 of 1 5 of 5",
            "#0 0 to 1, each 1 1 of 1 5 of 5",
            "#0 2 1 0 of 1 0 of 5",
        ]


class TestNothing:
    @pytest.mark.parametrize("scope", ["GANG", "RANK"])
    async def test_no_commit_yet(self, holdfast, make_job, scope):
        job_id = await make_job(scope)
        done = await holdfast("job", "samples", job_id)
        assert (done.code, done.err) == (0, f"{job_id} has committed nothing of a data set\n")
        done = await holdfast("job", "samples", job_id, "-o", "json")
        assert (done.code, json.loads(done.out)) == (0, {"samples": []})

    async def test_no_data_set(self, holdfast, make_job, commit):
        job_id = await make_job("GANG")
        await commit(job_id, 10, {0: None, 1: None})
        done = await holdfast("job", "samples", job_id)
        assert (done.code, done.err) == (0, f"{job_id} has committed nothing of a data set\n")

    async def test_no_such_job(self, holdfast):
        done = await holdfast("job", "samples", "nonesuch")
        assert done.code == EXIT.NOT_FOUND

    async def test_a_cursor_of_another_version(self, holdfast, make_job, commit):
        job_id = await make_job("GANG")
        await commit(job_id, 10, {0: [{"epoch": 0}], 1: None})
        done = await holdfast("job", "samples", job_id)
        assert done.code == EXIT.FAILED
        assert f"job {job_id}: the cursor of rank 0 is none that this version of holdfast knows" in done.err
