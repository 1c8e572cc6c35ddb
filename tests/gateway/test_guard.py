"""What may come through, by names, origins and sizes; the app behind is a real one, of a coordinator that is away."""

import httpx
import pytest

from holdfast.client import Client
from holdfast_gateway.app import make_app
from holdfast_gateway.config import GatewayConfig, ListenError

OURS = "http://127.0.0.1:8080"


@pytest.fixture
async def asked(tmp_path):
    """Asks a gateway that is also called head, and lets portal.example in."""
    config = GatewayConfig(
        "127.0.0.1:0",
        host_names=frozenset({"head"}),
        cors_origins=frozenset({"https://portal.example"}),
    )
    client = Client(f"unix:{tmp_path}/nobody.sock")
    (tmp_path / "index.html").write_text("<!doctype html>")
    app = httpx.ASGITransport(make_app(config, client, tmp_path))
    async with httpx.AsyncClient(transport=app, base_url=OURS) as found:
        yield found
    await client.close()


@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1", "[::1]:8080", "head:80", "LOCALHOST"])
async def test_it_is_served_by_its_names(asked, host):
    assert (await asked.get("/metrics", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:8080", "10.0.0.1", "", "localhost.evil"]
)
async def test_by_another_name_it_is_not(asked, host):
    answer = await asked.get("/metrics", headers={"Host": host})
    assert answer.status_code == 421
    assert answer.headers["content-type"] == "application/problem+json"
    assert "--host-name" in answer.json()["detail"]


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3000", "http://[", ""])
async def test_pages_of_others_may_not_use_it(asked, method, origin):
    asks = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    answer = await asked.request(method, "/jobs", headers=asks)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


async def test_its_own_pages_may(asked):
    assert (await asked.get("/metrics", headers={"Origin": OURS})).status_code == 200


async def test_those_that_are_allowed_may(asked):
    asks = {"Origin": "https://portal.example", "Access-Control-Request-Method": "POST"}
    preflight = await asked.request("OPTIONS", "/jobs", headers=asks)
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == "https://portal.example"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    answer = await asked.get("/metrics", headers=asks)
    assert answer.headers["access-control-allow-origin"] == "https://portal.example"
    assert "origin" in answer.headers["vary"].lower()


async def test_a_form_of_another_site_changes_nothing(asked):
    answer = await asked.post("/jobs", headers={"Sec-Fetch-Site": "cross-site"}, content=b"{}")
    assert answer.status_code == 403


async def test_bodies_are_bounded(asked):
    async def pieces():
        for _ in range(20):
            yield b" " * 100_000

    assert (await asked.post("/jobs", content=b" " * 2_000_000)).status_code == 413
    assert (await asked.post("/jobs", content=pieces())).status_code == 413


async def test_pages_may_load_nothing_from_elsewhere(asked):
    answer = await asked.get("/")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/../app.py", "/%2e%2e/app.py", "/nothing"])
async def test_what_is_not_there_is_a_problem(asked, path):
    answer = await asked.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        (b'{"world_sise": 4}', "application/json", 'did you mean "world_size"'),
        (b'{"world_size": 4, "world_size": 5}', "application/json", "twice"),
        (b'{"world_size": NaN}', "application/json", "no number"),
        (b'{"name": "\\ud800"}', "application/json", "surrogate"),
        (b"[" * 100_000, "application/json", "not JSON"),
        (b"[]", "application/json", "no object"),
        (b"world_size: [", "application/yaml", "not YAML"),
        (b"\xff", "application/yaml", "UTF-8"),
        (b"{}", "text/plain", "application/json"),
    ],
)
async def test_a_job_that_cant_be_is_refused(asked, content, kind, said):
    answer = await asked.post("/jobs", content=content, headers={"Content-Type": kind})
    assert answer.status_code == 400, answer.text
    assert said in answer.text.replace('\\"', '"')


async def test_violations_name_their_fields(asked):
    answer = await asked.post("/jobs", json={"restart": {"budget": "many"}, "nam": "x"})
    assert {found["field"] for found in answer.json()["violations"]} == {"restart.budget", "nam"}


async def test_what_no_route_knows_is_refused(asked):
    answer = await asked.get("/jobs?stat=failed")
    assert answer.status_code == 400
    assert answer.json()["violations"][0]["field"] == "stat"


def test_beyond_loopback_it_has_to_be_said():
    with pytest.raises(ListenError, match="--insecure"):
        GatewayConfig("0.0.0.0:8080").address()
    assert GatewayConfig("0.0.0.0:8080", insecure=True).address() == ("0.0.0.0", 8080)
    assert GatewayConfig("[::1]:1").address() == ("::1", 1)
    for wrong in ("8080", "localhost", "localhost:x", ":80", "localhost:70000"):
        with pytest.raises(ListenError, match="no address"):
            GatewayConfig(wrong).address()
