"""The link: what is prepared is said until it is answered, whatever happens to the agent."""

import os
import threading

import pytest

from holdfast.v1 import worker_pb2
from holdfast.worker.manifest import Shard
from holdfast.worker.session import Link
from tests.client.fake_agent import PATIENCE


def shard(rank=0):
    return Shard(rank, f"rank-{rank:05}.attempt-1.safetensors", 10, "0" * 16, '[{"epoch":1}]')


@pytest.fixture
def connect(tmp_path):
    links = []

    def make(rank=0, attempt=1, publish=lambda commit, drop: None):
        links.append(Link(str(tmp_path / "worker.sock"), "job-1", rank, attempt, publish))
        return links[-1]

    yield make
    for link in links:
        link.close()


def test_a_shard_is_prepared_and_committed(make_agent, connect):
    agent = make_agent()
    published = []
    link = connect(publish=lambda commit, drop: published.append(commit))
    link.submit(100, shard())
    assert link.wait(100, PATIENCE)
    assert link.committed(100)
    assert not link.committed(101)
    (commit,) = published
    assert (commit.job_id, commit.step, commit.rank, commit.shards) == ("job-1", 100, None, (shard(),))
    assert (agent.hellos, agent.prepares) == ([(0, 1)], [(0, 1, 100)])


def test_a_gang_is_committed_when_all_have_prepared_and_the_lowest_rank_publishes(make_agent, connect):
    make_agent(world_size=2)
    published = []
    links = [
        connect(rank, publish=lambda commit, drop, rank=rank: published.append((rank, commit.step)))
        for rank in (0, 1)
    ]
    links[1].submit(5, shard(1))
    assert not link_answered(links[1], 5)
    links[0].submit(5, shard(0))
    assert all(link.wait(5, PATIENCE) for link in links)
    assert published == [(0, 5)]


def link_answered(link, step):
    return link.wait(step, 0)


def test_prepares_are_said_again_after_a_reconnect_until_they_are_answered(make_agent, connect):
    agent = make_agent()
    agent.silent = True
    link = connect()
    link.submit(100, shard())
    agent.wait_for(lambda: agent.prepares == [(0, 1, 100)])
    agent.drop()
    agent.wait_for(lambda: agent.prepares == [(0, 1, 100)] * 2)
    assert agent.hellos == [(0, 1)] * 2
    agent.speak()
    assert link.wait(100, PATIENCE)
    agent.drop()
    agent.wait_for(lambda: len(agent.hellos) == 3)
    link.submit(200, shard())
    assert link.wait(200, PATIENCE)
    assert agent.prepares == [(0, 1, 100)] * 2 + [(0, 1, 200)]


def test_an_agent_that_comes_later_is_found(make_agent, connect):
    link = connect()
    link.submit(100, shard())
    assert not link_answered(link, 100)
    make_agent()
    assert link.wait(100, PATIENCE)


def test_an_agent_that_was_restarted_is_found(make_agent, connect, tmp_path):
    first = make_agent()
    first.silent = True
    link = connect()
    link.submit(100, shard())
    first.wait_for(lambda: first.prepares)
    first.stop_listening()
    first.drop()
    os.unlink(first.path)
    second = make_agent()
    assert link.wait(100, PATIENCE)
    assert second.prepares == [(0, 1, 100)]


def test_a_refusal_ends_the_wait_and_is_reported(make_agent, connect, capfd):
    agent = make_agent()
    agent.refuse = "attempt 1 is superseded"
    link = connect()
    link.submit(100, shard())
    assert link.wait(100, PATIENCE)
    agent.refuse = None
    link.submit(200, shard())
    assert link.wait(200, PATIENCE)
    assert link.committed(200)
    assert (
        capfd.readouterr().err
        == "holdfast: the checkpoint of step 100 was refused: attempt 1 is superseded\n"
    )


def test_a_refusal_of_another_step_answers_nothing(make_agent, connect, capfd):
    agent = make_agent()
    agent.silent = True
    link = connect()
    link.submit(200, shard())
    agent.wait_for(lambda: agent.prepares)
    agent.say(0, 1, worker_pb2.WorkerReply(refused=worker_pb2.Refused(step=100, reason="late")))
    agent.drop()
    agent.wait_for(lambda: agent.prepares == [(0, 1, 200)] * 2)
    assert capfd.readouterr().err == ""


def test_a_newer_shard_takes_the_place_of_one_without_an_answer(make_agent, connect, capfd):
    agent = make_agent()
    agent.silent = True
    published = []
    link = connect(publish=lambda commit, drop: published.append(commit.step))
    for step in (100, 200):
        link.submit(step, shard())
        agent.wait_for(lambda step=step: (0, 1, step) in agent.prepares)
    agent.drop()
    agent.wait_for(lambda: len(agent.prepares) == 3)
    assert agent.prepares[2] == (0, 1, 200)
    assert not link_answered(link, 200)
    agent.speak()  # both were committed meanwhile
    assert link.wait(200, PATIENCE)
    assert published[:2] == [100, 200]
    assert capfd.readouterr().err == ""


def test_a_late_commit_answers_what_is_older(make_agent, connect):
    agent = make_agent()
    agent.silent = True
    link = connect()
    link.submit(100, shard())
    agent.wait_for(lambda: agent.prepares)
    agent.say(0, 1, worker_pb2.WorkerReply(committed=worker_pb2.Committed(step=200)))
    assert link.wait(100, PATIENCE)


def test_an_ack_that_is_heard_twice_does_no_harm(make_agent, connect):
    agent = make_agent()
    link = connect()
    link.submit(100, shard())
    assert link.wait(100, PATIENCE)
    agent.silent = True
    link.submit(200, shard())
    agent.wait_for(lambda: len(agent.prepares) == 2)
    agent.say(0, 1, worker_pb2.WorkerReply(committed=worker_pb2.Committed(step=100)))
    assert not link_answered(link, 200)
    agent.speak()
    assert link.wait(200, PATIENCE)


def test_a_manifest_that_cannot_be_written_is_reported_and_the_commit_stands(make_agent, connect, capfd):
    def publish(commit, drop):
        raise OSError(28, "No space left on device")

    make_agent()
    link = connect(publish=publish)
    link.submit(100, shard())
    assert link.wait(100, PATIENCE)
    assert link.committed(100)
    assert "the manifest of step 100 could not be written" in capfd.readouterr().err


def test_what_to_resume_from_comes_with_the_welcome(make_agent, connect):
    agent = make_agent()
    first = connect()
    assert first.resume(PATIENCE) is None
    first.submit(100, shard())
    assert first.wait(100, PATIENCE)
    second = connect(attempt=2)
    commit = second.resume(PATIENCE)
    assert (commit.step, commit.attempt, commit.shards) == (100, 1, (shard(),))
    assert agent.hellos == [(0, 1), (0, 2)]


def test_without_an_agent_the_question_what_to_resume_from_times_out(connect):
    with pytest.raises(TimeoutError):
        connect().resume(0.01)


@pytest.mark.parametrize("noise", [b"\xff" * 10, b"\x03\xff\xff\xff"])
def test_noise_on_the_line_ends_the_connection_and_not_the_link(make_agent, connect, noise):
    agent = make_agent()
    link = connect()
    assert link.resume(PATIENCE) is None
    agent.say_raw(noise)
    agent.wait_for(lambda: len(agent.hellos) == 2)
    link.submit(100, shard())
    assert link.wait(100, PATIENCE)


def test_closing_ends_the_thread(make_agent, connect):
    make_agent()
    before = {thread for thread in threading.enumerate() if thread.name == "holdfast-link"}
    link = connect()
    assert link.resume(PATIENCE) is None
    (thread,) = {thread for thread in threading.enumerate() if thread.name == "holdfast-link"} - before
    link.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
