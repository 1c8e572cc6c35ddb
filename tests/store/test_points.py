"""Curves in their file: bounded, there after a kill, and in nobody's way."""

import os
import sqlite3
import subprocess
import sys
import textwrap

import pytest

from holdfast_coordinator.core.series import MOST_POINTS, MOST_SERIES, Point
from holdfast_coordinator.store.api import StoreError, StoreTooNewError
from holdfast_coordinator.store.sqlite import SqliteStore
from holdfast_coordinator.store.sqlite_points import FILE, SqlitePoints


@pytest.fixture
def points(tmp_path):
    found = SqlitePoints(tmp_path)
    yield found
    found.close()


def curve(count, begin=1):
    return [Point(at, at, at / 2) for at in range(begin, begin + count)]


def test_what_was_added_is_there(points):
    points.add({"a": {"loss": curve(2), "acc": curve(1)}, "b": {"loss": curve(3)}})
    points.add({"a": {"loss": curve(1, begin=3)}})
    assert points.read("a") == {"acc": curve(1), "loss": curve(3)}
    assert points.read("a", ["loss", "none"]) == {"loss": curve(3)}
    assert points.read("c") == {}
    assert points.jobs() == ["a", "b"]
    points.forget({"a"})
    assert (points.jobs(), points.read("a")) == (["b"], {})


def test_series_are_bounded(points):
    begin = 1
    for _ in range(7):
        points.add({"a": {"loss": curve(400, begin)}})
        begin += 400
    found = points.read("a")["loss"]
    assert MOST_POINTS // 2 < len(found) <= MOST_POINTS
    assert (found[0], found[-1]) == (Point(1, 1, 0.5), curve(1, begin - 1)[0])
    points.add({"b": {f"m{n}": curve(1) for n in range(100)}})
    points.add({"b": {"goodput": curve(1), "new": curve(1)}})
    assert len(points.read("b")) <= MOST_SERIES
    assert "goodput" in points.read("b")
    assert "new" not in points.read("b")


def test_the_bound_holds_over_a_restart_and_a_clock_that_was_ahead(points, tmp_path):
    points.add({"a": {"loss": curve(900, begin=5_000)}})
    points.close()
    again = SqlitePoints(tmp_path)
    again.add({"a": {"loss": curve(200)}})
    found = again.read("a")["loss"]
    again.close()
    assert len(found) <= MOST_POINTS
    assert [point.at_ms for point in found] == sorted({point.at_ms for point in found})
    assert found[-1].step == 200


def test_what_was_added_survives_sigkill(tmp_path):
    code = """
        import sys
        from pathlib import Path
        from holdfast_coordinator.core.series import Point
        from holdfast_coordinator.store.sqlite_points import SqlitePoints

        points = SqlitePoints(Path(sys.argv[1]))
        for at in range(1, 1_000_000):
            points.add({"a": {"loss": [Point(at, at, at / 2)]}})
            print(at, flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        try:
            for _ in range(20):
                assert writer.stdout.readline(), "the writer died by itself"
        finally:
            writer.kill()
        said = 20 + len(writer.stdout.readlines())
    again = SqlitePoints(tmp_path)
    found = again.read("a")["loss"]
    again.close()
    assert found[-1].at_ms in (said, said + 1)


def test_it_is_its_owners_alone_and_holds_no_lock_of_the_state(points, tmp_path):
    points.add({"a": {"loss": curve(1)}})
    assert os.stat(tmp_path / FILE).st_mode & 0o077 == 0
    other = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # the curves wait
    store = SqliteStore(tmp_path)
    store.commit([], epoch=0)
    store.close()
    other.close()


def test_a_file_that_can_not_be_used_is_told(tmp_path):
    (tmp_path / FILE).write_bytes(b"no database at all" * 100)
    broken = SqlitePoints(tmp_path)
    with pytest.raises(StoreError, match="damaged"):
        broken.add({"a": {"loss": curve(1)}})
    (tmp_path / FILE).unlink()
    broken.add({"a": {"loss": curve(1)}})  # and it goes on when it can
    assert broken.read("a") == {"loss": curve(1)}
    broken.close()


def test_a_file_of_a_newer_version_is_left_alone(points, tmp_path):
    points.add({"a": {"loss": curve(1)}})
    points.close()
    with sqlite3.connect(tmp_path / FILE) as other:
        other.execute("PRAGMA user_version=99")
    other.close()
    with pytest.raises(StoreTooNewError, match="newer version"):
        points.read("a")
