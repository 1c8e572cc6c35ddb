# ruff: noqa: F401, F811  fixtures are imported by name
"""`holdfast node list`, `checkpoint list` and `events`."""

import json
import textwrap

import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.timestamp_pb2 import Timestamp

from holdfast.cli.exits import EXIT
from holdfast.v1 import job_pb2, node_pb2
from tests.client.scripted import ago, coordinator, holdfast, make_job

JOB = "k7m2p9xq4w"
NODES = [
    node_pb2.Node(
        name="n1",
        state=node_pb2.NODE_STATE_READY,
        reason="heard from",
        address="10.0.0.1",
        capacity=node_pb2.Capacity(slots=8, cpus=8, memory_bytes=32 * 2**30, gpus=2),
        slots_used=3,
        last_heard_at=ago(2.5 * 3_600),
        agent_version="9.8.7",
    ),
    node_pb2.Node(name="n2", state=node_pb2.NODE_STATE_LOST, reason="not heard from for 10.0 s"),
]
CHECKPOINTS = [
    job_pb2.Checkpoint(
        job_id=JOB,
        step=300,
        attempt=2,
        committed_at=ago(2.5 * 3_600),
        size_bytes=3 * 2**20,
        shard_count=4,
        uri="/ckpt",
        pin="good",
        metrics={"loss": 0.25, "lr": 0.001},
    ),
    job_pb2.Checkpoint(
        job_id=JOB,
        step=200,
        attempt=1,
        rank=0,
        committed_at=ago(3.5 * 3_600),
        shard_count=1,
        degraded=True,
    ),
]
AT = Timestamp(seconds=1_700_000_000, nanos=123_000_000)
EVENTS = [
    job_pb2.Event(seq=1, at=AT, kind="AgentJoined", node="n1", message="8 slots"),
    job_pb2.Event(
        seq=2, at=AT, kind="WorkerExited", node="n1", job_id=JOB, rank=0, attempt=2, message="exit code 3"
    ),
]


def lines(text):
    return textwrap.dedent(text).lstrip("\n")


@pytest.fixture(autouse=True)
def full(coordinator):
    coordinator.add_job(make_job())
    coordinator.nodes = NODES
    coordinator.checkpoints = CHECKPOINTS
    coordinator.events = EVENTS


def test_nodes(holdfast):
    assert holdfast("node", "list").stdout == lines("""
        NODE  STATE  SLOTS  CPUS  MEMORY    GPUS  HEARD  REASON
        n1    ready  3/8    8     32.0 GiB  2     2h     heard from
        n2    lost   0/0    0     0 B       0     -      not heard from for 10.0 s
    """)


def test_nodes_in_full(holdfast):
    assert holdfast("node", "list", "-o", "wide").stdout == lines("""
        NODE  STATE  SLOTS  CPUS  MEMORY    GPUS  HEARD  ADDRESS   VERSION  REASON
        n1    ready  3/8    8     32.0 GiB  2     2h     10.0.0.1  9.8.7    heard from
        n2    lost   0/0    0     0 B       0     -                         not heard from for 10.0 s
    """)


def test_a_node(holdfast):
    assert holdfast("node", "get", "n2").stdout == lines("""
        NODE  STATE  SLOTS  CPUS  MEMORY  GPUS  HEARD  REASON
        n2    lost   0/0    0     0 B     0     -      not heard from for 10.0 s
    """)


def test_a_node_that_is_not_there(holdfast):
    result = holdfast("node", "get", "n9")
    assert (result.exit_code, result.stderr) == (
        EXIT.NOT_FOUND,
        "Error: there is no node n9; list the nodes\n",
    )


def test_what_a_node_has_preloaded(coordinator, holdfast):
    node = node_pb2.Node(name="n3", state=node_pb2.NODE_STATE_READY)
    node.preloads.add(
        job_id=JOB, modules=["numpy", "torch"], pids=[77], memory_bytes=230 << 20, started=5, forks=True
    )
    why = "gRPC was imported, which does not survive a fork"
    node.preloads.add(job_id="other", modules=["grpc"], pids=[8, 9], memory_bytes=80 << 20, reason=why)
    node.preloads.add(job_id="third", modules=["nosuch"], reason="import nosuch: ModuleNotFoundError")
    coordinator.nodes = [node]
    assert holdfast("node", "get", "n3").stdout == lines("""
        NODE  STATE  SLOTS  CPUS  MEMORY  GPUS  HEARD  REASON
        n3    ready  0/0    0     0 B     0     -

        JOB         PRELOADED    AS      PIDS  MEMORY     STARTED  REASON
        k7m2p9xq4w  numpy,torch  zygote  77    230.0 MiB  5
        other       grpc         spares  8,9   80.0 MiB   0        gRPC was imported, which does not survive a fork
        third       nosuch       -       -     0 B        0        import nosuch: ModuleNotFoundError
    """)
    assert ParseDict(json.loads(holdfast("node", "get", "n3", "-o", "json").stdout), node_pb2.Node()) == node
    assert holdfast("node", "get", "n3", "-o", "name").stdout == "n3\n"


def test_checkpoints(holdfast):
    assert holdfast("checkpoint", "list", JOB).stdout == lines("""
        STEP  RANK  ATTEMPT  SHARDS  SIZE     AGE  PIN   STATE
        300   all   2        4       3.0 MiB  2h   good  ok
        200   0     1        1       0 B      3h   -     degraded
    """)


def test_checkpoints_in_full(holdfast):
    assert holdfast("checkpoint", "list", JOB, "-o", "wide").stdout == lines("""
        STEP  RANK  ATTEMPT  SHARDS  SIZE     AGE  PIN   STATE     METRICS             WHERE
        300   all   2        4       3.0 MiB  2h   good  ok        loss=0.25 lr=0.001  /ckpt
        200   0     1        1       0 B      3h   -     degraded  -
    """)


def test_events(holdfast):
    assert holdfast("events").stdout == lines("""
        TIME          JOB         RANK  EVENT         WHY
        22:13:20.123  -           -     AgentJoined   n1: 8 slots
        22:13:20.123  k7m2p9xq4w  0     WorkerExited  exit code 3
    """)


def test_events_in_full(holdfast):
    assert holdfast("events", "-o", "wide").stdout == lines("""
        TIME          JOB         NODE  RANK  ATTEMPT  EVENT         WHY
        22:13:20.123  -           n1    -     -        AgentJoined   n1: 8 slots
        22:13:20.123  k7m2p9xq4w  n1    0     2        WorkerExited  exit code 3
    """)


def test_events_of_one_job(coordinator, holdfast):
    assert holdfast("events", JOB).exit_code == 0
    (request,) = coordinator.asked("ListEvents")
    assert request.job_id == JOB


@pytest.mark.parametrize(
    ("command", "answer", "key", "items"),
    [
        (["node", "list"], node_pb2.ListNodesResponse, "nodes", NODES),
        (["checkpoint", "list", JOB], job_pb2.ListCheckpointsResponse, "checkpoints", CHECKPOINTS),
        (["events"], job_pb2.ListEventsResponse, "events", EVENTS),
    ],
)
def test_json_is_the_protos_own_form(holdfast, command, answer, key, items):
    data = json.loads(holdfast(*command, "-o", "json").stdout)
    assert getattr(ParseDict(data, answer()), key) == items


def test_names(holdfast):
    assert holdfast("node", "list", "-o", "name").stdout == "n1\nn2\n"
    assert holdfast("checkpoint", "list", JOB, "-o", "name").stdout == "step-0000000300\nstep-0000000200\n"


@pytest.mark.parametrize("command", [["checkpoint", "list"], ["events"]])
def test_no_such_job(holdfast, command):
    result = holdfast(*command, "nope")
    assert result.exit_code == EXIT.NOT_FOUND
    assert "there is no job nope" in result.stderr
