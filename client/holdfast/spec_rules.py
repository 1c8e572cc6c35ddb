"""Rules of a job file: what to do about which exit."""

import re
import signal
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, StrictBool, StrictStr

from holdfast.units import shown
from holdfast.v1 import job_pb2

KINDS = ("exited", "signalled", "out_of_memory", "disk_full", "never_ran", "shim_lost")
ACTIONS = ("retry", "fail", "exclude_node", "ignore", "restart_gang")

_RANGE = re.compile(r"(\d{1,9})\s*-\s*(\d{1,9})")


def _several(value: object) -> list[Any]:
    """One is as good as a list of one."""
    if value == []:
        raise ValueError("is empty, and would match nothing; name one, or leave the key away")
    return value if isinstance(value, list) else [value]


def _word(value: object) -> object:
    if value == "":
        raise ValueError("is empty, and would match everything; name something, or leave the key away")
    return value


def _codes(value: object) -> list[tuple[int, int]]:
    found = []
    for each in _several(value):
        between = _RANGE.fullmatch(each) if isinstance(each, str) else None
        if between:
            found.append((int(between[1]), int(between[2])))
        elif isinstance(each, int) and not isinstance(each, bool) and abs(each) < 2**31:
            found.append((each, each))
        else:
            raise ValueError(f'{shown(each)} is no exit code; write e.g. 3, or "10-20"')
    return found


def _signals(value: object) -> list[int]:
    found = []
    for each in _several(value):
        if isinstance(each, int) and not isinstance(each, bool) and abs(each) < 2**31:
            found.append(each)
            continue
        name = each.upper() if isinstance(each, str) else ""
        try:
            found.append(int(signal.Signals[name if name.startswith("SIG") else f"SIG{name}"]))
        except KeyError:
            raise ValueError(f"{shown(each)} is no signal; write e.g. SIGSEGV, or 11") from None
    return found


def _kinds(value: object) -> list[str]:
    found = _several(value)
    for each in found:
        if each not in KINDS:
            raise ValueError(f"{shown(each)} is none of {', '.join(KINDS)}")
    return found


def _action(value: object) -> str:
    if value not in ACTIONS:
        raise ValueError(f"{shown(value)} is none of {', '.join(ACTIONS)}")
    return str(value)


class RulePart(BaseModel):
    """What to do about an exit of which all that is given is true."""

    model_config = ConfigDict(extra="forbid")

    action: Annotated[str, BeforeValidator(_action)]
    exit_codes: Annotated[list[tuple[int, int]] | None, BeforeValidator(_codes)] = None
    signals: Annotated[list[int] | None, BeforeValidator(_signals)] = None
    kind: Annotated[list[str] | None, BeforeValidator(_kinds)] = None
    log: Annotated[StrictStr | None, BeforeValidator(_word)] = None
    section: Annotated[StrictStr | None, BeforeValidator(_word)] = None
    before_first_step: StrictBool | None = None

    def to_proto(self) -> job_pb2.Rule:
        """Write it as a Rule."""
        return job_pb2.Rule(
            exit_codes=[job_pb2.CodeRange(first=first, last=last) for first, last in self.exit_codes or ()],
            signals=self.signals or (),
            kinds=[job_pb2.ExitKind.Value(f"EXIT_KIND_{kind.upper()}") for kind in self.kind or ()],
            log=self.log or "",
            section=self.section or "",
            before_first_step=self.before_first_step,
            action=job_pb2.RuleAction.Value(f"RULE_ACTION_{self.action.upper()}"),
        )
