"""What comes in is translated, and bounded."""

import pytest

from holdfast.v1 import agent_pb2, job_pb2, worker_pb2
from holdfast_coordinator import codec
from holdfast_coordinator.core.account import summarize
from holdfast_coordinator.core.effects import JobOver, NoteReport, StartWorkers
from holdfast_coordinator.core.model import ReportKind
from tests.core.builders import T0, key, running


@pytest.mark.parametrize(
    ("said", "read"),
    [(7, 7), (2**63 - 1, codec.MOST_STEPS), (-(2**63), 0)],
    ids=["sound", "huge", "negative"],
)
def test_steps_have_a_bound(said, read):
    assert codec.progress_from_proto(agent_pb2.Progress(steps_done=said)).steps_done == read


def test_nonsense_in_every_heartbeat_page_leaves_a_summary():
    progress = codec.progress_from_proto(agent_pb2.Progress(step=2**63 - 1, steps_done=2**63 - 1))
    assert progress.step == codec.MOST_STEPS
    cluster = running(4)
    workers = cluster.state.workers_of(cluster.job())
    numbers = summarize(
        cluster.job(), [cluster.gang()], workers, dict.fromkeys(range(4), progress), T0 + 1_000
    )
    assert codec.summary_to_proto(cluster.job(), numbers).steps == codec.MOST_STEPS


def test_data_sets_come_out_as_they_went_in_or_not_at_all():
    spec = job_pb2.JobSpec(name="a", command=["x"], world_size=1)
    found = spec.datasets.add(name="train", uri="s3://bucket/train")
    found.shards.add(file="a.npy", samples=3, size_bytes=40, digest="0123456789abcdef")
    found.shards.add(file="b.npy")
    read = codec.spec_from_proto(spec)
    assert codec.spec_to_proto(read).datasets == spec.datasets
    assert not codec.spec_to_proto(read, datasets=False).datasets


def test_warm_starts_come_out_as_they_went_in():
    spec = job_pb2.JobSpec(name="a", command=["x"], world_size=1, preload=["numpy", "a.b"], spares=3)
    read = codec.spec_from_proto(spec)
    assert (read.preload, read.spares) == (("numpy", "a.b"), 3)
    shown = codec.spec_to_proto(read)
    assert (list(shown.preload), shown.spares) == (["numpy", "a.b"], 3)
    assert codec.command_to_proto(JobOver("a"), epoch=7).job_over.job_id == "a"


def test_the_data_sets_of_a_job_are_written_once_for_all_agents(monkeypatch):
    spec = job_pb2.JobSpec(name="a", command=["x"], world_size=2)
    spec.datasets.add(name="train", uri="/train").shards.add(file="a.npy", samples=3)
    jobs = [codec.spec_from_proto(spec) for _ in range(20)]
    written = []
    real = codec._dataset
    monkeypatch.setattr(codec, "_dataset", lambda found: written.append(found) or real(found))
    for job in jobs:
        starts = [StartWorkers("a", job, (), f"10.0.0.{n}", 1, ()) for n in range(3)]
        messages = [codec.command_to_proto(start, epoch=7).start_workers for start in starts]
        assert [message.spec for message in messages] == [codec.spec_to_proto(job)] * 3
        assert [message.master_addr for message in messages] == ["10.0.0.0", "10.0.0.1", "10.0.0.2"]
    assert len(written) == len(jobs)


@pytest.mark.parametrize(
    "policy",
    [
        None,
        job_pb2.RetentionPolicy(),
        job_pb2.RetentionPolicy(keep_last=1, keep_every=9, best=2, metric="x", mode=job_pb2.METRIC_MODE_MAX),
    ],
    ids=str,
)
def test_a_policy_is_read_with_its_defaults_and_shown_with_them(policy):
    spec = codec.spec_from_proto(job_pb2.JobSpec(name="a", retention=policy))
    shown = codec.spec_to_proto(spec)
    assert codec.spec_from_proto(shown) == spec
    assert shown.HasField("retention") is (policy is not None)
    if policy is not None:
        assert shown.retention.keep_last == (policy.keep_last if policy.HasField("keep_last") else 2)
        assert shown.retention.mode in (job_pb2.METRIC_MODE_MIN, job_pb2.METRIC_MODE_MAX)


def test_metrics_of_a_shard_are_numbers_and_not_too_many():
    said = worker_pb2.Shard(file="f", metrics={f"m{n:03}": 0.5 for n in range(100)}, local_only=True)
    said.metrics["a"], said.metrics["b"] = float("nan"), float("-inf")
    read = codec.shard_from_proto(said)
    assert list(read.metrics) == [f"m{n:03}" for n in range(codec.MOST_METRICS)]
    assert read.local_only


def test_what_a_worker_reports_is_cut():
    report = worker_pb2.Report(kind=worker_pb2.Report.KIND_SAVE_FAILED, step=3, message="no" * 5_000)
    reported = agent_pb2.CheckpointReported(report=report)
    message = agent_pb2.AgentMessage(checkpoint_reported=reported)
    event = codec.event_from_proto(message, node="n", session="s", at=1)
    assert (event.kind, event.step, len(event.message)) == (ReportKind.SAVE_FAILED, 3, codec.LONGEST_MESSAGE)


@pytest.mark.parametrize("kind", ReportKind)
def test_every_kind_of_report_goes_both_ways(kind):
    number = worker_pb2.Report.Kind.Value(f"KIND_{kind.name}")
    reported = agent_pb2.CheckpointReported(report=worker_pb2.Report(kind=number))
    message = agent_pb2.AgentMessage(checkpoint_reported=reported)
    assert codec.event_from_proto(message, node="n", session="s", at=1).kind is kind
    noted = codec.command_to_proto(NoteReport(key(0), kind, 3), epoch=7)
    assert (noted.epoch, noted.note_report.kind, noted.note_report.step) == (7, number, 3)
    assert len(ReportKind) == len(worker_pb2.Report.Kind.values()) - 1
