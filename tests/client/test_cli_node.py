# ruff: noqa: F401, F811  fixtures are imported by name
"""`holdfast node get|cordon|uncordon|drain|forget`."""

import json

import pytest

from holdfast.cli import node as node_module
from holdfast.cli.exits import EXIT
from holdfast.v1 import node_pb2
from tests.client.scripted import coordinator, holdfast


def node(**kwargs):
    return node_pb2.Node(name="n1", state=node_pb2.NODE_STATE_READY, reason="connected", **kwargs)


DRAINING = node(cordoned=True, draining=True, cordon_reason="new disks")
DRAINED = node(cordoned=True, drained=True, cordon_reason="new disks")


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (node(), "ready"),
        (node(cordoned=True), "ready,cordoned"),
        (DRAINING, "ready,draining"),
        (DRAINED, "ready,drained"),
    ],
)
def test_a_node_shows_what_it_is_kept_from(coordinator, holdfast, shown, words):
    coordinator.nodes = [shown]
    for command in (("list",), ("get", "n1")):
        done = holdfast("node", *command)
        assert done.exit_code == EXIT.OK
        _, line = done.stdout.splitlines()
        assert line.split()[:2] == ["n1", words]
        assert ("new disks" in line) is bool(shown.cordon_reason)


def test_one_node_as_json(coordinator, holdfast):
    coordinator.nodes = [DRAINED]
    found = json.loads(holdfast("node", "get", "n1", "-o", "json").stdout)
    assert (found["name"], found["drained"]) == ("n1", True)


def test_cordon_and_uncordon(coordinator, holdfast):
    coordinator.nodes = [node(cordoned=True, cordon_reason="new disks")]
    done = holdfast("node", "cordon", "n1", "--reason", "new disks")
    assert (done.exit_code, done.stderr) == (EXIT.OK, "n1 ready,cordoned: new disks\n")
    (asked,) = coordinator.asked("CordonNode")
    assert (asked.name, asked.reason) == ("n1", "new disks")
    coordinator.nodes = [node()]
    assert holdfast("node", "uncordon", "n1").stderr == "n1 ready\n"


def test_drain_says_within_what(coordinator, holdfast):
    coordinator.nodes = [DRAINING]
    assert holdfast("node", "drain", "n1").exit_code == EXIT.OK
    assert holdfast("node", "drain", "n1", "--deadline", "90s").exit_code == EXIT.OK
    assert [asked.within.ToSeconds() for asked in coordinator.asked("DrainNode")] == [120, 90]


def test_drain_waits_until_the_node_is_empty(coordinator, holdfast, monkeypatch):
    monkeypatch.setattr(node_module, "LOOK_EVERY_S", 0.01)
    coordinator.node_changes = [DRAINING, DRAINING, DRAINED]
    done = holdfast("node", "drain", "n1", "--wait")
    assert (done.exit_code, done.stderr) == (EXIT.OK, "n1 ready,drained: new disks\n")


def test_drain_for_an_upgrade_waits_and_says_what_to_do_next(coordinator, holdfast, monkeypatch):
    monkeypatch.setattr(node_module, "LOOK_EVERY_S", 0.01)
    coordinator.node_changes = [DRAINING, DRAINING, DRAINED]
    done = holdfast("node", "drain", "n1", "--for-upgrade")
    assert (done.exit_code, done.stderr) == (EXIT.OK, "n1 ready,drained: new disks\n")
    assert [asked.reason for asked in coordinator.asked("DrainNode")] == ["upgrade"]
    pod = "-l app.kubernetes.io/name=holdfast,app.kubernetes.io/component=agent --field-selector spec.nodeName=n1"
    _, delete, _, uncordon = done.stdout.splitlines()
    assert delete.strip() == f"kubectl -n holdfast delete pod {pod}"
    assert uncordon.strip() == "holdfast node uncordon n1"


def test_an_upgrade_is_not_begun_on_a_node_that_was_taken_back(coordinator, holdfast, monkeypatch):
    monkeypatch.setattr(node_module, "LOOK_EVERY_S", 0.01)
    coordinator.node_changes = [DRAINING, node()]
    done = holdfast("node", "drain", "n1", "--for-upgrade", "--reason", "kernel")
    assert done.exit_code == EXIT.FAILED
    assert "node n1 is not drained any more" in done.stderr
    assert done.stdout == ""
    assert [asked.reason for asked in coordinator.asked("DrainNode")] == ["kernel"]


def test_a_deadline_that_is_none(coordinator, holdfast):
    done = holdfast("node", "drain", "n1", "--deadline", "soon")
    assert done.exit_code == EXIT.USAGE
    assert "is no duration; write e.g." in done.stderr


def test_forget(coordinator, holdfast):
    coordinator.nodes = [node()]
    done = holdfast("node", "forget", "n1")
    assert done.exit_code == EXIT.FAILED
    assert "node n1 is ready, not lost" in done.stderr
    coordinator.nodes[0].state = node_pb2.NODE_STATE_LOST
    done = holdfast("node", "forget", "n1")
    assert (done.exit_code, done.stdout, done.stderr) == (EXIT.OK, "", "n1 forgotten\n")
    assert coordinator.nodes == []


@pytest.mark.parametrize("command", ["get", "cordon", "uncordon", "drain", "forget"])
def test_a_node_that_is_unknown(coordinator, holdfast, command):
    done = holdfast("node", command, "n9")
    assert done.exit_code == EXIT.NOT_FOUND
    assert "there is no node n9" in done.stderr
