"""What a plan says is what is done when the job is submitted, and nothing is changed by it."""

from hypothesis import given
from hypothesis import strategies as st

from holdfast_coordinator.core.jobspec import Resources, Scope
from holdfast_coordinator.core.model import JobState
from holdfast_coordinator.core.plan import plan
from tests.core.builders import leading, spec

specs = st.builds(
    lambda world, scope, gpus, cpus: spec(world, scope, resources=Resources(cpus=cpus, gpus=gpus)),
    st.integers(1, 6),
    st.sampled_from(Scope),
    st.integers(0, 2),
    st.sampled_from([0.0, 1.5, 5.0]),
)


@given(st.integers(0, 3), st.lists(specs, max_size=2), specs, st.booleans())
def test_a_plan_is_kept(nodes, before, wanted, cordons):
    cluster = leading(*"abc"[:nodes])
    for number, each in enumerate(before):
        cluster.submit(each, f"before-{number}")
    if cordons and nodes:
        cluster.cordon("a")
    rows = list(cluster.state.rows())
    made = plan(cluster.state, wanted)
    assert list(cluster.state.rows()) == rows
    cluster.submit(wanted)
    workers = cluster.state.workers_of(cluster.job())
    if made.spots:
        assert [(s.rank, s.node, s.gpus) for s in made.spots] == [(w.rank, w.node, w.gpus) for w in workers]
    else:
        assert cluster.job().state is JobState.PENDING
        assert cluster.job().reason == made.waits
