"""Without a collector nothing is sent and nothing is imported; the context that came is passed on."""

import subprocess
import sys

import pytest
from opentelemetry.sdk.trace import TracerProvider

from holdfast import log_fields, tracing

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def no_collector(monkeypatch):
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raising=False)


def test_the_context_that_came_is_passed_on():
    told = []
    tracing.start("test", told.append)
    assert not tracing.on()
    with tracing.span("anything", PARENT, job="j1") as context:
        assert context == PARENT
    tracing.tell("anything", PARENT, 0)
    assert told == []


def test_a_program_that_is_traced_already_goes_on_in_its_own_trace():
    with (
        TracerProvider(shutdown_on_exit=False)
        .get_tracer("program")
        .start_as_current_span("evaluate") as around,
        tracing.span("create job") as context,
    ):
        assert tracing.trace_id(context) == f"{around.get_span_context().trace_id:032x}"
    with tracing.span("create job") as context:
        assert context == ""


def test_nothing_slow_is_imported():
    program = "import sys; from holdfast.tracing import start; start('x', print); print('opentelemetry' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_without_the_extra_that_is_said(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    told = []
    tracing.start("test", told.append)
    (why,) = told
    assert why.startswith("no traces are sent: opentelemetry")
    assert why.endswith("is not installed: pip install 'holdfast[otel]'")
    assert not tracing.on()


@pytest.mark.parametrize("context", ["", "x", "00-short-b7ad6b7169203331-01", "00-0af7"])
def test_what_is_no_context_is_of_no_trace(context):
    assert tracing.trace_id(context) == ""


def test_lines_about_a_job_name_its_trace():
    log_fields.note_trace("a-traced-job", {"TRACEPARENT": PARENT})
    log_fields.note_trace("another-job", {})
    assert log_fields.add_trace(None, "", {"job": "a-traced-job"})["trace"] == PARENT.split("-")[1]
    assert log_fields.add_trace(None, "", {"job": "another-job"}) == {"job": "another-job"}
    assert log_fields.add_trace(None, "", {"event": "x"}) == {"event": "x"}
