"""`holdfast job`, against a real coordinator: what it prints, and how it ends."""

import json
import signal

import pytest
import yaml

from holdfast.cli.exits import EXIT
from holdfast.v1 import job_pb2

pytest_plugins = ["tests.client.cli_fixtures"]

OUT, ERR = job_pb2.LOG_STREAM_STDOUT, job_pb2.LOG_STREAM_STDERR
RUNNING, STOPPED = job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_STOPPED


@pytest.fixture
async def running(client, agent, job_in):
    """A job of two that runs."""
    spec = job_pb2.JobSpec(name="digits", command=["python", "train.py"], world_size=2)
    spec.restart.budget = 0
    # The scripted agent does not answer when it is asked to stop in time.
    spec.stop_grace.FromMilliseconds(100)
    job = await client.create_job(spec)
    return await job_in(job.id, RUNNING)


@pytest.fixture
async def steps(client, agent, running):
    """The job of two, rank 0 at step 7 and rank 1 at step 5."""
    agent.progress(0, 7, loss=0.5)
    agent.progress(1, 5)
    async for job in client.watch_job(running.id):
        if [worker.step for worker in job.workers] == [7, 5]:
            return job
    raise AssertionError("the job ended")


class TestSubmit:
    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            ([], "Error: give the command, for instance: -- python train.py"),
            (["-n", "0", "x"], "Error: --world-size: 0 is not between 1 and 100000"),
            (
                ["-n", "99999999999", "x"],
                "Error: --world-size: 99999999999 is too large; write a number below",
            ),
            (["--memory", "2GB", "x"], 'Error: --memory: "2GB" is no size; write e.g. 512MiB or 2GiB'),
            (
                ["--backoff", "2", "x"],
                'Error: --backoff: "2" is no duration; write e.g. 500ms, 30s, 5m or 1h',
            ),
            (["--restart-budget", "-1", "x"], "Error: --restart-budget: -1 is negative; give 0 or more"),
            (["--env", "1A=b", "x"], "Error: --env 1A: is no name of an environment variable"),
            (["--env", "A", "x"], "Error: --env A: is not set here; set it, or write A=VALUE"),
            (["--env", "=b", "x"], 'Error: --env "=b" is not of the form NAME=VALUE'),
            (["--name", "a/b", "x"], 'Error: --name: "a/b" is no job name; '),
            (
                ["--checkpoint-dir", "s3://", "x"],
                'Error: --checkpoint-dir: "s3://" names no place; write e.g. s3://bucket/prefix',
            ),
            (["--keep-last", "0", "x"], "Error: --keep-last: 0 is not between 1 and 1000"),
            (["--resume-from", "gs://", "x"], 'Error: --resume-from: "gs://" names no place'),
            (
                ["--keep-every", "-5", "x"],
                "Error: --keep-every: -5 steps is negative; give 0 or more",
            ),
            (["--timeout", "1s", "x"], "Error: --timeout says how long to --wait; give both"),
            (["--wait", "--timeout", "x", "x"], "Error: Invalid value for '--timeout': \"x\" is no duration"),
            (["-f", "none.yaml"], "Error: none.yaml: can't be read: No such file or directory"),
        ],
        ids=str,
    )
    async def test_what_cannot_be(self, holdfast, words, sentence):
        done = await holdfast("job", "submit", *words)
        assert (done.code, done.out) == (EXIT.USAGE, "")
        assert done.err.splitlines()[-1].startswith(sentence)

    async def test_an_impossible_value_is_told_with_its_line(self, holdfast, tmp_path):
        text = "command: [x]\nworld_size: 0\nenv:\n  A: b\n  1A: b\nrestart:\n  jitter: 2\n"
        (tmp_path / "job.yaml").write_text(text)
        done = await holdfast("job", "submit", "-f", "job.yaml")
        assert done.code == EXIT.USAGE
        assert done.err.splitlines() == [
            "Error: job.yaml:2: world_size: 0 is not between 1 and 100000",
            "job.yaml:5: env.1A: is no name of an environment variable",
            "job.yaml:7: restart.jitter: 2 is not between 0 and 1",
        ]

    async def test_a_flag_that_is_wrong_is_not_blamed_on_the_file(self, holdfast, tmp_path):
        (tmp_path / "job.yaml").write_text("command: [x]\nworld_size: 2\n")
        done = await holdfast("job", "submit", "-f", "job.yaml", "-n", "0")
        assert done.err == "Error: --world-size: 0 is not between 1 and 100000\n"

    @pytest.mark.parametrize(("code", "exit_code"), [(0, EXIT.OK), (3, EXIT.FAILED)])
    async def test_waiting_ends_as_the_job_does(self, start_command, agent, job_in, code, exit_code):
        command = await start_command("job", "submit", "--restart-budget", "0", "--wait", "x")
        job_id = (await command.line()).strip()
        await job_in(job_id, RUNNING)
        agent.exit(0, code)
        done = await command.ended()
        assert done.code == exit_code
        assert done.err.startswith(
            f"{job_id} {'failed: rank 0 on node n1: exit code 3' if code else 'succeeded'}"
        )

    async def test_interrupted(self, start_command, client):
        command = await start_command("job", "submit", "--wait", "x")
        job_id = (await command.line()).strip()
        command.signal(signal.SIGINT)
        assert (await command.ended()).code == EXIT.INTERRUPTED
        assert (await client.get_job(job_id)).state == job_pb2.JOB_STATE_PENDING


class TestReads:
    async def test_filters(self, holdfast, running):
        assert (await holdfast("job", "list", "-o", "name", "--state", "failed")).out == ""
        assert (await holdfast("job", "list", "-o", "name", "--state", "running")).out == f"{running.id}\n"
        assert (await holdfast("job", "list", "-o", "name", "--name", "other")).out == ""
        wrong = await holdfast("job", "list", "--state", "runing")
        assert wrong.code == EXIT.USAGE
        assert "runing is none of pending, starting, running," in wrong.err

    async def test_get_as_json_is_the_message(self, holdfast, steps):
        job = json.loads((await holdfast("job", "get", steps.id, "-o", "json")).out)
        assert (job["state"], job["restarts"], job["spec"]["worldSize"]) == ("JOB_STATE_RUNNING", 0, 2)
        keep = ("rank", "node", "pid", "state", "attempt", "step")
        assert {key: job["workers"][0][key] for key in keep} == {
            "rank": 0,
            "node": "n1",
            "pid": 1000,
            "state": "WORKER_STATE_RUNNING",
            "attempt": 1,
            "step": "7",
        }
        assert yaml.safe_load((await holdfast("job", "get", steps.id, "-o", "yaml")).out) == job


class TestWatch:
    async def test_every_change_a_line(self, start_command, agent, running):
        command = await start_command("job", "watch", running.id)
        assert (await command.line()).startswith("running: ")
        agent.exit(0)
        agent.exit(1)
        done = await command.ended()
        assert done.code == EXIT.OK
        assert done.out.splitlines()[-1] == "succeeded: every rank exited with code 0"

    async def test_a_job_that_was_stopped(self, holdfast, client, running):
        await client.stop_job(running.id)
        assert (await holdfast("job", "watch", running.id)).code == EXIT.STOPPED


class TestLogs:
    async def test_one_rank_and_one_attempt(self, holdfast, agent, running):
        agent.logs = {(rank, attempt, OUT): b"%d\n" % attempt for rank in (0, 1) for attempt in (1, 2)}
        assert (await holdfast("job", "logs", running.id, "--rank", "1")).out == "[1] 1\n[1] 2\n"
        assert (await holdfast("job", "logs", running.id, "--rank", "1", "--attempt", "2")).out == "[1] 2\n"
        wrong = await holdfast("job", "logs", running.id, "--rank", "9")
        assert wrong.code == EXIT.USAGE
        assert "has no rank 9; its ranks are 0 to 1" in wrong.err
        wrong = await holdfast("job", "logs", running.id, "--rank", "1", "--attempt", "7")
        assert wrong.code == EXIT.USAGE
        assert f"rank 1 of job {running.id} has no attempt 7; its newest is 1" in wrong.err

    async def test_following_to_the_end(self, start_command, agent, running):
        agent.logs = {(0, 1, OUT): b"first\n"}
        command = await start_command("job", "logs", "-f", running.id)
        assert await command.line() == "[0] first\n"
        agent.logs[0, 1, OUT] += b"last"
        agent.exit(0)
        agent.exit(1)
        done = await command.ended()
        assert (done.code, done.out) == (EXIT.OK, "[0] last\n")


class TestEnding:
    async def test_stop_and_wait(self, holdfast, client, running):
        done = await holdfast("job", "stop", "--wait", running.id)
        assert done.code == EXIT.OK
        assert (await client.get_job(running.id)).state == STOPPED

    async def test_delete(self, holdfast, client, running, job_in):
        refused = await holdfast("job", "delete", running.id)
        assert (refused.code, refused.out) == (EXIT.FAILED, "")
        await client.stop_job(running.id)
        await job_in(running.id, STOPPED)
        assert (await holdfast("job", "delete", running.id)).err == f"{running.id} deleted\n"
        assert [job async for job in client.list_jobs()] == []

    async def test_delete_what_runs(self, holdfast, client, running):
        done = await holdfast("job", "delete", running.id, "--stop-first")
        assert (done.code, done.err) == (EXIT.OK, f"{running.id} deleted\n")
        assert [job async for job in client.list_jobs()] == []
