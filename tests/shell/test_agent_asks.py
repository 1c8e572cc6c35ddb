"""What an agent passes on of requests to stop, between a coordinator and real workers; and its own notices."""

import asyncio
import signal
from pathlib import Path

import pytest

import holdfast_agent.__main__
from holdfast.heartbeat import Writer
from holdfast.v1 import agent_pb2, worker_pb2
from holdfast_agent.agent import Agent, AgentConfig
from holdfast_agent.notices import NoticeFile
from tests.agent.fake_coordinator import key, release, soon, start, stop
from tests.shell.test_agent_session import FOREVER, Worker


def ask(*keys, at_step=None, within_ms=60_000):
    notice = worker_pb2.StopNotice(reason="job stop", within_ms=within_ms, at_step=at_step)
    return agent_pb2.AskStop(keys=keys, notice=notice)


@pytest.fixture
async def session(coordinator, agent):
    return await coordinator.session()


@pytest.fixture
def connect(agent):
    workers = []

    def make():
        workers.append(Worker(agent._link.path))
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()


async def test_for_a_program_without_the_library_the_agent_says_so(session):
    session.say(start_workers=start(*FOREVER))
    await session.heard("worker_started")
    session.say(ask_stop=ask(key()))
    answered = await session.heard("stop_answered")
    assert answered.key == key()
    assert not answered.HasField("answer")


async def test_a_worker_hears_and_is_heard(session, connect):
    session.say(start_workers=start(*FOREVER))
    await session.heard("worker_started")
    worker = connect()
    worker.hello()
    assert (await worker.reply()).HasField("welcome")
    session.say(ask_stop=ask(key()))
    told = (await worker.reply()).stop
    assert told.reason == "job stop"
    assert 0 < told.within_ms <= 60_000
    assert not told.HasField("at_step")
    worker.say(stop_answer=worker_pb2.StopAnswer(step=7, leaves=True))
    answered = await session.heard("stop_answered")
    assert (answered.answer.step, answered.answer.leaves) == (7, True)
    session.say(ask_stop=ask(key(), at_step=8))
    assert (await worker.reply()).stop.at_step == 8
    again = connect()  # its connection broke
    again.hello()
    assert (await again.reply()).HasField("welcome")
    assert (await again.reply()).stop.at_step == 8


async def test_one_that_listens_is_waited_for_by_the_next_agent(session, connect, tmp_path):
    """It was connected to the agent before, and its page says so: it comes back."""
    session.say(start_workers=start(*FOREVER))
    await session.heard("worker_started")
    Writer(str(tmp_path / "state" / "jobs" / "job1" / "0-1" / "heartbeat")).listens()
    session.say(ask_stop=ask(key()))
    await session.settled()
    assert session.count("stop_answered") == 0
    worker = connect()
    worker.hello()
    assert (await worker.reply()).HasField("welcome")
    assert (await worker.reply()).HasField("stop")


async def test_a_notice_is_told_and_is_part_of_every_hello(coordinator, tmp_path, mark):
    notice = tmp_path / "notice"
    config = AgentConfig(
        coordinator.target, tmp_path / "state", name="node-a", slots=4, notices=(NoticeFile(notice, 500),)
    )
    agent = Agent(config)
    running = asyncio.create_task(agent.run())
    try:
        session = await coordinator.session()
        assert not session.hello.HasField("notice")
        notice.write_text("rack 7 loses power")
        told = await session.heard("node_notice")
        assert told.reason == "spot notice: rack 7 loses power"
        assert 0 < told.within.ToSeconds() <= 500
        session.end()
        again = await coordinator.session()
        assert again.hello.notice.reason == told.reason
        assert again.hello.notice.within.ToMilliseconds() <= told.within.ToMilliseconds()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await agent.stop(workers=True)


@pytest.mark.parametrize("hurried", [False, True])
async def test_an_agent_that_is_told_to_end_waits_for_its_workers_unless_it_is_hurried(
    coordinator, tmp_path, mark, hurried
):
    config = AgentConfig(coordinator.target, tmp_path / "state", name="node-a", slots=4)
    stopping, at_once = asyncio.Event(), asyncio.Event()
    serving = asyncio.create_task(
        holdfast_agent.__main__.serve(config, stop=stopping, at_once=at_once, drain_s=500)
    )
    session = await coordinator.session()
    session.say(start_workers=start(*FOREVER))
    started = await session.heard("worker_started")
    stopping.set()
    assert (await session.heard("node_notice")).reason == "its agent was told to end"
    assert not serving.done()
    if hurried:
        at_once.set()
    else:
        session.say(stop_workers=stop(key()))
        ended = await session.heard("worker_exited")
        assert ended.exit.status.signal == signal.SIGTERM
        session.say(release_workers=release(key()))
    await soon(serving)
    assert not Path(f"/proc/{started.pid}").exists()
