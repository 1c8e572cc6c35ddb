"""A gateway before a real fleet: what is answered, what streams promise, and that its pages say so."""

import random
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.gateway.sse import Reader

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]

SCHEMATHESIS = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run"]
SCHEMATHESIS_OPTIONS = [
    *("--phases", "fuzzing", "--max-examples", "1", "--mode", "all", "--no-color"),
    *("--seed", "1", "--generation-deterministic"),
    *("--exclude-path-regex", "/stream$"),  # they do not end
    # What has the right shape may still be refused: which values are possible is the coordinator's to say.
    *("--exclude-checks", "positive_data_acceptance"),
]
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
    """And over the end of the gateway in the middle."""
    stop = served.out / "stop"
    body = {"command": [sys.executable, "-c", WRITER, str(stop)], "world_size": 2}
    status, job = served.call("POST", "/jobs", body)
    assert status == 201
    reader = Reader(served.url, f"/jobs/{job['id']}/logs/stream")
    cut_often(reader, CUTS // 2, 2_000)
    served.fleet.kill("gateway")
    served.start()
    cut_often(reader, CUTS // 2, 2_000)
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
        times = 0
        while not over.wait(IDLE_S) or times <= 50:  # a loaded machine may be through with its cuts before
            times += 1
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


def sh(text):
    """The programs of a page for a shell."""
    return re.findall(r"```sh\n(.*?)```", text, re.DOTALL)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not on this machine")
def test_the_programs_on_the_page_run(served, tmp_path):
    programs = sh((ROOT / "docs/gateway.md").read_text())
    assert len(programs) == 3
    page = "\n".join(programs)
    assert page.count("curl") > 12
    script = page.replace("http://127.0.0.1:8080", served.url).replace("gpu-1", "node-a")
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "event: line" in done.stdout
    assert "event: end" in done.stdout
    assert '"title": "There is no such thing"' in done.stdout


def test_a_job_of_nothing_but_a_size_trains(served):
    status, job = served.call("POST", "/jobs", b'{"world_size": 2}')
    assert (status, job["spec"]["name"], job["spec"]["restart"]["scope"]) == (
        201,
        "digits",
        "RESTART_SCOPE_RANK",
    )
    path = f"/jobs/{job['id']}"
    served.until(f"{path}/summary", lambda summary: int(summary.get("steps", 0)) > 0)
    assert len(served.get(path)["workers"]) == 2
    assert [found["id"] for found in served.get("/jobs?name=digits&state=running")["jobs"]][:1] == [job["id"]]
    assert served.call("DELETE", path)[0] == 409
    assert served.call("DELETE", f"{path}?force=true")[0] == 400
    assert served.call("DELETE", f"{path}?stop_first=true&force=true")[0] == 204
    assert served.call("GET", path)[0] == 404


def test_a_job_in_yaml_is_the_job(served):
    body = b"name: hello\ncommand: [echo, hello]\nworld_size: 2\nenv: {VERSION: 1.10}\n"
    status, job = served.call("POST", "/jobs", body, Content_Type="application/yaml", Idempotency_Key="one")
    assert (status, job["spec"]["env"]) == (201, {"VERSION": "1.10"})
    again = served.call("POST", "/jobs", body, Content_Type="application/yaml", Idempotency_Key="one")
    assert again[1]["id"] == job["id"]
    path = f"/jobs/{job['id']}"
    served.until(path, lambda found: found["state"] == "JOB_STATE_SUCCEEDED")
    assert sorted(served.get(f"{path}/logs").splitlines()) == ["[0] hello", "[1] hello"]
    assert served.get(f"{path}/logs?rank=1") == "[1] hello\n"
    assert served.call("POST", f"{path}/restart")[0] == 409
    assert served.get(f"{path}/metrics")["series"] is not None
    plan = served.call("POST", "/jobs/plan", {"command": ["true"], "world_size": 3})
    assert plan[0] == 200, plan
    purge = {"older_than": "0s", "status": ["succeeded"], "name": "hel*"}
    assert [j["id"] for j in served.call("POST", "/jobs/purge", {**purge, "dry_run": True})[1]["jobs"]] == [
        job["id"]
    ]
    assert served.get(path)["id"] == job["id"]
    assert [j["id"] for j in served.call("POST", "/jobs/purge", purge)[1]["jobs"]] == [job["id"]]
    assert served.call("GET", path)[0] == 404


def test_what_the_coordinator_refuses_names_the_field(served):
    status, found = served.call("POST", "/jobs", {"command": ["true"], "world_size": 0})
    assert status == 400
    assert found["violations"][0]["field"] == "world_size"
    assert found["type"] == "urn:holdfast:problem:invalid-argument"


def test_its_figures_are_prometheus(served):
    served.get("/nodes")
    families = {family.name: family for family in text_string_to_metric_families(served.get("/metrics"))}
    requests = families["holdfast_gateway_requests"]
    assert any(sample.labels["route"] == "/nodes" for sample in requests.samples)
    assert families["holdfast_gateway_request_seconds"].type == "histogram"
    assert {sample.value for sample in families["holdfast_gateway_streams"].samples} <= {0.0}
    page = (ROOT / "docs/gateway.md").read_text()
    ours = {name for name in families if not name.endswith("_created")}
    assert ours == set(re.findall(r"`(holdfast_gateway_\w+?)(?:_total)?`", page))


def test_answers_are_as_described(served, tmp_path):
    """Of a fleet that runs nothing meanwhile: jobs are made up, and some would be the example."""
    assert len(served.get("/openapi.json")["paths"]) > 20
    served.call("POST", "/nodes/node-a/cordon")
    done = subprocess.run(
        [*SCHEMATHESIS, f"{served.url}/openapi.json", *SCHEMATHESIS_OPTIONS],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
