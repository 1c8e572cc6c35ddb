"""Settings of the daemons: each of their options is also an environment variable, and a key of a file.

    --state-dir /x      HOLDFAST_AGENT_STATE_DIR=/x      agent:
                                                           state_dir: /x

The command line wins over the environment, the environment over the file, the file over the default. A daemon is a
command of the class Daemon, whose options that may be repeated are of the class Several; nothing else is to be done.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from holdfast.cli.common import fail, show_table
from holdfast.cli.exits import EXIT

DAEMONS = ("coordinator", "agent", "gateway")
_FILE, _SHOW = "config", "show_settings"
_LINES = "holdfast.settings.lines"
_NEAR = 0.75


class Several(click.Option):
    """May be repeated. In an environment variable its values stand side by side, as a shell would read them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "multiple": True})

    def value_from_envvar(self, ctx: click.Context) -> list[str] | None:
        """Give the values of the variable."""
        text = self.resolve_envvar_value(ctx)
        if text is None:
            return None
        import shlex

        try:
            return shlex.split(text)
        except ValueError as error:
            raise click.BadParameter(f"{error}; quote values as for a shell", ctx, self) from error


class Daemon(click.Command):
    """A command whose options are settings. Those named `secret` are never shown."""

    def __init__(self, name: str, *, secret: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self.daemon = name
        self._secret = frozenset(secret)
        self.params += [
            click.Option(
                [f"--{_FILE}"],
                type=click.Path(path_type=Path),
                is_eager=True,
                expose_value=False,
                callback=self._read_file,
                metavar="FILE",
                help="A YAML file with settings; see docs/settings.md.",
            ),
            click.Option(
                ["--show-settings"],
                is_flag=True,
                expose_value=False,
                help="Print what all of this comes to, and where each value is from, and end.",
            ),
        ]
        for option in self.options():
            if option.name == _SHOW:
                continue
            if option.multiple and not isinstance(option, Several):
                raise TypeError(f"{option.opts[0]} may be repeated, and is not of the class Several")
            others = [option.envvar] if isinstance(option.envvar, str) else option.envvar or []
            option.envvar = [self.variable(option), *others]

    def options(self) -> Iterator[click.Option]:
        """Give the options, in their order, but for --help."""
        return (param for param in self.params if isinstance(param, click.Option))

    def settings(self) -> Iterator[click.Option]:
        """Give those that can stand in a file."""
        return (option for option in self.options() if option.name not in (_FILE, _SHOW))

    def variable(self, option: click.Option) -> str:
        """Name the environment variable of an option."""
        return f"HOLDFAST_{self.daemon}_{key_of(option)}".upper()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse a command line, and end with a sentence that says where a value is from that can't be."""
        if ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        self._refuse_near_misses()
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        try:
            rest = super().parse_args(ctx, args)
        except click.BadParameter as error:
            if isinstance(error.param, click.Option) and error.param.name not in given:
                fail(f"{self._origin(ctx, error.param, whole=True)}: {_why(error, error.param)}", EXIT.USAGE)
            raise
        if _SHOW in given:
            self._show(ctx, given)
            ctx.exit()
        return rest

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Say where else the options are looked for."""
        option = next(self.settings())
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(
                f"Each option is also a setting of the environment ({self.variable(option)}) and of the file of "
                f"--config ({self.daemon}: {key_of(option)}); an option wins over both."
            )
        super().format_epilog(ctx, formatter)

    def _refuse_near_misses(self) -> None:
        """End when a variable is one of ours but for a slip: it would be ignored.

        Others may begin like ours: Kubernetes gives a pod HOLDFAST_GATEWAY_PORT for a Service of that name.
        """
        import difflib

        start = f"HOLDFAST_{self.daemon.upper()}_"
        known = [self.variable(option)[len(start) :] for option in self.options()]
        for name in sorted(os.environ):
            if name.startswith(start) and (end := name[len(start) :]) not in known:
                near = difflib.get_close_matches(end, known, n=1, cutoff=_NEAR)
                if near:
                    fail(f"{name} is no setting; did you mean {start}{near[0]}?", EXIT.USAGE)

    def _read_file(self, ctx: click.Context, _option: click.Parameter, path: Path | None) -> None:
        if path is None or ctx.resilient_parsing:
            return
        from holdfast.config_files import ConfigError

        try:
            values, lines = _Settings(path, self).read()
        except ConfigError as error:
            fail(str(error), EXIT.USAGE)
        ctx.default_map = values
        ctx.meta[_LINES] = lines

    def _origin(self, ctx: click.Context, option: click.Option, *, whole: bool = False) -> str:
        """Say where the value of an option is from; `whole` with its key in a file."""
        match ctx.get_parameter_source(option.name or ""):
            case click.core.ParameterSource.COMMANDLINE:
                return option.opts[0]
            case click.core.ParameterSource.DEFAULT_MAP:
                line: str = ctx.meta[_LINES][option.name]
                return f"{line}: {self.daemon}.{key_of(option)}" if whole else line
            case click.core.ParameterSource.DEFAULT:
                return "default"
            case _:
                return next(name for name in option.envvar or () if os.environ.get(name))

    def _show(self, ctx: click.Context, given: dict[str, Any]) -> None:
        rows = []
        for option in self.settings():
            read = ctx.params[option.name or ""]
            value, _ = option.consume_value(ctx, given)
            if isinstance(read, bool) or not isinstance(value, str | int | Path | list | tuple):
                # It was found elsewhere, as the address of a coordinator may be; or there is none.
                value = read if isinstance(read, bool | str) else ""
            shown = "(not shown)" if value and option.name in self._secret else _shown(value)
            rows.append([key_of(option), shown, self._origin(ctx, option)])
        show_table(["SETTING", "VALUE", "FROM"], rows)


class _Settings:
    """Reads the section of a daemon."""

    def __init__(self, path: Path, daemon: Daemon) -> None:
        from holdfast.config_files import Reader

        self._path = path
        self._daemon = daemon
        self._reader = Reader(path)
        self._options = {key_of(option): option for option in daemon.settings()}

    def read(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Give the values, and where each stands, by the names of the parameters. Raises ConfigError."""
        from holdfast.config_files import ConfigError, compose

        values: dict[str, Any] = {}
        lines: dict[str, str] = {}
        try:
            root = compose(self._path, "file of settings")
        except FileNotFoundError as error:
            raise ConfigError(f"{self._path}: is not there; write it, or leave --{_FILE} away") from error
        if root is None:
            return values, lines
        for section, settings in self._reader.pairs(root, "the file"):
            if section.value not in DAEMONS:
                self._refuse_section(section)
            if section.value != self._daemon.daemon or _is_null(settings):
                continue
            for key, value in self._reader.pairs(settings, section.value):
                option = self._options.get(key.value) or self._refuse_key(key)
                name = option.name or ""
                values[name] = self._value(option, value, f"{section.value}.{key.value}")
                lines[name] = f"{self._path}:{key.start_mark.line + 1}"
        return values, lines

    def _refuse_section(self, section: Any) -> NoReturn:
        known = f"there are {', '.join(DAEMONS)}"
        if section.value in ("current", "contexts"):
            known = f"a file of contexts is named by HOLDFAST_CONFIG, this one has {', '.join(DAEMONS)}"
        self._reader.fail(section, f'unknown section "{section.value}"; {known}')

    def _refuse_key(self, key: Any) -> NoReturn:
        import difflib

        near = difflib.get_close_matches(key.value, self._options, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(self._options)}"
        self._reader.fail(key, f'{self._daemon.daemon}: unknown key "{key.value}"; {hint}')

    def _value(self, option: click.Option, node: Any, where: str) -> object:
        """Give what click makes a value of: text as it is written, a truth, or a list of texts."""
        if _is_null(node):
            self._reader.fail(node, f"{where}: has no value; write one, or remove the line")
        if isinstance(option, Several):
            if node.id != "sequence":
                self._reader.fail(node, f"{where}: is no list; write e.g. {where.split('.')[1]}: [A, B]")
            return [self._reader.text(item, where) for item in node.value]
        text = self._reader.text(node, where)
        if not option.is_flag:
            return text
        if not node.tag.endswith(":bool"):
            self._reader.fail(node, f'{where}: "{text}" is neither true nor false; write one of these')
        return text.lower() in ("true", "yes", "on")


def key_of(option: click.Option) -> str:
    """Name the key of an option in a file: --state-dir is state_dir."""
    return option.opts[0].lstrip("-").replace("-", "_")


def _why(error: click.BadParameter, option: click.Option) -> str:
    """What is wrong with a value, in our words where click's have no remedy."""
    if option.is_flag:
        return "is neither true nor false; write one of these"
    return error.message.replace("is not a valid integer range.", "is no whole number; write e.g. 4")


def _is_null(node: Any) -> bool:
    return bool(node.tag.endswith(":null"))


def _shown(value: object) -> str:
    """A value as the environment would have it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        import shlex

        return shlex.join(map(str, value)) or "-"
    return str(value) or "-"
