import asyncio
import json
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.fleet import PATIENCE_S, Fleet
from tests.ports import free_port


class Served:
    """A real fleet with a gateway before it."""

    def __init__(self, fleet: Fleet, address: str) -> None:
        self.fleet = fleet
        self.address = address
        self.url = f"http://{address}"
        self.out: Path = fleet.out

    def call(self, method: str, path: str, body: object = None, **headers: str):
        """Status and body of the answer; JSON is read."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, data, named, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, _read(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _read(error)

    def get(self, path: str):
        status, found = self.call("GET", path)
        assert status == 200, found
        return found

    def start(self) -> None:
        """Start the gateway, and wait until it answers."""
        self.fleet.start_gateway(self.address)
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.call("GET", "/health")
            except OSError:
                assert time.monotonic() < until, (self.fleet.root / "gateway.log").read_text()
                time.sleep(0.05)
            else:
                return

    def until(self, path: str, condition):
        """Ask until the answer is as wanted."""
        until = time.monotonic() + PATIENCE_S
        while not condition(found := self.get(path)):
            assert time.monotonic() < until, f"it never came to that: {found}"
            time.sleep(0.05)
        return found


def _read(answer):
    content = answer.read()
    return json.loads(content) if "json" in answer.headers.get("Content-Type", "") else content.decode()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Coordinator, agent and gateway, for all tests of a module."""
    fleet = Fleet(tmp_path_factory.mktemp("gateway"))
    fleet.start_coordinator()
    fleet.start_agent()
    try:
        found = Served(fleet, f"127.0.0.1:{free_port()}")
        found.start()
        found.until("/nodes", lambda nodes: len(nodes["nodes"]) == 1)
        yield found
    finally:
        asyncio.run(_close(fleet))


async def _close(fleet):
    await fleet.open()
    await fleet.close()
