"""Plans of jobs, as part of `codec`."""

import itertools

from holdfast.v1 import job_pb2
from holdfast_coordinator import codec
from holdfast_coordinator.core import jobspec
from holdfast_coordinator.core.plan import Plan


def plan_to_proto(spec: jobspec.JobSpec, made: Plan) -> job_pb2.JobPlan:
    """Write where a job would be placed."""
    on_node: dict[str, itertools.count[int]] = {}
    return job_pb2.JobPlan(
        spec=codec.spec_to_proto(spec),
        ranks=[
            job_pb2.PlannedRank(
                rank=spot.rank,
                node=spot.node,
                local_rank=next(on_node.setdefault(spot.node, itertools.count())),
                gpus=spot.gpus,
            )
            for spot in made.spots
        ],
        waits=made.waits,
    )
