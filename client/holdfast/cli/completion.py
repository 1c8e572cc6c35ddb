"""`holdfast completion`."""

import click

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    """Print what makes a shell complete holdfast's commands, options and ids, for its start-up file to read.

    Ids of jobs, names of nodes, ranks and steps are asked of the coordinator that the command line is about.

    \b
    Examples:
      eval "$(holdfast completion bash)"                                     in ~/.bashrc
      eval "$(holdfast completion zsh)"                                      in ~/.zshrc, after compinit
      holdfast completion fish > ~/.config/fish/completions/holdfast.fish    once
    """  # noqa: D301  click reads the backspaces
    from click.shell_completion import get_completion_class

    from holdfast.cli import cli

    kind = get_completion_class(shell)
    assert kind is not None, "click knows the three"
    click.echo(kind(cli, {}, "holdfast", "_HOLDFAST_COMPLETE").source())
