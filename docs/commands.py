"""Writes the list of commands in docs/cli.md from the command line itself.

Run `python docs/commands.py` after a change of a command; a test holds the page to it.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import click

from holdfast.cli import cli

PAGE = Path(__file__).parent / "cli.md"


def commands(group: click.Group = cli, before: str = "holdfast") -> Iterator[tuple[str, click.Command]]:
    """Give every command that does something, with its name in full, in the order of `--help`."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, f"{before} {name}")
        elif command is not None:
            yield f"{before} {name}", command


def table() -> str:
    """Write the commands as a table."""
    lines = ["| command | |", "|---|---|"]
    for name, command in commands():
        arguments = [
            piece for piece in command.collect_usage_pieces(click.Context(command)) if piece != "[OPTIONS]"
        ]
        usage = " ".join([name, *arguments]).replace("|", "\\|")
        lines.append(f"| `{usage}` | {command.get_short_help_str(limit=200)} |")
    return "\n".join(lines)


def rewritten(page: str) -> str:
    """Return the page with the table as the commands are."""
    block = re.compile(r"(<!-- commands -->\n).*?(<!-- end -->)", re.DOTALL)
    return block.sub(lambda m: f"{m[1]}{table()}\n{m[2]}", page)


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
