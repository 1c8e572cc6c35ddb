# ruff: noqa: F401, F811  fixtures are imported by name
"""What every read prints, in every form.

`pytest tests/client/test_cli_golden.py --rewrite` writes tests/client/golden anew; git shows what changed, and a person
says whether it should have.
"""

import json
import re
from pathlib import Path

import click
import pytest
import yaml

from holdfast.cli import cli
from holdfast.v1 import job_pb2, worker_pb2
from tests.client.scripted import ago, coordinator, make_job, run
from tests.client.test_cli_help import commands
from tests.client.test_cli_lists import AT, CHECKPOINTS, EVENTS, NODES

GOLDEN = Path(__file__).parent / "golden"
FORMS = ("table", "wide", "json", "yaml", "name")
JOB = "k7m2p9xq4w"
READS = {
    "job list": [],
    "job get": [JOB],
    "job watch": [JOB],
    "job summary": [JOB],
    "job samples": [JOB],
    "job why": [JOB],
    "job metrics": [JOB],
    "job purge": ["--older-than", "7d", "--dry-run"],
    "node list": [],
    "node get": ["n1"],
    "checkpoint list": [JOB],
    "checkpoint get": [JOB, "300"],
    "events": [],
    "context list": [],
    "context get": ["lab"],
    "top": ["--once"],
}
ELSEWHERE = {
    "job submit": "prints a job as `job get` does",
    "checkpoint verify": "tests/client/test_cli_checkpoint.py",
    "doctor": "tests/client/test_cli_doctor.py: what it finds is the machine's",
}


def summary():
    return job_pb2.JobSummary(
        job_id=JOB,
        name="digits",
        state=job_pb2.JOB_STATE_RUNNING,
        reason="2 of 2 workers are up",
        world_size=2,
        restarts=1,
        steps=212,
        total_steps=800,
        last_committed_step=200,
        steps_redone=12,
        steps_per_second=893.6,
        goodput=0.9,
        time_seconds={"kept": 9.0, "setup": 0.6, "restart": 0.4},
        metrics={"loss": 0.25},
    )


def story():
    found = job_pb2.JobStory(summary=summary(), left_out=1)
    found.incidents.add(
        at=AT,
        attempt=1,
        rank=1,
        node="n2",
        cause="rank 1 on node n2: killed by SIGKILL at step 190",
        fell="rank 0 was stopped",
        decided="all ranks restart from step 100 (restart 1 of 50 without progress, in 0.5 s)",
        cost="4.2 s until all were up again; 12 steps done once more",
        evidence="epoch 3\nKilled",
    )
    found.notes.add(at=AT, kind="StragglerNoticed", rank=0, message="its steps take 3.1 times as long")
    return found


def record():
    shards = [
        worker_pb2.Shard(
            rank=rank,
            file=f"rank-{rank:05}.attempt-2.safetensors",
            size_bytes=3 * 2**19,
            digest=f"{rank:016x}",
            cursor=json.dumps(
                [
                    {
                        "epoch": 1,
                        "batch": 2,
                        "samples": 33,
                        "batch_size": 4,
                        "seed": 0,
                        "partition": False,
                        "done": False,
                        "name": "train",
                    }
                ]
            ),
        )
        for rank in (0, 1)
    ]
    return worker_pb2.CommitRecord(job_id=JOB, step=300, attempt=2, world_size=2, shards=shards)


@pytest.fixture
def full(coordinator, tmp_path, monkeypatch):
    """A coordinator that has one of everything."""
    coordinator.ahead_s = None
    ended = make_job("m3n4", job_pb2.JOB_STATE_FAILED, finished_at=ago(9.5 * 86_400))
    ended.reason = "rank 1 on node n2: exit code 3"
    running = make_job()
    running.spec.restart.scope = job_pb2.RESTART_SCOPE_GANG
    for job in (running, ended):
        coordinator.add_job(job)
    last = make_job(state=job_pb2.JOB_STATE_SUCCEEDED)
    last.reason = "every rank exited with code 0"
    coordinator.watched = [running, last]
    coordinator.nodes, coordinator.events = NODES, EVENTS
    coordinator.checkpoints, coordinator.records = CHECKPOINTS, {300: record()}
    coordinator.summary, coordinator.story = summary(), story()
    points = [job_pb2.MetricPoint(at=AT, step=step, value=1 / step) for step in (1, 2, 4, 8)]
    coordinator.curves = [job_pb2.MetricSeries(name="loss", points=points)]
    monkeypatch.setenv("HOLDFAST_CONFIG", str(tmp_path / "config.yaml"))
    (tmp_path / "config.yaml").write_text(
        f"current: fake\ncontexts:\n  lab: {{server: '10.0.0.1:7070'}}\n  fake: {{server: '{coordinator.target}'}}\n"
    )
    monkeypatch.delenv("HOLDFAST_SERVER", raising=False)
    return coordinator


def shown(text, coordinator, folder):
    """Without what is different each time."""
    text = text.replace(coordinator.target, "unix:/c.sock").replace(str(folder), "")
    text = re.sub(r"(?<=c\.sock  )\d\d:\d\d:\d\d", "12:00:00", text)
    return re.sub(r"\b20(?!23-11-14)\d\d-\d\d-\d\dT[\d:.]+Z", "2026-01-01T00:00:00Z", text)


def test_every_read_has_its_golden():
    forms = {
        " ".join(path)
        for path, command in commands()
        if any(option.name == "output" for option in command.params)
    }
    assert forms == READS.keys() | ELSEWHERE.keys()
    assert {path.stem.replace("-", " ") for path in GOLDEN.iterdir()} == READS.keys()


@pytest.mark.parametrize("read", READS)
def test_what_a_read_prints(full, request, tmp_path, read):
    pages = []
    for form in FORMS:
        words = [*read.split(), *READS[read], "-o", form]
        done = run(*words)
        assert done.exit_code == 0, done.stderr
        out = shown(done.stdout, full, tmp_path)
        pages.append(f"$ holdfast {' '.join(words)}\n{out}")
        if form == "yaml":
            documents = list(yaml.safe_load_all(done.stdout))
    path = GOLDEN / f"{read.replace(' ', '-')}.txt"
    text = "\n".join(pages)
    if request.config.getoption("rewrite"):
        path.write_text(text)
    assert text == path.read_text()
    as_json = run(*read.split(), *READS[read], "-o", "json").stdout
    if len(documents) == 1:
        assert json.loads(as_json) == documents[0]
    else:
        assert [json.loads(line) for line in as_json.splitlines()] == documents
