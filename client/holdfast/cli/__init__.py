"""The command line: one module a noun, each imported when it is asked for, so that `--help` is quick."""

import importlib
import sys
from typing import TYPE_CHECKING

import click

from holdfast import __version__

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_COMMANDS = {
    "run": ("holdfast.cli.run", "Run a training command on this machine, and keep it alive."),
    "coordinator": ("holdfast.cli.coordinator", "Run a coordinator."),
    "agent": ("holdfast.cli.agent", "Run an agent: the node's end of holdfast."),
    "gateway": ("holdfast.cli.gateway", "Run a gateway: REST, server-sent events, the dashboard."),
    "job": ("holdfast.cli.job", "Submit, list, watch, stop and delete jobs."),
    "node": ("holdfast.cli.node", "See the nodes; take them out of service and back."),
    "checkpoint": ("holdfast.cli.checkpoint", "List, verify, pin and delete committed checkpoints."),
    "events": ("holdfast.cli.events", "Print the timeline: what happened, and why."),
    "top": ("holdfast.cli.top", "Watch the fleet: nodes, jobs, throughput, the curve of the loss."),
    "backup": ("holdfast.cli.backup", "Put the coordinator's state aside, and take it up again."),
    "doctor": ("holdfast.cli.doctor", "Look for what would keep holdfast from working here."),
    "health": ("holdfast.cli.health", "Ask a daemon of this machine whether it is well."),
    "context": ("holdfast.cli.context", "Name coordinators, and choose the one that commands talk to."),
    "completion": ("holdfast.cli.completion", "Print what makes a shell complete commands and ids."),
}


class _Lazy(click.Group):
    """Lists its commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module, _ = _COMMANDS[cmd_name]
        command: click.Command = importlib.import_module(module).command
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        """Complete commands without importing them, and options."""
        from click.shell_completion import CompletionItem

        named = [(name, text) for name, (_, text) in _COMMANDS.items() if name.startswith(incomplete)]
        options = click.Command.shell_complete(self, ctx, incomplete)
        return [CompletionItem(name, help=text) for name, text in named] + options

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="holdfast")
def cli() -> None:
    """Keep training jobs alive: whatever dies under them, they finish.

    \b
    On one machine, in place of torchrun:
      holdfast run -n 4 -- python train.py
    \b
    Over a fleet:
      holdfast coordinator                      on one machine
      holdfast agent --coordinator HOST:7070    on every node
      holdfast job submit -f job.yaml           from anywhere
    """  # noqa: D301  click reads the backspaces


def main() -> None:
    """Run the command line, and exit with its code; see docs/cli.md."""
    from holdfast.cli.exits import EXIT

    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Exit as done:
        code = done.exit_code
    except click.Abort:
        code = EXIT.INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except KeyboardInterrupt:
        code = EXIT.INTERRUPTED
    sys.exit(code or 0)
