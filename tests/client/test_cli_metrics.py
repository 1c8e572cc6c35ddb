# ruff: noqa: F401, F811  fixtures are imported by name
"""`holdfast job metrics`: curves in a table."""

import json
import textwrap

import pytest

from holdfast.cli.sparkline import BARS, sparkline
from holdfast.v1 import job_pb2
from tests.client.scripted import coordinator, holdfast

JOB = "k7m2p9xq4w"


def series(name, values):
    found = job_pb2.MetricSeries(name=name)
    for step, value in enumerate(values, 1):
        found.points.add(step=step * 10, value=value).at.FromMilliseconds(1_700_000_000_000 + step * 1_000)
    return found


def test_curves_in_a_table(coordinator, holdfast):
    coordinator.curves = [series("goodput", [0.5, 0.9]), series("loss", [2.0, 1.0, 0.5, 0.25])]
    assert holdfast("job", "metrics", JOB).stdout == textwrap.dedent(
        """\
        METRIC   LAST  AT STEP  LEAST  MOST  CURVE
        goodput  0.9   20       0.5    0.9   ▁█
        loss     0.25  40       0.25   2     █▄▂▁
        """
    )
    assert holdfast("job", "metrics", JOB, "-o", "name").stdout == "goodput\nloss\n"


def test_curves_as_messages(coordinator, holdfast):
    coordinator.curves = [series("loss", [2.0])]
    found = json.loads(holdfast("job", "metrics", JOB, "loss", "--points", "9", "-o", "json").stdout)
    assert found["series"][0]["points"] == [{"at": "2023-11-14T22:13:21Z", "step": "10", "value": 2.0}]
    assert coordinator.asked("GetJobMetrics") == [
        job_pb2.GetJobMetricsRequest(job_id=JOB, names=["loss"], max_points=9)
    ]


def test_a_job_without_curves(coordinator, holdfast):
    result = holdfast("job", "metrics", JOB, "loss")
    assert "has reported nothing of these yet" in result.stderr


@pytest.mark.parametrize(
    ("values", "drawn"),
    [([], ""), ([3], BARS[0]), ([1, 1, 1], BARS[0] * 3), (list(range(8)), BARS), (list(range(16)), BARS)],
)
def test_a_curve_in_one_line(values, drawn):
    assert sparkline(values, 8) == drawn
