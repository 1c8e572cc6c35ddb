"""`holdfast job metrics`: the curves of a job."""

import click

from holdfast.cli.common import Column, asynchronous, output_option, server_option, show
from holdfast.cli.sparkline import sparkline
from holdfast.client import Client
from holdfast.v1 import job_pb2


def _values(series: job_pb2.MetricSeries) -> list[float]:
    return [point.value for point in series.points]


COLUMNS = (
    Column("METRIC", lambda s: s.name),
    Column("LAST", lambda s: f"{s.points[-1].value:.4g}"),
    Column("AT STEP", lambda s: str(s.points[-1].step)),
    Column("LEAST", lambda s: f"{min(_values(s)):.4g}"),
    Column("MOST", lambda s: f"{max(_values(s)):.4g}"),
    Column("POINTS", lambda s: str(len(s.points)), wide=True),
    Column("CURVE", lambda s: sparkline(_values(s))),
)


@click.command("metrics")
@click.argument("job_id")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--points",
    type=click.IntRange(min=2),
    help="At most so many points of each, spread evenly over its time.  [default: all that are kept]",
)
@server_option
@output_option
@asynchronous
async def command(job_id: str, names: tuple[str, ...], points: int | None, server: str, output: str) -> None:
    """Show what a job reported over time, with its throughput and goodput; of these NAMEs alone, if any are given.

    \b
    Examples:
      holdfast job metrics c7mk2xq9pd
      holdfast job metrics c7mk2xq9pd loss --points 200 -o json
    """  # noqa: D301  click reads the backspaces
    async with Client(server) as client:
        series = [each for each in await client.job_metrics(job_id, names, points or 0) if each.points]
    if not series:
        click.echo(f"{job_id} has reported nothing{' of these' if names else ''} yet", err=True)
    show(series, output, key="series", columns=COLUMNS, name=lambda s: s.name)
