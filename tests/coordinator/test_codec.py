"""What comes in is translated, and bounded."""

import pytest

from holdfast.v1 import agent_pb2, job_pb2
from holdfast_coordinator import codec
from holdfast_coordinator.core.account import summarize
from tests.core.builders import T0, running


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
