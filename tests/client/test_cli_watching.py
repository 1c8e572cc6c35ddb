"""`--watch` of lists, `job restart` and `job submit --dry-run`, against a real coordinator."""

import json
import signal

import pytest
from google.protobuf.json_format import ParseDict

from holdfast.cli.exits import EXIT
from holdfast.cli.plan import numbers
from holdfast.v1 import job_pb2

pytest_plugins = ["tests.client.cli_fixtures"]

SPEC = job_pb2.JobSpec(name="digits", command=["x"], world_size=2)
SPEC.stop_grace.FromMilliseconds(100)  # the scripted agent does not answer when it is asked to stop in time
RUNNING = job_pb2.JOB_STATE_RUNNING


async def until(command, *words):
    """Read lines until one has all these words."""
    while True:
        line = await command.line()
        if all(word in line.split() for word in words):
            return line


async def test_lists_go_on_with_a_line_for_every_change(client, agent, start_command, job_in):
    first = await client.create_job(SPEC)
    await job_in(first.id, RUNNING)
    other = job_pb2.JobSpec(name="other", command=["x"], world_size=1)
    await client.create_job(other)
    jobs = await start_command("job", "list", "--watch", "--name", "digits")
    assert (await jobs.line()).split()[:3] == ["JOB", "NAME", "STATE"]
    assert (await jobs.line()).split()[:3] == [first.id, "digits", "running"]
    nodes = await start_command("node", "list", "--watch")
    assert (await nodes.line()).split()[0] == "NODE"
    assert (await nodes.line()).split()[:3] == ["n1", "ready", "3/4"]
    await client.cordon_node("n1", "disks")
    await until(nodes, "n1", "ready,cordoned")
    await client.stop_job(first.id, force=True)
    await until(jobs, first.id, "stopped")
    await client.delete_job(first.id)
    assert (await jobs.line()).split() == [first.id, "deleted"]
    jobs.signal(signal.SIGINT)
    assert (await jobs.ended()).code == EXIT.INTERRUPTED


async def test_programs_get_a_message_a_line(client, start_command):
    first = await client.create_job(SPEC)
    jobs = await start_command("job", "list", "-w", "-o", "json")
    found = ParseDict(json.loads(await jobs.line()), job_pb2.WatchJobsResponse())
    assert found.job.id == first.id
    there = [event async for event in client.list_events()]
    events = await start_command("events", "-w", "-o", "json", "--after", str(there[0].seq))
    second = await client.create_job(SPEC)
    seen = []
    while not seen or (seen[-1].kind, seen[-1].job_id) != ("JobCreated", second.id):
        seen.append(ParseDict(json.loads(await events.line()), job_pb2.Event()))
    assert seen[: len(there) - 1] == there[1:]
    await client.stop_job(first.id, force=True)
    await client.delete_job(first.id)
    while (line := json.loads(await jobs.line())) != {"deleted": first.id}:
        assert line["job"]["id"] in (first.id, second.id)


async def test_the_timeline_of_a_job_is_followed_to_its_deletion(client, start_command):
    job = await client.create_job(SPEC)
    events = await start_command("events", job.id, "--watch")
    assert (await events.line()).split()[:2] == ["TIME", "JOB"]
    await until(events, "JobCreated")
    await client.stop_job(job.id, force=True)
    await client.delete_job(job.id)
    await until(events, "JobDeleted")
    assert (await events.ended()).code == EXIT.OK


async def test_a_job_is_restarted(client, agent, holdfast, start_command, job_in):
    job = await client.create_job(SPEC)
    await job_in(job.id, RUNNING)
    done = await holdfast("job", "restart", job.id, "--force")
    assert (done.code, done.out) == (EXIT.OK, "")
    assert done.err.startswith(f"{job.id} ")
    assert (await job_in(job.id, RUNNING)).attempt == 2
    waits = await start_command("job", "restart", job.id, "--force", "--wait")
    async for now in client.watch_job(job.id):
        if now.attempt == 3 and now.state == RUNNING:
            break
    agent.exit(0)
    agent.exit(1)
    assert (await waits.ended()).code == EXIT.OK
    done = await holdfast("job", "restart", job.id)
    assert done.code == EXIT.FAILED
    assert f"submit it anew; with --resume-from {job.id}" in done.err


async def test_a_dry_run_says_where_ranks_would_be_and_submits_nothing(client, agent, holdfast, tmp_path):
    (tmp_path / "data.jsonl").write_text('{"x": 1}\n{"x": 2}\n')
    submit = ("job", "submit", "--dry-run", "--data", "train=data.jsonl")
    done = await holdfast(*submit, "-n", "3", "--", "python", "train.py")
    assert done.code == EXIT.OK, done.err
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[:2] == [["NODE", "WORKERS", "RANKS", "GPUS"], ["n1", "3", "0-2", "-"]]
    assert lines[3:] == [
        ["DATA", "SHARDS", "SAMPLES", "SIZE", "WHERE"],
        ["train", "1", "2", "18", "B", str(tmp_path / "data.jsonl")],
    ]
    done = await holdfast(*submit, "-n", "9", "-o", "json", "--", "python", "train.py")
    plan = ParseDict(json.loads(done.out), job_pb2.JobPlan())
    assert plan.waits == "waits for room: short of slots: needs 9, 4 free on 1 node"
    assert [job async for job in client.list_jobs()] == []
    done = await holdfast("job", "submit", "--dry-run", "--name", "no/name", "--", "x")
    assert done.code == EXIT.USAGE


@pytest.mark.parametrize(
    ("found", "said"), [([], "-"), ([3], "3"), ([2, 0, 1], "0-2"), ([0, 1, 5, 7, 8], "0-1,5,7-8")]
)
def test_numbers_in_few_characters(found, said):
    assert numbers(found) == said
