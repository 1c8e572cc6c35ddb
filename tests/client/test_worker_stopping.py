"""A worker that is asked to stop: the step that it promises, where it waits, and what it does there."""

import threading
import time

import numpy as np

from holdfast.heartbeat import read
from holdfast.worker import stopping
from holdfast.worker.stopping import Answer, Stop
from tests.client.fake_agent import PATIENCE


def at(step):
    """A loop that is at a step."""
    return Stop(lambda: step)


def test_nobody_who_was_not_asked_stops():
    stop = at(5)
    assert not stop.asked
    assert not stop.reached(5)


def test_it_promises_the_next_step_and_stays_with_that():
    steps = iter([5, 8])
    stop = Stop(lambda: next(steps))
    assert stop.hear("job stop", 30, None) == Answer(6, leaves=False)
    stop.leaves = True
    assert stop.hear("job stop", 30, None) == Answer(6, leaves=True)  # said again
    assert not stop.reached(5)


def test_it_waits_at_the_step_that_it_promised_until_it_is_told_more():
    stop, gone_on = at(5), []
    stop.hear("job stop", 30, None)

    def loop():
        gone_on.extend(stop.reached(step) for step in (6, 7, 8))

    thread = threading.Thread(target=loop)
    thread.start()
    while not stop._changed._waiters:
        time.sleep(0.001)
    assert gone_on == []
    assert stop.hear("job stop", 30, 8) is None
    thread.join(PATIENCE)
    assert gone_on == [False, False, True]


def test_steps_need_not_come_one_by_one():
    stop = at(100)
    stop.hear("job stop", 30, None)
    stop.hear("job stop", 30, 101)
    assert [stop.reached(step) for step in (100, 200)] == [False, True]


def test_who_is_told_nothing_goes_on_and_answers_anew(monkeypatch, capfd):
    monkeypatch.setattr(stopping, "PATIENCE", 0.01)
    step = 5
    stop = Stop(lambda: step)
    stop.hear("job stop", 30, None)
    assert not stop.reached(6)
    assert "training goes on" in capfd.readouterr().err
    step = 9
    assert stop.hear("job stop", 30, 6) == Answer(10, leaves=False)  # 6 was passed: it says so
    assert not stop.reached(9)


def test_it_waits_no_longer_than_it_has():
    stop = at(5)
    stop.hear("job stop", 0, None)
    assert not stop.reached(6)
    assert stop.seconds_left == 0


# The whole way, over the socket


def loop(run, told, *, pause=0.0, every=1_000, looks=True, steps=100_000):
    """A program that does many steps; `told` gets the last one, and why it was that."""
    state = {"x": np.zeros(4)}
    for _ in range(steps):
        state["x"] += 1
        time.sleep(pause)
        step = run.step()
        run.checkpoint(state, every=every)
        if looks and run.should_stop:
            break
    told[run.rank] = step, run.stop_reason, state["x"][0]


def in_threads(*programs):
    threads = [
        threading.Thread(target=program, args=args, kwargs=kwargs) for program, args, kwargs in programs
    ]
    for thread in threads:
        thread.start()
    return threads


def finished(threads):
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)


def test_ranks_that_are_apart_take_their_last_checkpoint_at_one_step(make_agent, start):
    agent, told = make_agent(world_size=3), {}
    runs = [start(agent, rank) for rank in range(3)]
    assert not any(run.should_stop for run in runs), (
        "they look, also a rank that is asked before its first step"
    )
    paces = (0.0005, 0.003, 0.001)
    threads = in_threads(
        *((loop, (run, told), {"pause": pace}) for run, pace in zip(runs, paces, strict=True))
    )
    agent.wait_for(lambda: len(agent.hellos) == 3)
    agent.ask_stop("node drain")
    finished(threads)
    (last,) = {step for step, _, _ in told.values()}
    assert agent.commits[None].step == last
    assert {reason for _, reason, _ in told.values()} == {"node drain"}
    assert all(x == step for step, _, x in told.values())
    assert all(answer.leaves for answer in agent.stop_answers.values())


def test_a_rank_alone_stops_at_once_between_its_checkpoints(make_agent, start):
    agent, told = make_agent(scope="rank"), {}
    threads = in_threads((loop, (start(agent), told), {"pause": 0.001}))
    agent.wait_for(lambda: agent.hellos)
    agent.ask_stop()
    finished(threads)
    assert agent.commits[0].step == told[0][0] == agent.stop_answers[0].step


def test_the_request_comes_before_it_is_connected(make_agent, start):
    agent, told = make_agent(), {}
    agent.ask_stop()
    loop(start(agent), told, pause=0.001)
    assert agent.commits[None].step == told[0][0]


def test_a_connection_that_breaks_before_it_is_decided(make_agent, start):
    agent, told = make_agent(), {}
    agent.undecided = True
    threads = in_threads((loop, (start(agent), told), {"pause": 0.001}))
    agent.wait_for(lambda: agent.hellos)
    agent.ask_stop()
    agent.wait_for(lambda: agent.stop_answers)
    agent.drop()
    agent.wait_for(lambda: len(agent.hellos) == 2)
    agent.decide()
    finished(threads)
    assert agent.commits[None].step == told[0][0] == agent.stop_answers[0].step


def test_who_does_not_look_takes_the_checkpoint_and_says_that_it_does_not(make_agent, start):
    agent, told = make_agent(), {}
    program = (loop, (start(agent), told), {"pause": 0.001, "looks": False, "steps": 1_500})
    threads = in_threads(program)
    agent.wait_for(lambda: agent.hellos)
    agent.ask_stop()
    agent.wait_for(lambda: agent.commits.get(None) is not None)
    assert agent.commits[None].step == agent.stop_answers[0].step < 1_000
    assert not agent.stop_answers[0].leaves
    finished(threads)
    assert told[0][0] == 1_500


def test_who_looks_without_checkpoints_leaves_as_well(make_agent, start):
    agent, run = make_agent(), None
    run = start(agent)
    agent.ask_stop("spot notice: terminate", within_ms=7_000_000)
    while not run.should_stop:
        run.step()
        time.sleep(0.001)
    assert run.stop_reason == "spot notice: terminate"
    assert 6_000 < run.stop_deadline <= 7_000


def test_its_agent_knows_from_its_page_that_it_listens(make_agent, start, tmp_path):
    run = start(make_agent())
    page = tmp_path / "heartbeat-0-1"
    assert not read(page.read_bytes()).listens
    run.checkpoint({}, every=10)
    run.step()
    run.checkpoint({}, every=10)
    assert read(page.read_bytes()).listens


def test_nobody_asks_a_process_outside_holdfast(start_alone):
    run = start_alone()
    run.step()
    assert (run.should_stop, run.stop_reason, run.stop_deadline) == (False, "", None)


def test_looking_opens_nothing_slow_before_it_is_looked(make_agent, start):
    """A start waits for nothing: the link opens when a program looks, or comes to a checkpoint, for the first time."""
    agent = make_agent()
    run = start(agent)
    run.step()
    assert agent.hellos == []
    assert not run.should_stop
    agent.wait_for(lambda: agent.hellos)
