"""What coordinator and agent log, and that it never gets in their way."""

import io
import json

import pytest
import structlog

from holdfast.cli.common import set_up_logs


@pytest.fixture(autouse=True)
def _forget_it_afterwards():
    yield
    structlog.reset_defaults()


def test_a_log_is_a_json_object_a_line():
    into = io.StringIO()
    set_up_logs(into)
    structlog.get_logger().info("listening", address="127.0.0.1:7070")
    line = json.loads(into.getvalue())
    assert (line["event"], line["level"], line["address"]) == ("listening", "info", "127.0.0.1:7070")


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
