"""What stands before every route: names that we are served by, origins, sizes, and what browsers are told.

Whoever may create jobs may run commands on every node, and a gateway on loopback is open to every page in a browser on
the same machine: to one that sends requests here (so Origin is checked), and to one whose own name has come to mean
127.0.0.1 (so Host is).
"""

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from holdfast_gateway.problems import problem

MOST_BODY_BYTES = 2**20
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
TOO_LARGE = "the body is larger than a mebibyte"
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_METHODS = "GET, POST, DELETE"
_ASKED_HEADERS = "Content-Type, Idempotency-Key, Last-Event-ID, Cache-Control"


class Guard:
    """Refuses what must not come through, and answers the questions of browsers about other origins."""

    def __init__(self, app: ASGIApp, host_names: frozenset[str], cors_origins: frozenset[str]) -> None:
        self._app = app
        self._hosts = LOOPBACK_NAMES | {name.lower() for name in host_names}
        self._origins = cors_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        foreign = origin is not None and not _same(origin, headers.get("host", ""))
        reply = _marked(send, origin if foreign else None)
        refused = self._refusal(scope, headers, origin if foreign else None)
        if refused is not None:
            # The origin is not to be told that it may read this.
            await problem(*refused)(scope, receive, _marked(send, None))
        elif foreign and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await _preflight(reply)
        else:
            await self._app(scope, _bounded(receive), reply)

    def _refusal(self, scope: Scope, headers: Headers, foreign: str | None) -> tuple[int, str] | None:
        """Status and reason; None when it may pass."""
        host = _host_name(headers.get("host", ""))
        if host not in self._hosts:
            return 421, f'this gateway is not served by the name "{host[:80]}"; add it with --host-name'
        if foreign is not None and foreign not in self._origins:
            return 403, f'pages of "{foreign[:80]}" may not use this gateway; allow them with --cors-origin'
        if foreign is None and scope["method"] not in SAFE and "origin" not in headers:
            site = headers.get("sec-fetch-site", "none")
            if site not in ("none", "same-origin"):
                return 403, "another site may not change anything here"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > MOST_BODY_BYTES:
            return 413, TOO_LARGE
        return None


class TooLargeError(Exception):
    """A body without a length grew too large."""


def _bounded(receive: Receive) -> Receive:
    """Stop reading a body that says no length when it grows too large."""
    size = 0

    async def bounded() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > MOST_BODY_BYTES:
            raise TooLargeError
        return message

    return bounded


def _marked(send: Send, origin: str | None) -> Send:
    """Tell browsers what they may do with an answer."""

    async def marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            headers.add_vary_header("Origin")
            if origin is not None:
                headers["Access-Control-Allow-Origin"] = origin
                headers["Access-Control-Expose-Headers"] = "Location"
            else:
                headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
        await send(message)

    return marked


async def _preflight(send: Send) -> None:
    headers = MutableHeaders(
        {
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Allow-Headers": _ASKED_HEADERS,
            "Access-Control-Max-Age": "600",
        }
    )
    await send({"type": "http.response.start", "status": 204, "headers": headers.raw})
    await send({"type": "http.response.body", "body": b""})


def _host_name(host: str) -> str:
    """The name of a Host header, without its port."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower()


def _same(origin: str, host: str) -> bool:
    """Whether an origin is this server's own; https where a proxy before it speaks that."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()
