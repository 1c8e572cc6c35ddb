"""What is put down of a job, and when."""

from math import nan

from holdfast_coordinator.core.account import summarize
from holdfast_coordinator.core.meter import Meter
from holdfast_coordinator.core.model import Progress
from holdfast_coordinator.core.series import Point
from tests.core.builders import key, running


def measured(meter, cluster, stepping=(0, 1), **ranks):
    """What is new when ranks are so far; "r1" is rank 1."""
    cluster.now += 1_000
    progress = {int(name[1:]): each for name, each in ranks.items()}
    workers = cluster.state.workers_of(cluster.job())
    summary = summarize(cluster.job(), [cluster.gang()], workers, progress, cluster.now)
    newest = {worker.key: progress.get(worker.rank, worker.progress) for worker in workers}
    return meter.measure(cluster.now, summary, newest, {key(rank) for rank in stepping})


def so_far(step, ms_a_step=10, **metrics):
    return Progress(step, step, step * ms_a_step, metrics=metrics)


def test_the_mean_of_the_ranks_at_the_step_that_all_have_reached():
    cluster = running(2)
    found = measured(Meter(), cluster, r0=so_far(10, loss=1.0), r1=so_far(12, loss=2.0))
    assert found["loss"] == Point(cluster.now, 10, 1.5)
    assert found["goodput"].step == 10


def test_throughput_is_by_the_clocks_of_the_ranks():
    """However seldom they are looked at, and whoever of them has not ended a step since."""
    cluster, meter = running(2), Meter()
    assert measured(meter, cluster, r0=so_far(10), r1=so_far(10, 20))["steps_per_second"].value == 150
    found = measured(meter, cluster, r0=Progress(11, 11, 600), r1=so_far(10, 20))
    assert found["steps_per_second"].value == 1 / 0.5 + 50


def test_nothing_new_is_nothing_to_put_down():
    cluster, meter = running(2), Meter()
    ranks = {"r0": so_far(10, loss=1.0), "r1": so_far(10, loss=1.0)}
    assert set(measured(meter, cluster, **ranks)) == {"loss", "goodput", "steps_per_second"}
    assert set(measured(meter, cluster, **ranks)) <= {"goodput"}


def test_ranks_that_are_down_have_no_throughput():
    cluster, meter = running(2), Meter()
    ranks = {"r0": so_far(10), "r1": so_far(10)}
    measured(meter, cluster, **ranks)
    assert measured(meter, cluster, stepping=(0,), **ranks)["steps_per_second"].value == 100
    assert measured(meter, cluster, stepping=(), **ranks)["steps_per_second"].value == 0
    assert "steps_per_second" not in measured(meter, cluster, stepping=(), **ranks)


def test_what_is_no_number_is_a_gap():
    cluster, meter = running(1), Meter()
    assert "loss" in measured(meter, cluster, r0=so_far(10, loss=1.0))
    assert "loss" not in measured(meter, cluster, r0=so_far(11, loss=nan))
    assert "loss" in measured(meter, cluster, r0=so_far(12, loss=1.0))


def test_our_own_names_are_ours():
    cluster = running(1)
    found = measured(Meter(), cluster, r0=so_far(10, goodput=7.0, steps_per_second=7.0))
    assert 0 < found["goodput"].value <= 1
    assert found["steps_per_second"].value == 100
