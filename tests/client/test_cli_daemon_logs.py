"""What coordinator and agent log, and that it never gets in their way."""

import io
import json
import re

import pytest
import structlog

from holdfast import log_fields
from holdfast.cli.common import set_up_logs
from holdfast_agent.core import Key


@pytest.fixture(autouse=True)
def _forget_it_afterwards(monkeypatch):
    monkeypatch.setattr(log_fields, "_carried", {})
    yield
    structlog.reset_defaults()


def test_a_log_is_a_json_object_a_line():
    into = io.StringIO()
    set_up_logs(into)
    structlog.get_logger().info("listening", address="127.0.0.1:7070")
    line = json.loads(into.getvalue())
    assert (line["event"], line["level"], line["address"]) == ("listening", "info", "127.0.0.1:7070")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_it_is_for_people(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    into = Terminal()
    set_up_logs(into)
    structlog.get_logger().warning("hangs", worker=Key("c7mk2xq9pd", 3, 2))
    assert re.search(r"\[warning *\] hangs .*attempt=2 job=c7mk2xq9pd rank=3\n$", into.getvalue())


def test_a_line_names_its_worker_and_its_leader():
    into = io.StringIO()
    set_up_logs(into)
    log = structlog.get_logger()
    log_fields.carry(epoch=4, node="a")
    log.info("hangs", worker=Key("c7mk2xq9pd", 3, 2))
    log_fields.carry(epoch=5)
    log.info("NodeLost", node="b")
    first, second = map(json.loads, into.getvalue().splitlines())
    assert (first["job"], first["rank"], first["attempt"], first["epoch"]) == ("c7mk2xq9pd", 3, 2, 4)
    assert "worker" not in first
    assert (second["epoch"], second["node"]) == (5, "b")


def test_what_was_raised_is_in_its_line():
    into = io.StringIO()
    set_up_logs(into)
    try:
        raise ValueError("nonsense")
    except ValueError:
        structlog.get_logger().exception("a message could not be sent")
    (line,) = map(json.loads, into.getvalue().splitlines())
    assert line["exception"].endswith("ValueError: nonsense")
    assert "Traceback" in line["exception"]


def test_a_full_disk_ends_nobody():
    with open("/dev/full", "wb", buffering=0) as full, io.TextIOWrapper(full, write_through=True) as into:
        set_up_logs(into)
        structlog.get_logger().info("listening")


def test_errors_are_told_once_for_each_cause():
    told = []
    set_up_logs(io.StringIO(), tell=told.append)
    log = structlog.get_logger()
    log.info("fine", error="not at all")
    for _ in range(3):
        log.error("store failed", error="no room")
    log.error("store failed", error="broken")
    assert told == ["store failed: no room", "store failed: broken"]
