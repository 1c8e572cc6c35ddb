"""A proxy before an S3 server that makes of its answers what networks, overload and old servers make of them."""

import contextlib
import http.client
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from tests.ports import free_port

ERROR = '<?xml version="1.0"?><Error><Code>{0}</Code><Message>{0}, says the test</Message></Error>'


class Request(NamedTuple):
    method: str
    path: str
    query: dict[str, list[str]]
    headers: Any
    body: bytes

    @property
    def is_conditional(self):
        return "If-Match" in self.headers or "If-None-Match" in self.headers

    @property
    def what(self):
        """The operation: of those that S3 tells from one another by the query, what holdfast uses."""
        for word, name in (
            ("uploads", "uploads"),
            ("uploadId", "upload"),
            ("delete", "delete"),
            ("list-type", "list"),
        ):
            if word in self.query:
                return f"{self.method} {name}"
        return self.method


class Fault(NamedTuple):
    """What to do with requests. `act` gets the handler, the request and the answer that forwarding would give."""

    chosen: Callable[[Request], bool]
    act: Callable[[Any, Request], None]


class FaultProxy:
    """Listens on a port of loopback, and forwards what no fault is waiting for."""

    def __init__(self, upstream):
        self.upstream = upstream
        self.requests = []
        self.closing = threading.Event()
        self._faults = []
        self._lock = threading.Lock()
        self._start(free_port())

    def _start(self, port):
        self.closing.clear()
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.proxy = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def stop(self):
        """Refuse connections."""
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        for connection in self._server.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def start_again(self):
        self._start(self._server.server_address[1])

    def fail(self, act, chosen=lambda request: True, times=None, after=0):
        """Have the requests that are chosen, but for the first of them, go wrong so often; always without `times`."""
        self._faults.append([Fault(chosen, act), after, times])

    def heal(self):
        """Let everything through."""
        self._faults.clear()

    def counted(self, what):
        return sum(request.what == what for request in self.requests)

    def fault_for(self, request):
        with self._lock:
            self.requests.append(request)
            for waiting in self._faults:
                fault, after, times = waiting
                if not fault.chosen(request) or times == 0:
                    continue
                if after:
                    waiting[1] -= 1
                    continue
                if times is not None:
                    waiting[2] -= 1
                return fault
        return None


def answers(status, code):
    """Says that it did not work, and has not passed it on."""

    def act(handler, request):
        handler.reply(status, {"Content-Type": "application/xml"}, ERROR.format(code).encode())

    return act


def claims(status=200, **headers):
    """Says that it worked, and has not passed it on."""

    def act(handler, request):
        handler.reply(status, headers, b"")

    return act


def is_cut_off(handler, request):
    """The connection is closed; nothing was passed on."""
    handler.cut()


def loses_the_answer(handler, request):
    """It was done, and nobody hears of it."""
    handler.forward(request)
    handler.cut()


def hangs(handler, request):
    """It is neither done nor answered."""
    handler.server.proxy.closing.wait()
    handler.cut()


def hangs_after(handler, request):
    """It was done; the answer does not come."""
    handler.forward(request)
    hangs(handler, request)


def gives_only(size):
    """The answer breaks off after so many bytes of its body."""

    def act(handler, request):
        status, headers, body = handler.forward(request)
        handler.reply(status, headers, body[:size], length=len(body))
        handler.cut()

    return act


def without(*names):
    """Passes it on without these headers: so does a server that does not know them."""

    def act(handler, request):
        headers = {name: value for name, value in request.headers.items() if name.lower() not in names}
        handler.reply(*handler.forward(request._replace(headers=headers)))

    return act


def then(run, lose=False):
    """Passes it on; `run` does something else before the answer is given, or lost."""

    def act(handler, request):
        answer = handler.forward(request)
        run()
        if lose:
            handler.cut()
        else:
            handler.reply(*answer)

    return act


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *args):
        super().__init__(*args)
        self.connections = []

    def process_request(self, request, client_address):
        self.connections.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request, client_address):
        """Clients hang up as they like."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __getattr__(self, name):
        """Every method is handled alike."""
        if name.startswith("do_"):
            return self.handle_any
        raise AttributeError(name)

    def handle_any(self):
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        query = parse_qs(url.query, keep_blank_values=True)
        request = Request(self.command, self.path, query, self.headers, body)
        fault = self.server.proxy.fault_for(request)
        if fault is None:
            self.reply(*self.forward(request))
        else:
            fault.act(self, request)

    def forward(self, request):
        connection = http.client.HTTPConnection(*self.server.proxy.upstream)
        try:
            connection.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(request.body)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def reply(self, status, headers, body, length=None):
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        if self.command == "HEAD":
            length = headers.get("Content-Length", "0")
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def cut(self):
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *args):
        pass
