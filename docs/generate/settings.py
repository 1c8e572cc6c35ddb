"""The tables in docs/settings.md: the daemons' settings from their commands, all other variables from a table."""

import re
from collections.abc import Sequence

import click

from docs.generate import markdown, variables
from docs.generate.variables import Variable
from holdfast.cli import cli
from holdfast.cli.settings import DAEMONS, Daemon, Several, key_of

_IN_HELP = re.compile(r"\s*\[default: (.*)\]$")


def daemon(name: str) -> Daemon:
    """Give the command of a daemon. Raises TypeError when it is none."""
    command = cli.get_command(click.Context(cli), name)
    if not isinstance(command, Daemon):
        raise TypeError(f"holdfast {name} is no daemon")
    return command


def default_of(option: click.Option) -> str:
    """Say what holds unless it is set."""
    if found := _IN_HELP.search(option.help or ""):
        return found[1]
    if isinstance(option.show_default, str):
        return option.show_default
    if option.is_flag:
        return "false"
    return str(option.default) if option.show_default else ""


def settings(command: Daemon) -> str:
    """Write the settings of a daemon as a table."""
    rows = []
    for option in command.options():
        in_file = option in command.settings()
        if option.name == "show_settings":
            continue
        names = [markdown.code(name) for name in option.envvar or ()]
        meaning = _IN_HELP.sub("", option.help or "")
        form = option.metavar or option.type.name.upper()
        shown = option.opts[0] if option.is_flag else f"{option.opts[0]} {form}"
        rows.append(
            [
                markdown.code(shown) + (", …" if isinstance(option, Several) else ""),
                ", else ".join(names),
                markdown.code(key_of(option)) if in_file else "",
                default_of(option),
                meaning,
            ]
        )
    return markdown.table(["option", "variable", "key", "default", ""], rows)


def others(found: Sequence[Variable]) -> str:
    """Write variables as a table."""
    rows = [[markdown.code(name), default, meaning] for name, default, meaning in found]
    return markdown.table(["variable", "default", ""], rows)


def rewritten(page: str) -> str:
    """Return the page with the tables as the code has them."""
    return markdown.replaced(
        page,
        **{name: settings(daemon(name)) for name in DAEMONS},
        commands=others(variables.COMMANDS),
        traces=others(variables.TRACES),
        data=others(variables.DATA),
        workers=others(variables.WORKERS),
    )
