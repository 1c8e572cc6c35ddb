"""The exit codes, in one place. docs/cli.md is checked against it."""

from enum import IntEnum
from typing import Self


class EXIT(IntEnum):
    """What the exit code of every command means."""

    OK = 0, "it worked; of a job that was waited for: it succeeded"
    FAILED = 1, "the job failed, a checkpoint is corrupt, or the request was refused"
    USAGE = 2, "wrong usage, or a job spec that can't be"
    UNREACHABLE = 3, "no coordinator or storage answers, or it can't serve now"
    NOT_FOUND = 4, "there is no such job, node or checkpoint"
    TIMEOUT = 5, "it was not over when --timeout was, or the coordinator was silent for too long"
    STOPPED = 6, "the job was stopped"
    INTERRUPTED = 130, "interrupted by Ctrl-C or SIGTERM"

    def __new__(cls, value: int, meaning: str) -> Self:
        """Keep the meaning beside the value."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    meaning: str
