"""`holdfast health`, of daemons that are real processes, and of what only looks like one."""

import asyncio
import signal
import socket
import threading
from contextlib import contextmanager

import grpc
import pytest

from holdfast.cli.exits import EXIT
from tests.client.scripted import run
from tests.ports import free_port


def test_daemons_that_are_well(served):
    for words in (
        ("coordinator", "--server", served.fleet.target),
        ("coordinator", "--alive", "--server", served.fleet.target),
        ("gateway", "--url", served.url),
        ("agent", "--state-dir", str(served.fleet.root / "node-a")),
    ):
        done = run("health", *words)
        assert (done.exit_code, done.output) == (EXIT.OK, "")


def test_nobody_there(tmp_path):
    nobody = f"127.0.0.1:{free_port()}"
    for words, sentence in (
        (("coordinator", "--server", nobody), f"the coordinator at {nobody} (of --server) is not reachable"),
        (("gateway", "--url", f"http://{nobody}"), f"the gateway at http://{nobody} does not answer"),
        (("agent", "--state-dir", str(tmp_path)), f"no agent minds {tmp_path}: "),
    ):
        done = run("health", *words)
        assert done.exit_code == EXIT.UNREACHABLE
        assert sentence in done.output


def test_an_address_that_is_none():
    done = run("health", "gateway", "--url", "127.0.0.1:8080")
    assert done.exit_code == EXIT.USAGE
    assert "write http://host:port" in done.output


async def test_a_coordinator_that_does_not_serve(tmp_path):
    """As with a full disk, or a standby: it answers, and says so, and is alive."""
    server, target = grpc.aio.server(), f"unix:{tmp_path}/c.sock"

    async def check(request, _context):
        return b"\x08\x01" if b"alive" in request else b"\x08\x02"  # SERVING, NOT_SERVING

    method = grpc.unary_unary_rpc_method_handler(check)
    handler = grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": method})
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(target)
    await server.start()
    done = await asyncio.to_thread(run, "health", "coordinator", "--server", target)
    alive = await asyncio.to_thread(run, "health", "coordinator", "--alive", "--server", target)
    await server.stop(None)
    assert alive.exit_code == EXIT.OK
    assert done.exit_code == EXIT.UNREACHABLE
    assert "does not serve now; see its log" in done.output


@contextmanager
def answering(reply):
    """A server of one connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            link, _ = listening.accept()
            with link:
                link.recv(4096)
                link.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", "answers 500"),
        (b"nonsense\r\n", "does not answer"),
    ],
)
def test_something_else_on_the_gateways_port(reply, sentence):
    with answering(reply) as url:
        done = run("health", "gateway", "--url", url)
    assert done.exit_code == EXIT.UNREACHABLE
    assert sentence in done.output


def test_an_agent_that_stands_still(served, monkeypatch):
    """Its socket takes connections all the same: the kernel does that."""
    monkeypatch.setattr("holdfast.cli.health.WITHIN_S", 0.3)
    served.fleet.signal("node-a", signal.SIGSTOP)
    try:
        done = run("health", "agent", "--state-dir", str(served.fleet.root / "node-a"))
    finally:
        served.fleet.signal("node-a", signal.SIGCONT)
    assert done.exit_code == EXIT.UNREACHABLE
    assert "timed out" in done.output
