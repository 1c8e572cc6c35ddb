"""One trace from the command that creates a job to the commits of its workers, at a collector that takes OTLP."""

import asyncio
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.e2e.fleet import HOLDFAST

pytestmark = pytest.mark.e2e

AROUND = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
"""The trace that whoever submits is in."""


class Collector(ThreadingHTTPServer):
    """Keeps what it is sent: name of the service, and span."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.spans = []
        threading.Thread(target=self.serve_forever).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = {each.key: each.value.string_value for each in resource.resource.attributes}
            spans = [span for scope in resource.scope_spans for span in scope.spans]
            self.server.spans += [(about["service.name"], span) for span in spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def collector(monkeypatch):
    server = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.address)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
    yield server
    server.shutdown()
    server.server_close()


async def submit(fleet, steps=50):
    await fleet.node_until("node-a", lambda node: True)
    (fleet.root / "job.yaml").write_text(fleet.job_file(world=2, steps=steps))
    command = [HOLDFAST, "job", "submit", "--server", fleet.target, "-f", str(fleet.root / "job.yaml")]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=-1, stderr=-1, env={**os.environ, "TRACEPARENT": AROUND}
    )
    out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return out.decode().strip(), errors.decode()


async def test_from_the_command_to_the_commits_of_its_workers(collector, fleet):
    job_id, _ = await submit(fleet)
    await fleet.succeeded(job_id)

    def told():
        return {(service, span.name) for service, span in collector.spans}

    wanted = {
        ("holdfast-cli", "create job"),
        ("holdfast-coordinator", "CreateJob"),
        ("holdfast-agent", "start worker"),
        ("holdfast-coordinator", "commit checkpoint"),
        ("holdfast-agent", "commit of a worker"),
    }
    async with asyncio.timeout(60):
        while not wanted <= told():
            await asyncio.sleep(0.05)
    ours = [(service, span) for service, span in collector.spans if (service, span.name) in wanted]
    assert {span.trace_id.hex() for _, span in ours} == {AROUND.split("-")[1]}
    (root,) = (span for _, span in ours if span.name == "create job")
    assert root.parent_span_id.hex() == AROUND.split("-")[2]
    assert {span.parent_span_id for _, span in ours if span is not root} == {root.span_id}
    for _, span in ours:
        assert (
            root.start_time_unix_nano <= span.start_time_unix_nano + 10**9
        )  # coordinator's clock is carried on
        assert span.start_time_unix_nano <= span.end_time_unix_nano
    lines = [
        json.loads(line)
        for line in (fleet.root / "coordinator.log").read_text().splitlines()
        if line[0] == "{"
    ]
    about = [line for line in lines if line.get("job") == job_id]
    assert about
    assert {line["trace"] for line in about} == {AROUND.split("-")[1]}


async def test_a_collector_that_is_away_keeps_nobody_from_anything(collector, fleet):
    collector.shutdown()
    collector.server_close()
    job_id, errors = await submit(fleet, steps=20)
    assert errors.startswith("no traces are sent: ")
    assert errors.count("\n") == 1
    await fleet.succeeded(job_id)
