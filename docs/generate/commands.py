"""The list of commands in docs/cli.md, from the command line itself."""

from collections.abc import Iterator

import click

from docs.generate import markdown
from holdfast.cli import cli


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
    rows = []
    for name, command in commands():
        arguments = [
            piece for piece in command.collect_usage_pieces(click.Context(command)) if piece != "[OPTIONS]"
        ]
        rows.append([markdown.code(" ".join([name, *arguments])), command.get_short_help_str(limit=200)])
    return markdown.table(["command", ""], rows)


def rewritten(page: str) -> str:
    """Return the page with the table as the commands are."""
    return markdown.replaced(page, commands=table())
