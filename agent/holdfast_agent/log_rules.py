"""Which of a spec's rules have their `log` in the last lines of an output.

A regular expression can take for ever, and holds up its whole process meanwhile. So it is run in one of its own,
which is killed when it is not through in time; only what has nothing to interpret is looked for here.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

WITHIN_S = 2.0

_SPECIAL = frozenset(r"\.^$*+?{}[]|()")

Pattern = tuple[int, str]
"""A rule's number in the spec, from 0, and its `log`."""


def matching(patterns: Sequence[Pattern], lines: Sequence[str]) -> tuple[list[int], list[int]]:
    """The rules whose pattern is found in one of the lines, and those that took too long to tell."""
    plain = [(number, text) for number, text in patterns if not _SPECIAL & set(text)]
    found = [number for number, text in plain if any(text in line for line in lines)]
    asked = [(number, text) for number, text in patterns if _SPECIAL & set(text)]
    if not asked or not lines:
        return found, []
    told = _ask(asked, lines)
    found += [number for number, matched in told.items() if matched]
    return sorted(found), [number for number, _ in asked if number not in told]


def _ask(patterns: Sequence[Pattern], lines: Sequence[str]) -> dict[int, bool]:
    command = [sys.executable, "-P", "-S", "-m", "holdfast_agent.log_rules"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    question = json.dumps([patterns, lines]).encode()
    try:
        done = subprocess.run(
            command, input=question, env=env, stdout=subprocess.PIPE, timeout=WITHIN_S, check=False
        )
        said = done.stdout
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
    except OSError:
        return {}
    answers = [line.split() for line in said.splitlines() if line.endswith((b" 0", b" 1"))]
    return {int(number): answer == b"1" for number, answer in answers}


def main() -> None:
    """Read patterns and lines from stdin; answer each pattern on a line of its own, as soon as it is through."""
    patterns, lines = json.load(sys.stdin)
    for number, text in patterns:
        try:
            matched = any(re.search(text, line) for line in lines)
        except (re.error, RecursionError, OverflowError):  # another Python than the coordinator's
            matched = False
        print(number, int(matched), flush=True)


if __name__ == "__main__":
    main()
