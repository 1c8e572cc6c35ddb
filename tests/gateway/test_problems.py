"""Every kind of error has a status of its own meaning, and says what to do."""

import json

import httpx
import pytest

from holdfast import wire
from holdfast_gateway.config import GatewayConfig
from holdfast_gateway.problems import from_error
from holdfast_gateway.server import Gateway


@pytest.mark.parametrize(
    ("kind", "status", "word"),
    [
        (wire.NotFound, 404, "not-found"),
        (wire.AlreadyExists, 409, "already-exists"),
        (wire.FailedPrecondition, 409, "failed-precondition"),
        (wire.ResourceExhausted, 429, "resource-exhausted"),
        (wire.Unreachable, 503, "unavailable"),
        (wire.DeadlineExceeded, 504, "deadline-exceeded"),
        (wire.HoldfastError, 500, "internal"),
    ],
)
def test_errors_of_the_coordinator(kind, status, word):
    answer = from_error(kind("it is so", "do this"))
    body = json.loads(answer.body)
    assert (answer.status_code, answer.media_type) == (status, "application/problem+json")
    assert body["type"] == f"urn:holdfast:problem:{word}"
    assert (body["status"], body["detail"], body["remedy"]) == (status, "it is so", "do this")
    assert ("retry-after" in answer.headers) == (status in (429, 503))


def test_a_request_that_can_not_be_names_its_fields():
    error = wire.InvalidSpec("the job can't be", "", [wire.Violation("world_size", "must be at least 1")])
    body = json.loads(from_error(error).body)
    assert body["violations"] == [{"field": "world_size", "description": "must be at least 1"}]


async def test_a_coordinator_that_is_away_is_503(tmp_path):
    gateway = Gateway(GatewayConfig("127.0.0.1:0", server=f"unix:{tmp_path}/nobody.sock"))
    url = await gateway.start()
    try:
        async with httpx.AsyncClient(base_url=url) as client:
            listed, healthy = await client.get("/jobs"), await client.get("/health")
    finally:
        await gateway.stop()
    assert (listed.status_code, healthy.status_code) == (503, 503)
    assert "nobody.sock" in listed.json()["detail"]
    assert listed.json()["remedy"]
