import math
import os
import time

import psutil
import pytest

from holdfast import heartbeat
from holdfast.heartbeat import Reading, Writer


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "heartbeat")


@pytest.fixture
def writer(path):
    writer = Writer(path)
    yield writer
    writer.close()


def read(path):
    with open(path, "rb") as file:
        return heartbeat.read(file.read())


def test_before_the_first_step_it_is_in_setup(writer, path):
    reading = read(path)
    assert reading == Reading(section="setup", moved_ns=reading.moved_ns)
    assert 0 < reading.moved_ns <= time.monotonic_ns()


def test_a_step_is_read_as_it_was_written(writer, path):
    writer.step(41)
    writer.step(42)
    reading = read(path)
    assert (reading.step, reading.steps_done, reading.section) == (42, 2, "step")
    assert reading.stepping_seconds >= 0


def test_the_first_step_ends_setup_and_no_other_section(writer, path):
    writer.section("warmup")
    writer.step(1)
    assert read(path).section == "warmup"


def test_a_section_says_what_it_replaced(writer, path):
    assert writer.section("eval") == "setup"
    assert writer.section("x" * 40) == "eval"
    assert read(path).section == "x" * 32


@pytest.fixture
def clock(monkeypatch):
    """CLOCK_MONOTONIC as the test says, in seconds."""

    class Clock:
        now = 100

    monkeypatch.setattr(heartbeat, "now_ns", lambda: Clock.now * 10**9)
    return Clock


class TestTimeAside:
    """What the training loop did other than step."""

    def spend(self, clock, writer, section, seconds):
        before = writer.section(section)
        clock.now += seconds
        writer.section(before)

    def found(self, path):
        reading = read(path)
        return reading.checkpoint_seconds, reading.other_seconds, reading.aside_seconds

    def test_before_the_first_step_all_is_setup(self, clock, writer, path):
        self.spend(clock, writer, "checkpoint", 3)
        self.spend(clock, writer, "restore", 5)
        writer.step(1)
        self.spend(clock, writer, "eval", 7)
        assert self.found(path) == (0, 7, 0)

    def test_it_lies_between_two_steps_when_another_follows(self, clock, writer, path):
        writer.step(1)
        self.spend(clock, writer, "checkpoint", 2)
        self.spend(clock, writer, "eval", 3)
        assert self.found(path) == (2, 3, 0)
        writer.step(2)
        assert self.found(path) == (2, 3, 5)
        self.spend(clock, writer, "checkpoint", 4)
        assert self.found(path) == (6, 3, 5)
        assert read(path).stepping_seconds == 5

    def test_a_section_in_another_is_counted_once(self, clock, writer, path):
        writer.step(1)
        outer = writer.section("eval")
        clock.now += 1
        self.spend(clock, writer, "checkpoint", 10)
        clock.now += 1
        writer.section(outer)
        assert self.found(path) == (10, 2, 0)

    def test_a_section_that_steps_is_stepping(self, clock, writer, path):
        writer.step(1)
        before = writer.section("warmup")
        clock.now += 1
        writer.step(2)
        writer.section(before)
        assert self.found(path) == (0, 0, 0)


def test_how_long_the_process_took_to_its_first_step(writer, path):
    assert read(path).setup_seconds == 0
    writer.step(1)
    writer.step(2)
    age = time.time() - psutil.Process().create_time()
    assert 0 < read(path).setup_seconds < age + 1


def test_how_many_steps_there_will_be(writer, path):
    writer.expect(1_000)
    assert read(path).total_steps == 1_000


def test_a_report_and_another_section_are_movement_and_nothing_else_is(writer, path):
    seen = [read(path).moved_ns]
    for act in (lambda: writer.step(1), lambda: writer.section("eval"), lambda: writer.step(2)):
        act()
        writer.metric("loss", 1.0)
        seen.append(read(path).moved_ns)
    assert seen == sorted(set(seen))


def test_the_longest_time_in_a_section_is_kept_for_each_that_was_left(writer, path, monkeypatch):
    now = 10**9
    monkeypatch.setattr(heartbeat, "now_ns", lambda: now)
    writer.section("eval")
    for took in (3, 7, 5):
        now += took
        writer.section("checkpoint")
        now += 1
        writer.section("eval")
    assert read(path).longest_ns.items() >= {("eval", 7), ("checkpoint", 1)}
    now += 5
    writer.step(1)
    now += 9
    writer.section("step")
    assert read(path).longest_ns["eval"] == 9  # since it last moved: a step was reported in it
    now += 100
    assert read(path).longest_ns["eval"] == 9


def test_what_was_waited_for_others_adds_up(writer, path, monkeypatch):
    now = 10**9
    monkeypatch.setattr(heartbeat, "now_ns", lambda: now)
    for took in (1, 2, 3):
        writer.section("wait")
        now += took * 10**9
        writer.section("step")
        now += 10**9
    writer.section("wait")
    now += 10**9
    assert read(path).waiting_seconds == 6.0


def test_sections_above_the_limit_are_not_kept(writer, path):
    for index in range(2 * heartbeat.MAX_SECTIONS):
        writer.section(f"s{index}")
        writer.section("x" * 40)
    found = read(path)
    assert len(found.longest_ns) == heartbeat.MAX_SECTIONS
    assert found.section == "x" * heartbeat.SECTION_BYTES
    assert (found.metrics, found.step) == ({}, None)


def test_metrics_keep_their_names_and_newest_values(writer, path):
    writer.metric("loss", 2.0)
    writer.metric("rate", 0.5)
    writer.metric("loss", 1.5)
    writer.metric("worst", math.nan)
    assert read(path).metrics == {"loss": 1.5, "rate": 0.5}


def test_metrics_above_the_limit_are_ignored(writer, path):
    for index in range(heartbeat.MAX_METRICS + 5):
        writer.metric(f"m{index}", index)
    assert len(read(path).metrics) == heartbeat.MAX_METRICS


def test_a_detached_writer_changes_the_file_no_more(writer, path):
    writer.step(1)
    writer.detach()
    writer.step(2)
    assert read(path).step == 1


def test_a_file_that_was_only_touched_reads_as_nothing(path):
    assert heartbeat.read(b"") == Reading()
    assert heartbeat.read(b"\0" * heartbeat.SIZE) == Reading()


def test_a_count_that_makes_no_sense_is_bounded(writer, path):
    page = bytearray(heartbeat.SIZE)
    with open(path, "rb") as file:
        page[:] = file.read()
    page[96:104] = (2**40).to_bytes(8, "little")
    assert len(heartbeat.read(bytes(page)).metrics) <= heartbeat.MAX_METRICS


def test_where_no_file_can_be_made_the_error_says_so(tmp_path):
    with pytest.raises(OSError):
        Writer(os.path.join(tmp_path, "missing", "heartbeat"))
