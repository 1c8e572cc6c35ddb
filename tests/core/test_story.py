"""`job why`: the story of a job from its timeline alone (P10)."""

from holdfast_coordinator.core.jobspec import Action, HangAction, HangPolicy, Rule, Scope
from holdfast_coordinator.core.model import Output
from holdfast_coordinator.core.story import tell
from tests.core.builders import hang, key, leading, running, spec


def story(cluster, most=10):
    alone = cluster.job().spec.restart.scope is Scope.RANK
    return tell([entry for entry in cluster.timeline if entry.job_id == "j1"], most, alone=alone)


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
    assert (incident.attempt, incident.rank, incident.of_rank, incident.node) == (1, 1, None, "a")
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


def test_of_a_gang_that_hung_who_differs_is_named_with_its_stack():
    cluster = running(3, hang=HangPolicy(HangAction.RESTART))
    for rank, where in ((1, "barrier"), (2, "load_data"), (0, "barrier")):
        cluster.hung(key(rank), hang(where=where), evidence=f"stack of {rank}")
    cluster.now += 500
    fall(cluster, 1, [0, 2])
    (incident,) = story(cluster).incidents
    assert incident.rank == 0
    assert incident.cause.startswith("rank 0 on node a: killed by signal 15, while it hung in section step")
    assert incident.cause.endswith("; of those that hang, rank 2 is in load_data, most are in barrier")
    assert incident.evidence == "rank 2:\nstack of 2\nrank 0:\nstack of 0"


def test_ranks_that_restart_alone_have_each_their_own():
    cluster = running(2, Scope.RANK, backoff_ms=500)
    fall(cluster, 1, [])
    fall(cluster, 0, [])
    come_back(cluster, [0])
    first, second = story(cluster).incidents
    assert (first.rank, first.cost) == (1, "")
    assert (second.rank, second.cost) == (0, "it is up again after 0.5 s; 20 steps are done again")
    assert (first.of_rank, second.of_rank) == (1, 0)


def test_who_restarts_because_of_another_is_named_too():
    cluster = running(2, Scope.RANK, rules=(Rule(Action.RESTART_GANG),))
    fall(cluster, 1, [0])
    told = [(incident.of_rank, incident.cause) for incident in story(cluster).incidents]
    cause = "rank 1 on node a: killed by signal 9 at step 20"
    assert told == [(1, cause), (0, f"{cause}; rule 1 of the spec says restart gang")]


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


def test_the_evidence_is_that_of_the_culprit():
    cluster = running(2)
    cluster.exited(key(1), 1, output=Output("Traceback\nValueError: no"))
    cluster.exited(key(0), 1, output=Output("ConnectionResetError"), line="ConnectionResetError")
    (incident,) = story(cluster).incidents
    assert (incident.rank, incident.evidence) == (1, "Traceback\nValueError: no")


def test_of_one_that_hung_the_evidence_is_what_was_found_then():
    cluster = running(2, hang=HangPolicy(HangAction.RESTART))
    cluster.hung(key(1), hang(), evidence="its stack")
    cluster.now += 1_000
    for rank in (0, 1):
        cluster.exited(key(rank), signal=9)
    (incident,) = story(cluster).incidents
    assert (incident.rank, incident.evidence) == (1, "its stack")
    assert incident.cause.endswith("stopped because it hung in section step")
