"""What streams promise: no gap and no repeat, however often and wherever they are cut."""

import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from tests.gateway.sse import Reader

pytestmark = pytest.mark.e2e

CUTS = 250
IDLE_S = 0.005
"""A connection on which nothing comes for so long is cut, too."""
WRITER = """
import os, sys, time
n = 0
while True:
    over = os.path.exists(sys.argv[1])
    for _ in range(3):
        for out in (sys.stdout, sys.stderr):
            print(os.environ["RANK"], out is sys.stderr, n, "é" * (n % 7), file=out)
        n += 1
    sys.stdout.flush()
    if over:
        break
    time.sleep(0.02)
"""


def cut_often(reader, cuts, most):
    """Connect so often, and read a random number of bytes of each connection, or what there is."""
    dice = random.Random(1)
    for _ in range(cuts):
        response = reader.connect()
        assert response.status == 200, response.read()
        reader.connection.sock.settimeout(IDLE_S)
        left = dice.randrange(most)
        with suppress(TimeoutError):
            while left > 0 and (data := response.read1(left)):
                reader.feed(data)
                left -= len(data)
        reader.cut()


def test_every_line_comes_once_over_hundreds_of_connections(served):
    stop = served.out / "stop"
    body = {"command": [sys.executable, "-c", WRITER, str(stop)], "world_size": 2}
    status, job = served.call("POST", "/jobs", body)
    assert status == 201
    reader = Reader(served.url, f"/jobs/{job['id']}/logs/stream")
    cut_often(reader, CUTS, 2_000)
    stop.touch()
    reader.read_until(lambda event: event.name == "end")
    for rank in (0, 1):
        for stream in ("stdout", "stderr"):
            lines = [
                event.data["text"]
                for event in reader.events
                if event.name == "line" and (event.data["rank"], event.data["stream"]) == (rank, stream)
            ]
            wanted = [f"{rank} {stream == 'stderr'} {n} {'é' * (n % 7)}" for n in range(len(lines))]
            assert lines == wanted
            assert len(lines) > 200
    assert reader.connect().status == 204  # there is nothing more, and a browser stops asking
    reader.cut()


def test_every_event_comes_once_over_hundreds_of_connections(served):
    over = threading.Event()

    def happen():
        while not over.wait(IDLE_S):
            served.call("POST", "/nodes/node-a/cordon")
            served.call("POST", "/nodes/node-a/uncordon")

    reader = Reader(served.url, "/events/stream")
    with ThreadPoolExecutor(1) as pool:
        happening = pool.submit(happen)
        cut_often(reader, CUTS, 1_200)
        over.set()
        happening.result()
    events, token = [], ""
    while True:
        found = served.get(f"/events?page_size=100&page_token={token}")
        events += found["events"]
        token = found["next_page_token"]
        if not token:
            break
    last = events[-1]["seq"]
    if reader.last_id != last:
        reader.read_until(lambda event: event.id == last)
    assert [event.data for event in reader.events] == events
    assert [event.id for event in reader.events] == [event["seq"] for event in events]
    assert len(events) > 100


def test_a_timeline_begins_where_it_is_asked_to(served):
    served.call("POST", "/nodes/node-a/cordon")
    served.call("POST", "/nodes/node-a/uncordon")
    events = served.get("/events?page_size=1000")["events"]
    last = events[-1]["seq"]
    three = Reader(served.url, "/events/stream?tail=3").read_until(lambda event: event.id == last)
    assert [event.data for event in three] == events[-3:]
    after = Reader(served.url, f"/events/stream?after={events[1]['seq']}").read_until(
        lambda event: event.id == last
    )
    assert [event.data for event in after] == events[2:]


def test_jobs_and_nodes_are_told_as_they_change(served):
    nodes = Reader(served.url, "/nodes/stream").read_until(lambda event: event.name == "ready")
    assert [(event.name, event.data.get("name")) for event in nodes] == [("node", "node-a"), ("ready", None)]
    _, job = served.call("POST", "/jobs", {"command": ["true"], "name": "short"})
    jobs = Reader(served.url, "/jobs/stream")

    def over(event):
        return (
            event.name == "job"
            and event.data["id"] == job["id"]
            and event.data["state"].endswith("SUCCEEDED")
        )

    jobs.read_until(over)
    assert all(event.data["workers"] == [] for event in jobs.events if event.name == "job")
    one = Reader(served.url, f"/jobs/{job['id']}/stream").read_until(lambda event: event.name == "end")
    assert [len(event.data["workers"]) for event in one if event.name == "job"] == [1]
    assert one[-1].data == {
        "job_id": job["id"],
        "state": "JOB_STATE_SUCCEEDED",
        "reason": "every rank exited with code 0",
    }
