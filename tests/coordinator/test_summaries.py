"""What is durable shows in a summary at once; what ranks report, within a moment that grows with their number."""

from types import SimpleNamespace

from holdfast_coordinator.core.model import Progress
from holdfast_coordinator.rpc import summaries
from tests.core.builders import key, running, spec


class Engine:
    """As much of one as sums need."""

    def __init__(self, now):
        self.clock = SimpleNamespace(now=lambda: self.now)
        self.now, self.steps, self.reads = now, 1, 0

    def running(self, job, workers):
        self.reads += 1
        return {w.rank: Progress(step=self.steps, steps_done=self.steps) for w in workers}


def sums(cluster, found):
    return found.of(cluster.state, cluster.job())


def test_who_asks_again_at_once_is_told_the_same():
    cluster = running(4)
    engine = Engine(cluster.now)
    found = summaries.Summaries(engine)
    assert sums(cluster, found).steps == 1
    engine.steps, engine.now = 2, engine.now + 1
    assert sums(cluster, found).steps == 1
    assert engine.reads == 1
    engine.now += int(4 * summaries.KEPT_MS_A_RANK)
    assert sums(cluster, found).steps == 2


def test_a_row_that_changes_is_seen_at_once():
    cluster = running(4)
    engine = Engine(cluster.now)
    found = summaries.Summaries(engine)
    assert not sums(cluster, found).HasField("last_committed_step")
    for rank in range(4):
        cluster.prepare(key(rank), 10)
    assert sums(cluster, found).last_committed_step == 10


def test_only_those_of_the_newest_jobs_are_kept(monkeypatch):
    monkeypatch.setattr(summaries, "MOST", 2)
    cluster = running(4)
    engine = Engine(cluster.now)
    found = summaries.Summaries(engine)
    for name in ("j2", "j3"):
        cluster.submit(spec(4), job=name)
    for job in cluster.state.jobs.values():
        found.of(cluster.state, job)
    engine.steps = 2
    newest = [found.of(cluster.state, job).steps for job in reversed(cluster.state.jobs.values())]
    assert newest == [1, 1, 2]
