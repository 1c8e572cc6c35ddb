"""Every command in the documents: those of the blocks, and those that prose has as code."""

import re
import shlex
import subprocess
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import click

from holdfast.cli import cli
from tests.house.test_links import CODE, ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
SHELL = {"sh", "bash", "shell"}
"""The languages of blocks that are commands. `console` is commands behind a $, with what they print."""
OTHERS = {"text", "python", "yaml", "json", "sql", "dockerfile", "mermaid"}
PROGRAMS = set(
    """
    holdfast make curl docker kubectl kill pip npm python python3 torchrun systemctl apt-get sqlite3 git ssh buf
    grpcurl pytest nft reboot useradd install cd export eval printf .ci/run /opt/holdfast/bin/pip
    """.split()  # noqa: SIM905
)
"""What code in prose begins with when it is a command. A block of `text` has no line that does."""
FENCE = re.compile(r"^ *(```+|~~~+).*?^ *\1\s*$", re.MULTILINE | re.DOTALL)
GENERATED = re.compile(r"<!-- commands -->.*?<!-- end -->", re.DOTALL)
"""The table of all commands, which tests/client/test_cli_help.py holds to the command line."""


class Command(NamedTuple):
    """A command as a page has it."""

    page: str
    language: str
    """That of its block, or `prose`."""
    text: str
    shown: tuple[str, ...] = ()
    """What the page says that it prints."""

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text.replace("\\\n", " "), comments=True)


def commands(path: Path) -> list[Command]:
    """All commands of a page, in its order. Raises ValueError where one could be overlooked."""
    page, text = str(path.relative_to(ROOT)), GENERATED.sub("", path.read_text())
    found, at = [], 0
    for fence in FENCE.finditer(text):
        found += _of_prose(page, text[at : fence.start()])
        found += _of_block(page, fence[0])
        at = fence.end()
    return found + _of_prose(page, text[at:])


def _of_prose(page: str, text: str) -> list[Command]:
    if re.search(r"^\s*(```|~~~)", text, re.MULTILINE):
        raise ValueError(f"{page}: a block that is not closed")
    if bare := next((line for line in text.splitlines() if _indented(line)), None):
        raise ValueError(f"{page}: put `{bare.strip()}` into a block that says what it is")
    found = []
    for span in CODE.finditer(text):
        code = " ".join(span[0].strip("`").replace("\\|", "|").split())
        if _program(code) in PROGRAMS and " " in code:
            found.append(Command(page, "prose", code))
    return found


def _of_block(page: str, fence: str) -> list[Command]:
    first, *lines, _ = textwrap.dedent(fence).splitlines()
    language = first.strip("`~ ")
    if language in SHELL:
        return [Command(page, language, text) for text in _whole(page, lines)]
    if language == "console":
        if lines and not lines[0].strip().startswith("$ "):
            raise ValueError(f"{page}: a block of console that begins with no $: {lines[0]}")
        parts = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", "\n".join(lines) + "\n", re.MULTILINE)
        return [Command(page, language, text, tuple(shown.splitlines())) for text, shown in parts]
    if language not in OTHERS:
        raise ValueError(f"{page}: say what the block of `{lines[0]}` is: {', '.join(SHELL | OTHERS)}")
    if language == "text" and (of_shell := [line for line in lines if _program(line) in PROGRAMS | {"$"}]):
        raise ValueError(f"{page}: a block of text that has the command `{of_shell[0]}`: call it sh")
    return []


def _indented(line: str) -> bool:
    return line.startswith("    ") and _program(line) in PROGRAMS | {"$"}


def _program(line: str) -> str:
    """The first word that sets no variable."""
    return next((word for word in line.split() if not re.match(r"\w+=", word)), "")


def _whole(page: str, lines: list[str]) -> list[str]:
    """Lines put together to what a shell takes for one command: continued, quoted, or a loop."""
    found, open_lines = [], []
    for line in lines:
        if not open_lines and not line.split("#")[0].strip():
            continue
        open_lines.append(line)
        if not line.endswith("\\") and _complete("\n".join(open_lines)):
            found.append("\n".join(open_lines))
            open_lines = []
    if open_lines:
        raise ValueError(f"{page}: no shell takes `{open_lines[0]}`")
    return found


@cache
def _complete(text: str) -> bool:
    if not re.search(r"[\'\"(){}]|\b(for|while|until|if|case)\b", text):
        return True  # most are; to ask takes longer than to run many a command
    done = subprocess.run(["bash", "-n", "-c", text], capture_output=True, timeout=60, check=False)
    return done.returncode == 0


INTRODUCE = {"do", "then", "else", "until", "while", "if", "!", "--", "$"}
"""Words of a shell, and of kubectl exec, behind which a command begins."""


def ours(line: str) -> Iterator[list[str]]:
    """The arguments of each `holdfast` in a line of a shell."""
    lexer = shlex.shlex(line.replace("\\\n", " "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.whitespace = " \t"
    words, into_file = [], False
    for token in lexer:
        if set(token) <= set(";|&()\n"):
            yield from _arguments(words)
            words = []
        elif set(token) <= set("<>&"):
            into_file = True
        elif into_file:
            into_file = False
        elif token == "holdfast" and (not words or words[-1] in INTRODUCE):
            words = [token]
        else:
            words.append(token)
            if inner := re.search(r"\$\((.*)\)", token):
                yield from ours(inner[1])
    yield from _arguments(words)


def _arguments(words):
    return [words[1:]] if words[:1] == ["holdfast"] else []


def parse(arguments):
    """Parse a command line as holdfast would, without running it."""
    command, context = cli, click.Context(cli, info_name="holdfast")
    while isinstance(command, click.Group):
        if not arguments:
            raise click.MissingParameter(ctx=context, param_type="command")
        name, *arguments = arguments
        found = command.get_command(context, name)
        assert found is not None, f"there is no command {name}"
        command = found
        context = click.Context(command, parent=context, info_name=name)
    return command.make_context(command.name, list(arguments), parent=context.parent).params
