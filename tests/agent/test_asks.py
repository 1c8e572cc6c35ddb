"""Requests to stop on their way through the agent, and notices of its machine."""

from holdfast_agent.asks import (
    AskWorker,
    NoticeSeen,
    StopAnswered,
    StopAsked,
    TellAnswer,
    TellNotice,
    WorkerConnected,
)
from holdfast_agent.core import (
    AgentState,
    Ended,
    Key,
    Phase,
    StreamLost,
    Welcomed,
    Worker,
    WorkerEnded,
    handle,
    inventory,
)

FIRST, SECOND = Key("job1", 0, 1), Key("job1", 1, 1)


def agent(*keys):
    state = AgentState(workers={key: Worker(key, Phase.RUNNING) for key in keys})
    handle(state, Welcomed(3))
    return state


def test_who_is_asked_is_told_and_again_when_it_connects_anew():
    state = agent(FIRST, SECOND)
    assert handle(state, StopAsked(3, (FIRST, SECOND), "soon")) == [
        AskWorker(FIRST, "soon"),
        AskWorker(SECOND, "soon"),
    ]
    assert handle(state, StopAsked(3, (FIRST,), "at step 5")) == [AskWorker(FIRST, "at step 5")]
    assert handle(state, WorkerConnected(FIRST)) == [AskWorker(FIRST, "at step 5")]
    assert handle(state, WorkerConnected(SECOND)) == [AskWorker(SECOND, "soon")]


def test_for_who_can_not_be_told_the_agent_answers():
    state = agent(FIRST, SECOND)
    asked = StopAsked(3, (FIRST, SECOND), "soon", deaf=frozenset({SECOND}))
    assert handle(state, asked) == [AskWorker(FIRST, "soon"), TellAnswer(SECOND, None)]
    assert handle(state, WorkerConnected(SECOND)) == []


def test_an_answer_is_passed_on_and_not_kept():
    state = agent(FIRST)
    assert handle(state, StopAnswered(FIRST, "step 7")) == [TellAnswer(FIRST, "step 7")]
    handle(state, StreamLost())
    assert handle(state, StopAnswered(FIRST, "step 7")) == []
    inventory(state)
    assert handle(state, Welcomed(3)) == []  # the coordinator asks again


def test_who_has_ended_is_neither_asked_nor_heard():
    state = agent(FIRST)
    handle(state, StopAsked(3, (FIRST,), "soon"))
    handle(state, WorkerEnded(FIRST, Ended("exit code 0")))
    assert handle(state, StopAsked(3, (FIRST, SECOND), "soon", deaf=frozenset({SECOND}))) == []
    assert handle(state, StopAnswered(FIRST, "step 7")) == []
    assert state.asked.of_workers == {}


def test_a_leader_that_is_deposed_asks_nobody():
    state = agent(FIRST)
    assert handle(state, StopAsked(2, (FIRST,), "soon")) == []


def test_a_notice_is_told_and_stands():
    state = agent()
    assert handle(state, NoticeSeen("terminate")) == [TellNotice("terminate")]
    handle(state, StreamLost())
    assert handle(state, NoticeSeen("terminate")) == []  # it is part of the next Hello
    assert state.asked.notice == "terminate"
