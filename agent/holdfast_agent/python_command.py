"""Which commands can start warm: those that are a Python program. PURE.

The zygote is the job's own command, with a hook that the interpreter comes by while it starts (see zygote.py). So that
all its options hold without our knowing what they mean; but those that keep it from the hook, or run no program, can't.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_INTERPRETER = re.compile(r"(?:.*/)?python(?:3(?:\.[0-9]+)?)?t?", re.DOTALL)
_PLAIN = frozenset("bBdOPqRsuvx")
"""Options without a value that change nothing for us."""
_KEPT_FROM_HOOK = {
    "E": "-E has it ignore PYTHONPATH",
    "I": "-I has it ignore PYTHONPATH",
    "S": "-S has it start without site",
}


@dataclass(frozen=True, slots=True)
class Program:
    """A Python program: its interpreter with all options, and what it runs (the rest of the command)."""

    interpreter: tuple[str, ...]
    """With another program behind them, a command that is started just like this one."""
    runs: tuple[str, ...]
    """``train.py …``, ``-m module …`` or ``-c code …``."""


def python_program(command: Sequence[str]) -> Program | str:
    """Take a command apart; or say why it can't start warm, as the rest of a sentence."""
    if not _INTERPRETER.fullmatch(command[0]):
        return f"{command[0]} is no Python interpreter"
    at = 1
    while at < len(command) and command[at].startswith("-") and command[at] != "-":
        word = command[at]
        if word == "--check-hash-based-pycs":
            at += 2
            continue
        if word.startswith("--"):
            return f"{word} runs no program"
        for place, letter in enumerate(word[1:], 2):
            if letter in "mc":
                return _program(command, at, place)
            if letter in "WX":
                at += not word[place:]  # the value is the next word
                break
            if letter in _KEPT_FROM_HOOK:
                return _KEPT_FROM_HOOK[letter]
            if letter not in _PLAIN:
                return f"-{letter} is no option of a program that runs by itself"
        at += 1
    if at >= len(command) or command[at] == "-":
        return "it names no program"
    return Program(tuple(command[:at]), tuple(command[at:]))


def _program(command: Sequence[str], at: int, place: int) -> Program | str:
    """``-m`` or ``-c``, perhaps behind other letters (``-um``), perhaps with its value in the same word."""
    before, option, value = command[at][: place - 1], command[at][place - 1], command[at][place:]
    rest = ([value] if value else []) + list(command[at + 1 :])
    if not rest:
        return "it names no program"
    options = [before] if len(before) > 1 else []
    return Program((*command[:at], *options), (f"-{option}", *rest))
