"""Notices that the machine is about to go away: a file that appears, or an address that answers.

A Watcher looks once; `watch` asks it again and again until there is a notice, which then stands for as long as this
agent lives. Another kind of notice is another class with a `look`.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol

import structlog

LOOK_EVERY_S = 2.0
URL_TIMEOUT_S = 2.0
LONGEST_NOTICE = 64 * 1024
LONGEST_REASON = 160
_NO_NOTICE = ("", "false", "none", "null")
"""What a metadata server says when there is none, if it does not say 404."""
_GOES_AWAY = ("preempt", "terminate")
"""Of Azure's scheduled events; a reboot or a freeze is none of them."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Notice:
    """The machine is about to go away."""

    reason: str
    until: float
    """By the event loop's clock, in seconds."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a watcher found: why, and in how many seconds, if that is said."""

    reason: str
    seconds: float | None = None


class Watcher(Protocol):
    """Looks for a notice. Called in a thread, so that it may block for a moment."""

    @property
    def default_s(self) -> float:
        """How much time is left when the notice does not say."""

    def look(self) -> Found | None:
        """What there is now; None: nothing. Raises OSError when that can't be known."""


@dataclass(frozen=True, slots=True)
class NoticeFile:
    """A file: it is a notice as soon as it is there, and says more if there is something in it."""

    path: Path
    default_s: float

    def look(self) -> Found | None:
        """Read it. Raises OSError."""
        try:
            with self.path.open("rb") as file:
                text = file.read(LONGEST_NOTICE)
        except FileNotFoundError:
            return None
        said = text.decode(errors="replace")
        return read_notice(said, datetime.now(UTC)) if said.strip() else Found(f"notice: {self.path}")


@dataclass(frozen=True, slots=True)
class NoticeUrl:
    """An address that answers 404 until there is a notice, as clouds' metadata servers do."""

    url: str
    default_s: float
    headers: Mapping[str, str] = field(default_factory=dict)

    def look(self) -> Found | None:
        """Ask it. Raises OSError."""
        from urllib import error, request  # slow, and of no use to an agent without one

        asked = request.Request(self.url, headers=dict(self.headers))  # noqa: S310  the command takes http(s) alone
        direct = request.build_opener(request.ProxyHandler({}))  # it is this machine's own
        try:
            with direct.open(asked, timeout=URL_TIMEOUT_S) as answer:
                text = answer.read(LONGEST_NOTICE)
        except error.HTTPError as refused:
            with refused:
                if refused.code == 404:
                    return None
                raise OSError(f"it answers {refused.code}") from refused
        return read_notice(text.decode(errors="replace"), datetime.now(UTC))


async def watch(watcher: Watcher, tell: Callable[[Notice], None], every_s: float = LOOK_EVERY_S) -> None:
    """Look until there is a notice, and tell of it, once."""
    failed = ""
    while True:
        try:
            found = await asyncio.to_thread(watcher.look)
        except OSError as error:
            found = None
            if str(error) != failed:
                log.warning("can't look for notices", watcher=watcher, error=str(error))
            failed = str(error)
        if found is not None:
            seconds = watcher.default_s if found.seconds is None else max(0.0, found.seconds)
            tell(Notice(found.reason, asyncio.get_running_loop().time() + seconds))
            return
        await asyncio.sleep(every_s)


def read_notice(text: str, now: datetime) -> Found | None:
    """Read what a file or a metadata server says: JSON as of AWS or Azure, the TRUE of GCP, or any words."""
    words = text.strip()
    if words.lower() in _NO_NOTICE:
        return None
    try:
        said = json.loads(words)
    except ValueError:
        said = None
    if isinstance(said, dict):
        if isinstance(said.get("Events"), list):
            return _azure(said["Events"], now)
        action = said.get("action")
        return Found(
            _named(action if isinstance(action, str) else "terminate"), _seconds(said.get("time"), now)
        )
    if words.lower() == "true":
        return Found(_named("preempted"))
    return Found(_named(words.splitlines()[0]))


def _azure(events: list[Any], now: datetime) -> Found | None:
    for event in events:
        kind = event.get("EventType") if isinstance(event, dict) else None
        if isinstance(kind, str) and kind.lower() in _GOES_AWAY:
            return Found(_named(kind.lower()), _seconds(event.get("NotBefore"), now))
    return None


def _named(what: str) -> str:
    printable = "".join(letter if letter.isprintable() else " " for letter in what[:LONGEST_REASON])
    return f"spot notice: {printable.strip()}"


def _seconds(when: object, now: datetime) -> float | None:
    """How long until a time as ISO 8601 or RFC 1123 writes it; None of anything else."""
    if not isinstance(when, str):
        return None
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            at = parse(when)
        except ValueError:
            continue
        return (at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds()
    return None
