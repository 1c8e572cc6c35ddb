"""What `holdfast job submit --dry-run` prints."""

from collections.abc import Sequence

import click

from holdfast.cli.common import printable, short_size, show_data, show_table, to_dict
from holdfast.v1 import job_pb2


def show_plan(plan: job_pb2.JobPlan, form: str) -> None:
    """Print where the ranks would be placed, or what they would wait for, and the data sets as they were counted."""
    if form in ("json", "yaml"):
        show_data(to_dict(plan), form)
        return
    nodes: dict[str, list[job_pb2.PlannedRank]] = {}
    for rank in plan.ranks:
        nodes.setdefault(rank.node, []).append(rank)
    if form == "name":
        for name in nodes:
            click.echo(name)
        return
    if plan.waits:
        click.echo(printable(plan.waits))
    elif form == "wide":
        rows = [[str(r.rank), r.node, str(r.local_rank), numbers(r.gpus)] for r in plan.ranks]
        show_table(["RANK", "NODE", "LOCAL RANK", "GPUS"], rows)
    else:
        rows = [
            [
                name,
                str(len(there)),
                numbers([r.rank for r in there]),
                numbers([g for r in there for g in r.gpus]),
            ]
            for name, there in nodes.items()
        ]
        show_table(["NODE", "WORKERS", "RANKS", "GPUS"], rows)
    if plan.spec.datasets:
        click.echo()
        show_table(["DATA", "SHARDS", "SAMPLES", "SIZE", "WHERE"], map(_dataset, plan.spec.datasets))


def _dataset(found: job_pb2.DataSet) -> list[str]:
    samples = sum(shard.samples for shard in found.shards)
    size = sum(shard.size_bytes for shard in found.shards)
    return [found.name, str(len(found.shards)), str(samples), short_size(size), found.uri]


def numbers(found: Sequence[int]) -> str:
    """Some numbers in few characters: 0-3,5; or a dash."""
    spans: list[list[int]] = []
    for number in sorted(found):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans) or "-"
