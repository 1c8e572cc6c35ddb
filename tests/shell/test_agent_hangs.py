"""An agent and workers that hang: what is told, until it is noted, also by the next agent; and who is let be."""

import json
import os
import signal

import pytest

from holdfast.heartbeat import Writer
from holdfast.v1 import agent_pb2, job_pb2
from holdfast_agent import hangs
from tests.agent.fake_coordinator import key, start, stop
from tests.agent.processes import line_of
from tests.shell.test_agent_restart import killed, launch, started  # noqa: F401

FOREVER = ("sleep", "1000")


def policy(action=job_pb2.HANG_ACTION_NOTIFY, **limits_ms):
    made = job_pb2.HangPolicy(action=action)
    for section, limit in limits_ms.items():
        made.limits[section].FromMilliseconds(limit)
    return made


@pytest.fixture
async def session(coordinator, agent, monkeypatch):
    monkeypatch.setattr(hangs, "LOOK_NS", 10_000_000)
    return await coordinator.session()


@pytest.fixture
def page(tmp_path):
    """The page of rank 0, which a test writes in its place."""
    made = []

    def page():
        made.append(Writer(str(tmp_path / "state/jobs/job1/0-1/heartbeat")))
        return made[0]

    yield page
    for writer in made:
        writer.close()


def note(hung):
    return agent_pb2.NoteHang(key=hung.key, since_ns=hung.since_ns, over=hung.over)


async def test_a_hang_is_told_in_every_session_until_it_is_noted_and_so_is_its_end(
    coordinator, session, page
):
    session.say(start_workers=start(*FOREVER, hang=policy(step=50)))
    pid = (await session.heard("worker_started")).pid
    writer = page()
    writer.step(7)
    hung = await session.heard("worker_hung")
    assert (hung.key, hung.section, hung.step, hung.over) == (key(), "step", 7, False)
    assert (hung.limit.ToMilliseconds(), hung.learned, hung.stopped) == (50, False, False)
    assert hung.silent.ToMilliseconds() >= 50
    assert f"\n{pid} sleep: S (sleeping)" in hung.evidence
    session.end()
    session = await coordinator.session()
    again = await session.heard("worker_hung")
    assert again == hung
    session.say(note_hang=note(hung))
    writer.section("export")
    over = await session.heard("worker_hung")
    assert (over.since_ns, over.over, over.section, over.evidence) == (hung.since_ns, True, "step", "")
    assert over.silent.ToMilliseconds() >= hung.silent.ToMilliseconds()
    session.end()
    session = await coordinator.session()
    assert await session.heard("worker_hung") == over
    session.say(note_hang=note(over))
    session.end()
    session = await coordinator.session()
    await session.settled()
    assert session.count("worker_hung") == 0


async def test_a_note_of_a_deposed_leader_is_none(coordinator, session, page):
    session.say(start_workers=start(*FOREVER, hang=policy(step=50)))
    await session.heard("worker_started")
    page().step(7)
    hung = await session.heard("worker_hung")
    coordinator.epoch = 2
    session.end()
    session = await coordinator.session()
    await session.heard("worker_hung")
    session.say(epoch=1, note_hang=note(hung))
    await session.settled()
    session.end()
    session = await coordinator.session()
    assert (await session.heard("worker_hung")).since_ns == hung.since_ns


async def test_who_is_being_stopped_or_not_to_be_looked_at_does_not_hang(session, page, tmp_path):
    off = policy(job_pb2.HANG_ACTION_OFF, setup=50)
    session.say(start_workers=start(*FOREVER, job_id="off", hang=off))
    session.say(
        start_workers=start("sh", "-c", "trap '' TERM; echo up; exec sleep 1000", hang=policy(step=50))
    )
    await line_of(tmp_path / "state/jobs/job1/0-1/stdout.log")
    session.say(stop_workers=stop(key()))
    await session.settled()
    page().step(7)
    session.say(start_workers=start(*FOREVER, job_id="witness", hang=policy(setup=300)))
    assert (await session.heard("worker_hung")).key.job_id == "witness"
    assert session.count("worker_hung") + session.count("worker_hung", "off") == 0


async def test_a_file_that_is_only_touched_counts_if_the_spec_says_so(session, tmp_path):
    touching = "touch $HOLDFAST_HEARTBEAT_FILE; echo up; exec sleep 1000"
    session.say(start_workers=start("sh", "-c", touching, job_id="job2"))
    session.say(start_workers=start("sh", "-c", touching, hang=policy(touch=50)))
    hung = await session.heard("worker_hung")
    assert (hung.key, hung.section, hung.HasField("step")) == (key(), "touch", False)
    session.say(note_hang=note(hung))
    os.utime(tmp_path / "state/jobs/job1/0-1/heartbeat")
    assert (await session.heard("worker_hung")).over
    assert session.count("worker_hung", "job2") == 0


async def test_one_that_is_stopped_by_a_signal_is_told_as_such(session):
    session.say(start_workers=start(*FOREVER, hang=policy(setup=300)))
    started = await session.heard("worker_started")
    os.kill(started.pid, signal.SIGSTOP)
    hung = await session.heard("worker_hung")
    assert (hung.section, hung.stopped) == ("setup", True)
    session.say(stop_workers=stop(key(), force=True))
    ended = await session.heard("worker_exited")
    assert ended.exit.status.signal == signal.SIGKILL


@pytest.mark.parametrize("moves", [True, False])
async def test_the_next_agent_goes_on_where_the_one_before_was_killed(
    coordinator,
    launch,  # noqa: F811
    page,
    tmp_path,
    moves,
):
    agent = launch()
    session = await coordinator.session()
    await started(session, *FOREVER, hang=policy(step=1_000))
    writer = page()
    writer.step(7)
    hung = await session.heard("worker_hung")
    session.say(note_hang=note(hung))
    noted = json.loads((tmp_path / "state/jobs/job1/0-1/hang.json").read_text())
    assert (noted["since_ns"], noted["section"], noted["step"]) == (hung.since_ns, "step", 7)
    await killed(agent)
    if moves:
        writer.section("eval")
    launch()
    session = await coordinator.session()
    again = await session.heard("worker_hung")
    assert (again.since_ns, again.over) == (hung.since_ns, moves)
