"""Requests to stop that are on their way, pure: the coordinator's to workers, and the machine's to the coordinator.

What is asked of a worker is kept for as long as it lives, since its connection may break, and said again on the next
one. What a worker answers is not kept: the coordinator asks again in every session, and the worker answers again.
A notice of the machine stands for as long as the agent lives, and is part of every Hello.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast_agent.core import Key


@dataclass(slots=True)
class Asks:
    """What is asked of whom."""

    of_workers: "dict[Key, Any]" = field(default_factory=dict)
    notice: Any = None


# Events


@dataclass(frozen=True, slots=True)
class StopAsked:
    """The coordinator wants workers to stop after a checkpoint; `deaf` are those that cannot be told."""

    epoch: int
    keys: "tuple[Key, ...]"
    ask: Any
    deaf: "frozenset[Key]" = frozenset()


@dataclass(frozen=True, slots=True)
class StopAnswered:
    """A worker says at which step it can stop."""

    key: "Key"
    answer: Any


@dataclass(frozen=True, slots=True)
class WorkerConnected:
    """A worker has opened its connection."""

    key: "Key"


@dataclass(frozen=True, slots=True)
class NoticeSeen:
    """The machine is about to go away."""

    notice: Any


Event = StopAsked | StopAnswered | WorkerConnected | NoticeSeen


# Actions


@dataclass(frozen=True, slots=True)
class AskWorker:
    """Tell the worker."""

    key: "Key"
    ask: Any


@dataclass(frozen=True, slots=True)
class TellAnswer:
    """Tell the coordinator; None: the worker does not listen."""

    key: "Key"
    answer: Any


@dataclass(frozen=True, slots=True)
class TellNotice:
    """Tell the coordinator."""

    notice: Any


Action = AskWorker | TellAnswer | TellNotice


def handle(asks: Asks, event: Event, *, lives: "Callable[[Key], bool]", connected: bool) -> list[Action]:
    """Advance by one event, and say what to do."""
    match event:
        case StopAsked():
            return [action for key in event.keys if lives(key) for action in _asked(asks, event, key)]
        case StopAnswered(key, answer):
            return [TellAnswer(key, answer)] if connected and lives(key) else []
        case WorkerConnected(key):
            return [AskWorker(key, asks.of_workers[key])] if key in asks.of_workers else []
        case NoticeSeen(notice):
            asks.notice = notice
            return [TellNotice(notice)] if connected else []


def _asked(asks: Asks, event: StopAsked, key: "Key") -> list[Action]:
    if key in event.deaf:
        return [TellAnswer(key, None)]
    asks.of_workers[key] = event.ask
    return [AskWorker(key, event.ask)]
