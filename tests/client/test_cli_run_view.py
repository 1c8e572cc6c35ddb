"""What `holdfast run` shows on a terminal."""

from pathlib import Path

from holdfast.cli import run_view
from holdfast.v1 import job_pb2


def test_the_progress_line_says_how_far_it_is(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    job = job_pb2.Job(reason="all 2 workers run", restarts=1, last_committed_step=4)
    job.workers.add(step=5, metrics={"loss": 0.25})
    job.workers.add(step=7, metrics={"loss": 0.75})
    expected = "all 2 workers run · steps 5 to 7 · committed 4 · restarts 1 · loss 0.5"
    assert run_view._status(job) == expected
    monkeypatch.setenv("COLUMNS", "20")
    assert run_view._status(job) == expected[:19]


def test_goodput_and_the_rest_of_it_make_the_whole(capsys):
    spent = {"kept": 40.0, "setup": 10.0, "finished": 50.0}
    run_view.show_summary(job_pb2.JobSummary(job_id="j", goodput=0.8, time_seconds=spent), Path("run"), "")
    assert "goodput   80.0% (the rest: setup 20.0%)" in capsys.readouterr().err
