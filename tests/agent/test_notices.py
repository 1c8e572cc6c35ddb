"""Notices of a machine that is about to go away: files, metadata servers, and what they say."""

import asyncio
import json
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from holdfast_agent.notices import Found, NoticeFile, NoticeUrl, read_notice, watch

NOW = datetime(2017, 9, 18, 8, 20, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"action": "terminate", "time": "2017-09-18T08:22:00Z"}', Found("spot notice: terminate", 120)),
        ('{"action": "stop", "time": "2017-09-18T08:19:00Z"}', Found("spot notice: stop", -60)),
        ('{"action": "hibernate"}', Found("spot notice: hibernate")),
        ('{"time": "2017-09-18T08:22:00"}', Found("spot notice: terminate", 120)),
        ('{"time": 5, "action": 6}', Found("spot notice: terminate")),
        ("TRUE", Found("spot notice: preempted")),
        ("FALSE\n", None),
        ("", None),
        ('{"DocumentIncarnation": 1, "Events": []}', None),
        ('{"Events": [{"EventType": "Reboot", "NotBefore": ""}]}', None),
        (
            '{"Events": ["x", {"EventType": "Preempt", "NotBefore": "Mon, 18 Sep 2017 08:20:30 GMT"}]}',
            Found("spot notice: preempt", 30),
        ),
        ("rack 7 loses power\nat noon", Found("spot notice: rack 7 loses power")),
        ("a\x1b[2Jb", Found("spot notice: a [2Jb")),
        ("[1, 2]", Found("spot notice: [1, 2]")),
    ],
)
def test_what_is_said(text, found):
    assert read_notice(text, NOW) == found


def test_a_file_is_a_notice_when_it_is_there(tmp_path):
    watcher = NoticeFile(tmp_path / "notice", 120)
    assert watcher.look() is None
    watcher.path.touch()
    assert watcher.look() == Found(f"notice: {watcher.path}")
    watcher.path.write_text("maintenance\n")
    assert watcher.look() == Found("spot notice: maintenance")


class Metadata(BaseHTTPRequestHandler):
    """A metadata server: `server.says` is status and body."""

    def do_GET(self):
        self.server.asked.append(dict(self.headers))
        status, body = self.server.says
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def metadata():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    server.says, server.asked = (404, b""), []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def url(server):
    return f"http://127.0.0.1:{server.server_port}/latest/meta-data/spot/instance-action"


def test_an_address_is_a_notice_when_it_no_longer_says_404(metadata, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # a machine's metadata is behind no proxy
    watcher = NoticeUrl(url(metadata), 120, {"Metadata-Flavor": "Google"})
    assert watcher.look() is None
    metadata.says = 200, b"TRUE"
    assert watcher.look() == Found("spot notice: preempted")
    assert metadata.asked[0]["Metadata-Flavor"] == "Google"
    metadata.says = 500, b"oops"
    with pytest.raises(OSError, match="it answers 500"):
        watcher.look()


async def test_it_is_looked_at_until_there_is_one_whatever_fails_meanwhile(metadata):
    told = []
    loop = asyncio.get_running_loop()
    metadata.says = 500, b""
    watching = asyncio.create_task(watch(NoticeUrl(url(metadata), 50), told.append, every_s=0.01))
    while len(metadata.asked) < 3:
        await asyncio.sleep(0.01)
    assert told == []
    until = datetime.now(UTC).timestamp() + 1_000
    at = datetime.fromtimestamp(until, UTC).isoformat()
    metadata.says = 200, json.dumps({"action": "terminate", "time": at}).encode()
    await watching
    (notice,) = told
    assert notice.reason == "spot notice: terminate"
    assert 900 < notice.until - loop.time() <= 1_000


async def test_without_a_time_there_is_the_default(tmp_path):
    told = []
    (tmp_path / "notice").touch()
    await watch(NoticeFile(tmp_path / "notice", 7_000), told.append)
    left = told[0].until - asyncio.get_running_loop().time()
    assert 6_900 < left <= 7_000


async def test_a_server_that_is_not_there_is_no_notice(metadata):
    gone = url(metadata)
    metadata.shutdown()
    metadata.server_close()
    with pytest.raises(OSError):
        NoticeUrl(gone, 1).look()
