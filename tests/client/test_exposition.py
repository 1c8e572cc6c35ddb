"""The HTTP end of metrics, and the check that all of them are held to."""

import asyncio

import pytest

from holdfast.exposition import AddressError, Described, MetricsServer, read_address, render
from holdfast.measures import Histogram
from tests import promtool
from tests.ports import free_port

PATIENCE = 60


async def sample():
    return [(Described("holdfast_things", "gauge", "Things.", ("kind",)), {('a "b"\n\\c',): 1.5})]


@pytest.fixture
async def server():
    found = MetricsServer(sample)
    found.address = await found.start("0")
    yield found
    await found.stop()


async def ask(server, request):
    """What comes back, until the server hangs up."""
    host, _, port = server.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    async with asyncio.timeout(PATIENCE):
        writer.write(request)
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.decode().partition("\r\n\r\n")
    return head, body


async def test_a_scrape(server):
    head, body = await ask(server, b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=")
    assert f"Content-Length: {len(body.encode())}" in head
    families = promtool.check(body)
    (one,) = families["holdfast_things"].samples
    assert (one.labels, one.value) == ({"kind": 'a "b"\n\\c'}, 1.5)
    assert "process_cpu_seconds_total" in families


async def test_whoever_asks_for_something_else(server):
    head, body = await ask(server, b"HEAD /metrics HTTP/1.1\r\n\r\n")
    assert (head.splitlines()[0], body) == ("HTTP/1.1 200 OK", "")
    head, _ = await ask(server, b"GET / HTTP/1.1\r\n\r\n")
    assert head.startswith("HTTP/1.1 404")
    head, _ = await ask(server, b"POST /metrics HTTP/1.1\r\n\r\n")
    assert head.startswith("HTTP/1.1 405")
    assert await ask(server, b"x" * 100_000) == ("", "")


async def test_who_never_asks_holds_nobody_up(server):
    host, _, port = server.address.rpartition(":")
    _, silent = await asyncio.open_connection(host, int(port))
    head, _ = await ask(server, b"GET /metrics HTTP/1.1\r\n\r\n")
    assert head.startswith("HTTP/1.1 200")
    await server.stop()  # nor up the end
    silent.close()


async def test_an_address_that_can_not_be():
    assert read_address("9464") == ("127.0.0.1", 9464)
    assert read_address(":9464") == ("127.0.0.1", 9464)
    assert read_address("[::1]:9464") == ("::1", 9464)
    for text in ("", "nonsense", "127.0.0.1:", "127.0.0.1:70000"):
        with pytest.raises(AddressError, match="write host:port, or a port alone"):
            read_address(text)
    port = free_port()
    first, second = MetricsServer(sample), MetricsServer(sample)
    await first.start(str(port))
    with pytest.raises(AddressError, match="choose another address with --metrics"):
        await second.start(str(port))
    await first.stop()


def test_a_histogram():
    found = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 7.0):
        found.observe(value)
    text = render([(Described("holdfast_x_seconds", "histogram", "X."), found)]).decode()
    family = promtool.check(text)["holdfast_x_seconds"]
    assert [(s.labels.get("le"), s.value) for s in family.samples] == [
        ("1.0", 2),
        ("2.0", 3),
        ("+Inf", 4),
        (None, 4),
        (None, 10.0),
    ]


@pytest.mark.parametrize(
    "described",
    [
        Described("holdfast_x_ms", "gauge", "X."),
        Described("holdfast_seconds_x", "gauge", "X."),
        Described("x_seconds", "gauge", "X."),
        Described("holdfast_x", "gauge", ""),
        Described("holdfast_x_total", "gauge", "X."),
        Described("holdfast_X", "gauge", "X."),
    ],
    ids=lambda described: described.name,
)
def test_the_check_finds_what_is_wrong(described):
    with pytest.raises(AssertionError):
        promtool.check(render([(described, 1.0)]).decode())


def test_the_check_finds_labels_that_prometheus_sets_itself():
    with pytest.raises(AssertionError, match="sets itself"):
        promtool.check(render([(Described("holdfast_x", "gauge", "X.", ("job",)), {("a",): 1.0})]).decode())
