"""`job why`: the story of a job from its timeline alone (P10)."""

from holdfast_coordinator.core.model import Scope
from holdfast_coordinator.core.story import tell
from tests.core.builders import key, leading, running, spec


def story(cluster, most=10):
    return tell([entry for entry in cluster.timeline if entry.job_id == "j1"], most)


def fall(cluster, culprit, others, attempt=1, at_step=20):
    cluster.exited(key(culprit, attempt), signal=9, at_step=at_step)
    for rank in others:
        cluster.exited(key(rank, attempt), signal=15, at_step=at_step)


def come_back(cluster, ranks, attempt=2):
    cluster.tick(500)
    for rank in ranks:
        cluster.started(key(rank, attempt))


def test_a_gang_that_fell_and_came_back():
    cluster = running(3, backoff_ms=500)
    cluster.commit(15)
    fall(cluster, 1, [0, 2])
    (incident,) = story(cluster).incidents
    assert (incident.attempt, incident.rank, incident.node) == (1, 1, "a")
    assert incident.cause == "rank 1 on node a: killed by signal 9 at step 20"
    assert incident.fell == "ranks 0, 2 stopped"
    assert incident.decided == "restarts from step 15 (restart 1 of 50 without progress, in 0.5 s)"
    assert incident.cost == ""
    come_back(cluster, range(3))
    (incident,) = story(cluster).incidents
    assert incident.cost == "all 3 ranks are up again after 0.5 s; 5 steps are done again"


def test_the_culprit_is_named_although_its_victim_was_heard_of_first():
    cluster = running(2)
    cluster.now += 1_000
    cluster.exited(key(0), 1)
    cluster.now -= 400
    cluster.exited(key(1), signal=11)
    (incident,) = story(cluster).incidents
    assert (incident.rank, incident.fell) == (1, "rank 0 fell with it")
    assert cluster.gang().cause == "rank 1 on node a: killed by signal 11"


def test_ranks_that_restart_alone_have_each_their_own():
    cluster = running(2, Scope.RANK, backoff_ms=500)
    fall(cluster, 1, [])
    fall(cluster, 0, [])
    come_back(cluster, [0])
    first, second = story(cluster).incidents
    assert (first.rank, first.cost) == (1, "")
    assert (second.rank, second.cost) == (0, "it is up again after 0.5 s; 20 steps are done again")


def test_a_job_that_was_given_up():
    cluster = running(2, budget=0)
    fall(cluster, 0, [1])
    (incident,) = story(cluster).incidents
    assert incident.decided == "the job ends"
    assert (incident.attempt, incident.rank, incident.fell) == (1, 0, "rank 1 stopped")


def test_the_newest_are_told_and_the_older_are_counted():
    cluster = running(1, Scope.RANK, backoff_ms=0)
    for attempt in range(1, 6):
        cluster.exited(key(0, attempt), 1, at_step=attempt)
        cluster.started(key(0, attempt + 1))
    told = story(cluster, most=2)
    assert (told.left_out, [incident.attempt for incident in told.incidents]) == (3, [4, 5])


def test_what_ended_nothing_is_noted():
    cluster = leading()
    cluster.submit(spec(1))
    (note,) = story(cluster).notes
    assert note.kind == "JobWaiting"
