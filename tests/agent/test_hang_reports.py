"""What hangs is told until it is noted, and no longer than it matters."""

from dataclasses import replace

from holdfast_agent.core import AgentState, Key, Phase, Stop, Worker
from holdfast_agent.hang_reports import Report, Reports

KEY, OTHER = Key("job1", 0, 1), Key("job1", 1, 1)
HUNG, OVER = Report(KEY, 7, content="hung"), Report(KEY, 7, over=True, content="over")


def state(connected=True, **changes):
    workers = {key: replace(Worker(key, Phase.RUNNING, 100, 7), **changes) for key in (KEY, OTHER)}
    return AgentState(connected=connected, workers=workers)


def test_it_is_told_at_once_and_in_every_session_until_it_is_noted():
    reports = Reports()
    assert reports.notice(state(), HUNG) == [HUNG]
    assert reports.welcomed(state()) == [HUNG]
    assert reports.welcomed(state()) == [HUNG]
    assert reports.noted(KEY, 7, over=False)
    assert reports.welcomed(state()) == []


def test_without_a_session_it_waits_for_one():
    reports = Reports()
    assert reports.notice(state(connected=False), HUNG) == []
    assert reports.welcomed(state(connected=False)) == []
    assert reports.welcomed(state()) == [HUNG]


def test_of_each_worker_the_newest_is_told():
    reports = Reports()
    reports.notice(state(), HUNG)
    reports.notice(state(), Report(OTHER, 9))
    reports.notice(state(), OVER)
    assert reports.welcomed(state()) == [OVER, Report(OTHER, 9)]


def test_a_note_about_what_it_was_before_is_not_about_what_it_is_now():
    reports = Reports()
    reports.notice(state(), OVER)
    assert not reports.noted(KEY, 7, over=False)
    assert not reports.noted(KEY, 8, over=True)
    assert not reports.noted(OTHER, 7, over=True)
    assert reports.welcomed(state()) == [OVER]


def test_what_is_being_stopped_or_has_ended_no_longer_hangs():
    for changes in ({"stop": Stop.GRACE}, {"phase": Phase.ENDED}):
        reports = Reports()
        reports.notice(state(), HUNG)
        assert reports.welcomed(state(**changes)) == []
        assert reports.notice(state(**changes), HUNG) == []
        assert reports.held == {}
    reports = Reports()
    reports.notice(state(), HUNG)
    reports.ended(KEY)
    assert reports.held == {}
