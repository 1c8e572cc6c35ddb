# ruff: noqa: F401, F811  fixtures are imported by name
"""`holdfast job delete` and `job purge`."""

from datetime import timedelta

import pytest
from google.rpc import code_pb2

from holdfast.cli import delete as delete_module
from holdfast.cli.exits import EXIT
from holdfast.client import Client
from holdfast.v1 import job_pb2
from tests.client.fake_coordinator import status
from tests.client.scripted import ago, coordinator, holdfast, make_job

DAY = 86_400
JOB = "k7m2p9xq4w"
SUCCEEDED, FAILED = job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED


@pytest.fixture
def five(coordinator):
    """Two old jobs, one that has just ended, one that runs, and one of another name."""
    for job_id, state, days, name in (
        ("old-good", SUCCEEDED, 9, "digits"),
        ("old-bad", FAILED, 8, "digits"),
        ("new-good", SUCCEEDED, 1, "digits"),
        ("live", job_pb2.JOB_STATE_RUNNING, None, "digits"),
        ("other", job_pb2.JOB_STATE_STOPPED, 9, "sweep-1"),
    ):
        job = coordinator.add_job(make_job(job_id, state, reason="so"))
        job.spec.name = name
        if days is not None:
            job.finished_at.CopyFrom(ago(days * DAY + 60))
    return coordinator


@pytest.mark.parametrize(
    ("words", "purged"),
    [
        (["--older-than", "7d"], ["old-good", "old-bad", "other"]),
        (["--older-than", "0"], ["old-good", "old-bad", "new-good", "other"]),
        (["--older-than", "7d", "--status", "succeeded"], ["old-good"]),
        (["--older-than", "7d", "--status", "succeeded,failed"], ["old-good", "old-bad"]),
        (["--older-than", "7d", "--name", "sweep-*"], ["other"]),
        (["--older-than", "30d"], []),
    ],
    ids=" ".join,
)
def test_what_is_purged(five, holdfast, words, purged):
    before = list(five.jobs)
    done = holdfast("job", "purge", *words, "--dry-run", "-o", "name")
    assert (done.exit_code, done.stdout.split(), list(five.jobs)) == (EXIT.OK, purged, before)
    done = holdfast("job", "purge", *words, "--yes", "-o", "name")
    assert (done.exit_code, done.stdout.split()) == (EXIT.OK, purged)
    assert set(five.jobs) == set(before) - set(purged)
    assert done.stderr.endswith(f"{len(purged)} {'job' if len(purged) == 1 else 'jobs'} deleted\n")


def test_purged_jobs_as_a_table(five, holdfast):
    done = holdfast("job", "purge", "--older-than", "7d", "--dry-run")
    assert done.stdout.splitlines()[:2] == [
        "JOB       NAME     STATE      ENDED  REASON",
        "old-good  digits   succeeded  9d     so",
    ]


def test_without_a_terminal_it_wants_a_yes(five, holdfast):
    done = holdfast("job", "purge", "--older-than", "7d")
    assert done.exit_code == EXIT.USAGE
    assert "there is no terminal to ask on; look with --dry-run, then give --yes" in done.stderr
    assert len(five.jobs) == 5


@pytest.mark.parametrize(("answer", "left"), [(True, 2), (False, 5)])
def test_on_a_terminal_it_asks(five, holdfast, monkeypatch, answer, left):
    asked = []
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    monkeypatch.setattr(delete_module.click, "confirm", lambda text, **_: asked.append(text) or answer)
    done = holdfast("job", "purge", "--older-than", "7d")
    assert asked == ["Delete 3 of them, with their logs?"]
    assert "old-bad  digits  failed 8d ago\n" in done.stderr
    assert len(five.jobs) == left
    assert done.exit_code == (EXIT.OK if answer else EXIT.FAILED)


def test_one_that_was_begun_again_meanwhile_is_left(five, holdfast):
    five.fail("DeleteJob", status(code_pb2.FAILED_PRECONDITION, "job old-good is running"))
    done = holdfast("job", "purge", "--older-than", "7d", "--yes", "-o", "name")
    assert (done.exit_code, done.stdout.split()) == (EXIT.OK, ["old-bad", "other"])
    assert done.stderr == "old-good was left: job old-good is running\n2 jobs deleted\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "Missing option '--older-than'"),
        (["--older-than", "long"], '"long" is no duration; write e.g.'),
        (
            ["--older-than", "1d", "--status", "failed,running"],
            '"running" is none of succeeded, failed, stopped; jobs that have not ended are never purged',
        ),
    ],
)
def test_a_purge_that_cannot_be(five, holdfast, words, sentence):
    done = holdfast("job", "purge", *words, "--yes")
    assert done.exit_code == EXIT.USAGE
    assert sentence in done.stderr
    assert len(five.jobs) == 5


async def test_the_client_never_purges_what_lives(five):
    async with Client(five.target) as client:
        with pytest.raises(ValueError, match="never purged"):
            await client.purge_jobs(older_than=timedelta(), states=[job_pb2.JOB_STATE_RUNNING])
        assert await client.purge_jobs(older_than=timedelta(), states=[]) == []
        five.fail("DeleteJob", status(code_pb2.FAILED_PRECONDITION, "job old-good is running"))
        purged = await client.purge_jobs(older_than=timedelta(days=7), name="d*")
    assert [job.id for job in purged] == ["old-bad"]
    assert five.jobs.keys() == {"old-good", "new-good", "live", "other"}


@pytest.mark.parametrize("force", [False, True])
def test_stopping_first(coordinator, holdfast, force):
    coordinator.add_job(make_job())
    coordinator.watched = [make_job(), make_job(state=job_pb2.JOB_STATE_STOPPED)]
    done = holdfast("job", "delete", JOB, "--stop-first", *(["--force"] if force else []))
    assert (done.exit_code, done.stderr) == (EXIT.OK, f"{JOB} deleted\n")
    assert [method for method, _ in coordinator.requests if method != "GetJob"] == [
        "StopJob",
        "WatchJob",
        "DeleteJob",
    ]
    assert [request.force for request in coordinator.asked("StopJob")] == [force]


def test_waiting_first(coordinator, holdfast):
    coordinator.add_job(make_job())
    coordinator.watched = [make_job(), make_job(state=SUCCEEDED)]
    assert holdfast("job", "delete", JOB, "--wait").exit_code == EXIT.OK
    assert coordinator.asked("StopJob") == []
    assert coordinator.jobs == {}


def test_what_does_not_stop_in_time_is_not_deleted(coordinator, holdfast):
    coordinator.add_job(make_job())
    coordinator.watched = [make_job()]
    coordinator.hold.clear()
    done = holdfast("job", "delete", JOB, "--stop-first", "--timeout", "50ms")
    assert done.exit_code == EXIT.TIMEOUT
    assert done.stderr == ("Error: not all of them have ended within the timeout; they are still stopping\n")
    assert coordinator.asked("DeleteJob") == []


def test_the_others_are_deleted_when_one_cannot_be(coordinator, holdfast):
    coordinator.add_job(make_job("bb"))
    done = holdfast("job", "delete", "aa", "bb", "cc")
    assert done.exit_code == EXIT.NOT_FOUND
    assert sorted(done.stderr.splitlines()) == [
        "Error: there is no job aa; list the jobs to see their ids",
        "Error: there is no job cc; list the jobs to see their ids",
        "bb deleted",
    ]


@pytest.mark.parametrize(
    "words", [["--force"], ["--timeout", "1s"], ["--stop-first", "--wait"], ["--wait", "--timeout", "soon"]]
)
def test_a_delete_that_cannot_be(coordinator, holdfast, words):
    coordinator.add_job(make_job())
    assert holdfast("job", "delete", JOB, *words).exit_code == EXIT.USAGE
    assert coordinator.requests == []
