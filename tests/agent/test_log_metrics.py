"""Metrics out of lines: what is found, what it costs, and that no pattern can take all the time there is."""

import json
import os

import pytest

from holdfast import heartbeat
from holdfast_agent import log_scan
from holdfast_agent.log_file import STDERR, STDOUT, Log
from holdfast_agent.log_matcher import LONGEST_LINE, Matcher, Page
from holdfast_agent.log_scan import MOST_BYTES, MOST_LINES, STRIKES, Watched
from holdfast_agent.workdir import LOG_PAGE

PATTERNS = {"loss": r"loss[= ]([0-9.eE+-]+|nan)", "step": r"step (\d+)"}


def found(patterns, *lines):
    return list(Matcher(patterns).find(lines))


class TestMatcher:
    def test_the_step_of_a_line_comes_after_its_metrics(self):
        assert found(PATTERNS, "step 3 loss=0.5", "step 4 loss 1e-3") == [
            ("loss", 0.5),
            ("step", 3),
            ("loss", 0.001),
            ("step", 4),
        ]

    def test_what_is_no_number_is_passed_over(self):
        assert found({"a": "a=(.*)", "b": "b(x)?"}, "a=fast", "a=", "b", "a=inf", "a=1_0.5") == [("a", 10.5)]

    def test_of_a_long_line_the_beginning(self):
        assert found(PATTERNS, "x" * LONGEST_LINE + "loss=1", "loss=2" + "x" * LONGEST_LINE) == [
            ("loss", 2.0)
        ]


class TestPage:
    def read(self, *noted, steps=True, before=b""):
        page = Page(steps=steps, before=before)
        for name, value in noted:
            page.note(name, value)
        return heartbeat.read(page.content()), page.content()

    def test_it_reads_as_if_the_library_had_written_it(self):
        reading, _ = self.read(("loss", 0.5), ("step", 7))
        assert (reading.step, reading.steps_done, reading.section, dict(reading.metrics)) == (
            7,
            1,
            "step",
            {"loss": 0.5},
        )

    def test_before_the_first_step_it_is_set_up_and_without_steps_it_is_in_nothing(self):
        assert self.read(("loss", 0.5))[0].section == "setup"
        assert self.read(("loss", 0.5), steps=False)[0].section == ""

    @pytest.mark.parametrize(
        ("steps", "done"),
        [
            ([1, 2, 3], 3),
            ([100, 200, 300], 201),
            ([5, 5, 5], 1),
            ([1, 2, 3, 1, 2], 5),
            ([-1, 10**30], 0),
        ],
    )
    def test_steps_between_those_that_are_printed_are_done(self, steps, done):
        assert self.read(*(("step", float(step)) for step in steps))[0].steps_done == done

    def test_it_goes_on_where_one_before_was(self):
        _, content = self.read(("loss", 0.5), ("step", 7))
        reading, _ = self.read(("acc", 0.9), ("step", 9), before=content)
        assert (reading.step, reading.steps_done) == (9, 3)
        assert dict(reading.metrics) == {"loss": 0.5, "acc": 0.9}


class Attempt:
    def __init__(self, path, patterns):
        self.path = path
        (path / "start.json").write_text(json.dumps({"log_metrics": patterns}))
        self.logs = {name: Log(str(path), name, make=True) for name in (STDOUT, STDERR)}

    def says(self, data, name=STDOUT):
        self.logs[name].append(data)

    def page(self):
        return heartbeat.read((self.path / LOG_PAGE).read_bytes())


@pytest.fixture
def attempt(tmp_path):
    return Attempt(tmp_path, PATTERNS)


class TestWatched:
    def test_lines_of_both_logs_as_they_become_whole(self, attempt):
        watched = Watched(str(attempt.path))
        attempt.says(b"step 1 loss=0.5\nstep 2")
        attempt.says(b"loss=0.25\n", STDERR)
        watched.look()
        assert (attempt.page().step, dict(attempt.page().metrics)) == (1, {"loss": 0.25})
        attempt.says(b"2 loss=0.125")
        watched.look()
        assert attempt.page().step == 1
        watched.look(last=True)
        assert (attempt.page().step, dict(attempt.page().metrics)) == (22, {"loss": 0.125})

    def test_a_progress_bar_never_ends_its_line(self, attempt):
        attempt.says(b"step 1\rstep 2\rste")
        Watched(str(attempt.path)).look()
        assert attempt.page().step == 2

    def test_whoever_comes_next_counts_nothing_twice(self, attempt):
        attempt.says(b"step 1\nstep 2\nstep 1\n")
        Watched(str(attempt.path)).look()
        attempt.says(b"step 2\n")
        Watched(str(attempt.path)).look()
        assert (attempt.page().step, attempt.page().steps_done) == (2, 4)

    def test_of_very_much_the_newest_and_no_half_number(self, attempt):
        attempt.says(b"".join(b"step %09d\n" % n for n in range(1, 100_001)))
        watched = Watched(str(attempt.path))
        seen = []
        real = watched._page.note
        watched._page.note = lambda name, value: (seen.append(value), real(name, value))
        watched.look()
        assert attempt.page().step == 100_000
        assert seen == list(range(100_001 - MOST_LINES, 100_001))
        attempt.says(b"x" * (2 * MOST_BYTES) + b"step 77\nstep 78\n")
        watched.look()
        assert attempt.page().step == 78

    def test_a_pattern_that_never_ends_is_let_go_of_and_the_others_go_on(self, tmp_path, monkeypatch):
        monkeypatch.setattr(log_scan, "LOOK_WITHIN_S", 0.05)
        attempt = Attempt(tmp_path, {"bad": r"((?:a+)+)$", "step": r"step (\d+)"})
        watched = Watched(str(tmp_path))
        told = []
        for n in range(STRIKES + 1):
            attempt.says(b"a" * 60 + b"!\n" + b"step %d\n" % n)
            told.append(watched.look())
        assert told == [""] * (STRIKES - 1) + ["bad", ""]
        assert attempt.page().step == STRIKES

    def test_nothing_new_writes_nothing(self, attempt):
        watched = Watched(str(attempt.path))
        watched.look()
        assert os.stat(attempt.path / LOG_PAGE).st_size == 0
