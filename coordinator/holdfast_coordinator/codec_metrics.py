"""core -> proto: the curves of a job."""

from collections.abc import Mapping, Sequence

from holdfast.v1 import job_pb2
from holdfast_coordinator.codec_values import timestamp
from holdfast_coordinator.core.series import Point


def metrics_to_proto(series: Mapping[str, Sequence[Point]]) -> job_pb2.GetJobMetricsResponse:
    """Write the curves of a job."""
    return job_pb2.GetJobMetricsResponse(
        series=[
            job_pb2.MetricSeries(name=name, points=[_point(point) for point in points])
            for name, points in series.items()
        ]
    )


def _point(point: Point) -> job_pb2.MetricPoint:
    return job_pb2.MetricPoint(at=timestamp(point.at_ms), step=point.step, value=point.value)
