"""`holdfast checkpoint drain`."""

import click

from holdfast.cli.common import fail, printable
from holdfast.storage.api import StorageError


@click.command("drain")
@click.argument("directory", type=click.Path(exists=True, file_okay=False))
def command(directory: str) -> None:
    """Bring checkpoints that wait on this machine to their storage.

    While a storage is away, workers keep their checkpoints in a directory on their machine and bring them there
    themselves when it is back. This does it for workers that are gone, and may be done while others run. DIRECTORY
    is the one that they named on stderr, or one above several; no coordinator is asked.

    \b
    Example:
      holdfast checkpoint drain .holdfast/spool
    """  # noqa: D301  click reads the backspaces
    from holdfast.worker.spool import drain_directory

    brought: list[str] = []

    def told(name: str) -> None:
        brought.append(name)
        click.echo(printable(name))

    try:
        left = drain_directory(directory, told)
    except (OSError, StorageError) as error:
        fail(f"{directory} could not be drained: {error}")
    if left:
        fail(f"{len(left)} files are still held here, the first is {printable(left[0])}")
    click.echo(
        f"{len(brought)} files are in their storage now; nothing is held in {printable(directory)}", err=True
    )
