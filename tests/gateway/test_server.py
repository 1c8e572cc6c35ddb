import asyncio
import socket

import pytest
from click.testing import CliRunner

from holdfast.cli.coordinator import command as coordinator
from holdfast.cli.gateway import command as gateway
from holdfast_gateway.config import GatewayConfig, ListenError
from holdfast_gateway.server import Gateway


@pytest.fixture
async def served(tmp_path):
    """A gateway in this process, of a coordinator that is away."""
    found = Gateway(GatewayConfig("127.0.0.1:0", server=f"unix:{tmp_path}/nobody.sock"))
    url = await found.start()
    yield found, url.removeprefix("http://")
    await found.stop()


async def test_answers_are_not_held_back(served, monkeypatch):
    """By Nagle's algorithm, which an answer in two pieces would wait for."""
    _, netloc = served
    host, port = netloc.split(":")
    switched = []
    accept = socket.socket.setsockopt

    def note(self, *option):
        switched.append(option[:2])
        accept(self, *option)

    monkeypatch.setattr(socket.socket, "setsockopt", note)
    with socket.create_connection((host, int(port))) as plain:  # which sets nothing itself
        plain.sendall(f"GET /metrics HTTP/1.1\r\nHost: {netloc}\r\nConnection: close\r\n\r\n".encode())
        assert b"200" in await asyncio.to_thread(plain.recv, 100)
    assert (socket.IPPROTO_TCP, socket.TCP_NODELAY) in switched


async def test_a_second_one_is_told_that_the_address_is_taken(served):
    _, netloc = served
    with pytest.raises(ListenError, match="is another gateway running there"):
        await Gateway(GatewayConfig(netloc)).start()


@pytest.mark.parametrize(
    ("command", "option"), [(gateway, "--listen"), (coordinator, "--http")], ids=["gateway", "coordinator"]
)
def test_beyond_loopback_is_refused_by_the_command(command, option, tmp_path):
    more = ["--state-dir", str(tmp_path)] if command is coordinator else []
    done = CliRunner().invoke(command, [option, "0.0.0.0:0", *more])
    assert done.exit_code == 1
    assert "--insecure" in done.output
