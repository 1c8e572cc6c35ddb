"""What to do about an exit: the spec's rules, then the built-in ones; the first that matches decides. PURE.

Whether a rule's `log` is in the output is not decided here: the agent has the output, and says which rules it matched.
"""

from dataclasses import dataclass

from holdfast_coordinator.core.jobspec import Action, ExitKind, Rule
from holdfast_coordinator.core.model import Exit, Gang, Output, Progress, Repeat, Worker

BLIND_MS = 300_000
"""Who reports no steps, and does not use the library, counts as starting up for so long."""
WORKED_MS = 600_000
"""And as having made progress after so long."""

OWN_SIGNALS = frozenset({4, 5, 6, 7, 8, 11, 31})
"""ILL, TRAP, ABRT, BUS, FPE, SEGV and SYS: what a program brings upon itself. Others are sent by somebody."""

_NO_START = (
    "ImportError:",
    "ModuleNotFoundError:",
    "SyntaxError:",
    "IndentationError:",
    "TabError:",
    "FileNotFoundError:",
    "holdfast.data.errors.DataError:",
    "holdfast.worker.errors.CheckpointMismatch:",
)
_NOT_FOUND_CODES = (126, 127)
"""A shell's: what it was to run can't be run, or is not there."""
_USAGE_CODE = 2
_USAGE = ("Error: ", "error: ", "usage: ", "Usage: ")
_OF_OTHERS = (
    "ConnectionError",
    "ConnectionRefusedError",
    "ConnectionResetError",
    "ConnectionAbortedError",
    "BrokenPipeError",
    "TimeoutError",
    "DistNetworkError",
    "DistBackendError",
    "Connection refused",
    "Connection reset",
    "Connection closed by peer",
    "Broken pipe",
    "timed out",
    "NCCL",
    "Gloo",
)
"""What a program says when somebody else is gone: its peer, a server, the network."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule says, and which."""

    action: Action
    rule: str
    """As people read it: "rule 2 of the spec", or the built-in one's name."""

    @property
    def reason(self) -> str:
        """In words, to go behind the cause."""
        return f"{self.rule} says {self.action.replace('_', ' ')}"


def judge(rules: tuple[Rule, ...], exited: Exit, progress: Progress, output: Output) -> Verdict | None:
    """Say what the first of the spec's rules that matches wants; None when none does.

    What was not the program's end but its agent's doing is no rule's business.
    """
    if exited.kind in (ExitKind.ABANDONED, ExitKind.LOST):
        return None
    for number, rule in enumerate(rules):
        if _matches(rule, exited, progress, found=number in output.matched):
            return Verdict(rule.action, f"rule {number + 1} of the spec")
    return None


def _matches(rule: Rule, exited: Exit, progress: Progress, *, found: bool) -> bool:
    if rule.exit_codes and not any(codes.first <= exited.code <= codes.last for codes in rule.exit_codes):
        return False
    if rule.signals and exited.signal not in rule.signals:
        return False
    if rule.kinds and exited.kind not in rule.kinds:
        return False
    if rule.log and not found:
        return False
    if rule.section and rule.section != progress.section:
        return False
    return rule.before_first_step is None or rule.before_first_step is (progress.step is None)


def cannot_start(gang: Gang, worker: Worker) -> str:
    """The built-in rules for programs that can't start: why starting it again can't help; empty when it may.

    They are about what comes before the first step of all attempts of its gang.
    """
    exited, progress = worker.exit, worker.progress
    if exited is None or exited.signal or exited.code <= 0 or progress.step is not None:
        return ""
    if gang.best_step >= 0 or gang.commit is not None:
        return ""
    if not progress.section and exited.at_ms - worker.started_ms > BLIND_MS:
        return ""
    line = exited.line
    name = line.rpartition(".")[2] if line.partition(" ")[0].endswith(":") else line
    if name.startswith(_NO_START) or line.startswith(_NO_START):
        return "the program can't start"
    if "can't open file" in line or "No module named" in line:
        return "there is no such program"
    if exited.code in _NOT_FOUND_CODES:
        return "the command can't be run"
    if exited.code == _USAGE_CODE and (": error: " in line or line.startswith(_USAGE)):
        return "the program does not take these arguments"
    return ""


def own_doing(exited: Exit) -> bool:
    """Tell whether the program itself brought its end about, and would do so again.

    Who was killed from outside would not, nor whose disk was full, nor whose peers were gone.
    """
    if exited.kind is ExitKind.OUT_OF_MEMORY:
        return True
    if exited.kind not in (ExitKind.EXITED, ExitKind.SIGNALLED):
        return False
    if exited.signal:
        return exited.signal in OWN_SIGNALS
    return exited.code > 0 and not of_others(exited)


def nodes_doing(exited: Exit) -> bool:
    """Tell whether its node could not run it: its disk was full, or its agent could not start it."""
    if exited.kind is ExitKind.DISK_FULL:
        return True
    return exited.kind is ExitKind.EXITED and exited.code < 0 and not (exited.signal or exited.never_ran)


def of_others(exited: Exit) -> bool:
    """Tell whether its last words are of somebody else who is gone."""
    return any(word in exited.line for word in _OF_OTHERS)


def count(gang: Gang, worker: Worker, *, progressed: bool) -> Repeat:
    """Count an exit. `progressed`: it came further than any attempt before it.

    Of a program that reports no steps, an attempt that ran for long counts as progress.
    """
    exited = worker.exit
    assert exited is not None
    blind = worker.progress.step is None and gang.best_step < 0
    progressed |= blind and exited.at_ms - worker.started_ms >= WORKED_MS
    before = Repeat() if progressed else gang.repeat
    if not (own_doing(exited) or nodes_doing(exited)):
        return before
    how = exited.message
    if how != before.how:
        return Repeat(how, 1, worker.node)
    return Repeat(how, before.times + 1, before.node if before.node == worker.node else "")
