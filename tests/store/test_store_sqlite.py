"""What the store on disk promises beyond the contract: it survives kills, full disks and damage (P3)."""

import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import textwrap
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest

from holdfast_coordinator.core.effects import Append, Put, SetEpoch
from holdfast_coordinator.core.jobspec import JobSpec
from holdfast_coordinator.core.model import Desired, Entry, Gang, Job, JobState, Worker, WorkerState
from holdfast_coordinator.core.state import Settings, State
from holdfast_coordinator.store.api import StoreError, StoreFullError, StoreLockedError, StoreTooNewError
from holdfast_coordinator.store.sqlite import FILE, SqliteStore

SETTINGS = Settings()


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "coordinator"


@pytest.fixture
def store(directory):
    store = SqliteStore(directory)
    store.commit([SetEpoch(1)], epoch=1)
    yield store
    store.close()


@pytest.fixture
def damaged(directory):
    """A closed store with a few hundred rows, to do something to."""
    store = SqliteStore(directory)
    workers = [Worker("a", rank, gang=0, state=WorkerState.WAITING) for rank in range(300)]
    store.commit([SetEpoch(1), *map(Put, workers)], epoch=1)
    store.close()
    return directory / FILE


def entry(seq):
    return Entry(seq, at_ms=seq, kind="Thing", message="it happened")


def load(directory):
    store = SqliteStore(directory)
    try:
        return store.load(SETTINGS)
    finally:
        store.close()


class TestDurability:
    WRITER = """
        import sys
        from pathlib import Path
        from holdfast_coordinator.core.effects import Append, Put, SetEpoch
        from holdfast_coordinator.core.model import Entry, Gang
        from holdfast_coordinator.store.sqlite import SqliteStore

        store = SqliteStore(Path(sys.argv[1]))
        store.commit([SetEpoch(1)], epoch=1)
        for seq in range(1, 1_000_000):
            store.commit([Append(Entry(seq, seq, "Thing", "")), Put(Gang("a", 0, attempt=seq))], epoch=1)
            print(seq, flush=True)
    """

    def test_what_was_acknowledged_survives_sigkill(self, directory):
        command = [sys.executable, "-c", textwrap.dedent(self.WRITER), directory]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            try:
                for _ in range(50):
                    assert writer.stdout.readline(), "the writer died by itself"
            finally:
                writer.kill()
            acknowledged = 50 + len(writer.stdout.readlines())
        store = SqliteStore(directory)
        entries = store.entries(limit=1_000_000)
        state = store.load(SETTINGS)
        store.close()
        # One more may have been committed and not yet said.
        assert len(entries) in (acknowledged, acknowledged + 1)
        assert [item.seq for item in entries] == list(range(1, len(entries) + 1))
        assert state.gangs["a", 0].attempt == len(entries)

    def test_every_commit_is_synced(self, store):
        for connection in (store._writer, store._reader):
            with connection.begin():
                assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
                assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"

    def test_a_power_failure_leaves_whole_commits_only(self, store, directory, tmp_path):
        """The log cut anywhere: a commit that was being written is not there, those before it are."""
        sizes = [(directory / f"{FILE}-wal").stat().st_size]
        for seq in range(1, 6):
            gangs = [Put(Gang("a", index, attempt=seq)) for index in range(40)]
            store.commit([*gangs, Append(entry(seq))], epoch=1)
            sizes.append((directory / f"{FILE}-wal").stat().st_size)
        assert sizes == sorted(set(sizes)), (
            "every commit must have grown the log for this test to mean something"
        )
        for cut in range(sizes[0], sizes[-1] + 1, 4_000):
            copy = tmp_path / f"cut-{cut}"
            copy.mkdir()
            shutil.copy(directory / FILE, copy)
            (copy / f"{FILE}-wal").write_bytes((directory / f"{FILE}-wal").read_bytes()[:cut])
            whole = sum(size <= cut for size in sizes[1:])
            state = load(copy)
            assert state.next_seq == whole + 1
            assert {gang.attempt for gang in state.gangs.values()} == ({whole} if whole else set())

    def test_it_is_opened_again_and_again(self, directory):
        for epoch in range(1, 4):
            store = SqliteStore(directory)
            assert store.load(SETTINGS).epoch == epoch - 1
            store.commit([SetEpoch(epoch), Append(entry(epoch))], epoch=epoch)
            store.close()


class TestFullDisk:
    SCENARIO = """
        import json, os, subprocess, sys
        from pathlib import Path
        from holdfast_coordinator.core.effects import Append, Put, SetEpoch
        from holdfast_coordinator.core.model import Entry, Gang
        from holdfast_coordinator.core.state import Settings
        from holdfast_coordinator.store.api import StoreError
        from holdfast_coordinator.store.sqlite import SqliteStore

        disk = Path(sys.argv[1])
        report = {}

        def attempt(name, call):
            try:
                call()
                report[name] = "done"
            except StoreError as error:
                report[name] = [type(error).__name__, str(error)]

        def fill():
            with (disk / "filler").open("wb", buffering=0) as filler:
                try:
                    while True:
                        filler.write(bytes(4096))
                except OSError:
                    pass

        def batch(attempt):
            return [Put(Gang("a", index, attempt=attempt, cause="x" * 500)) for index in range(200)]

        SqliteStore(disk / "closed").close()
        store = SqliteStore(disk / "state")
        store.commit([SetEpoch(1), *batch(1)], epoch=1)
        before = store.load(Settings())
        fill()
        attempt("commit", lambda: store.commit([*batch(2), Append(Entry(1, 1, "Thing", ""))], epoch=1))
        attempt("commit again", lambda: store.commit(batch(2), epoch=1))
        report["intact"] = store.load(Settings()) == before and store.entries(limit=1) == []
        attempt("a new store", lambda: SqliteStore(disk / "other").close())
        attempt("a store that was closed", lambda: SqliteStore(disk / "closed").close())
        store.close()
        (disk / "filler").unlink()
        store = SqliteStore(disk / "state")
        report["intact after restart"] = store.load(Settings()) == before
        attempt("commit with room", lambda: store.commit(batch(3), epoch=1))
        report["attempts"] = sorted({gang.attempt for gang in store.load(Settings()).gangs.values()})
        fill()
        attempt("commit when full again", lambda: store.commit(batch(4), epoch=1))
        (disk / "filler").unlink()
        attempt("commit with room again", lambda: store.commit(batch(5), epoch=1))
        report["attempts in the end"] = sorted({gang.attempt for gang in store.load(Settings()).gangs.values()})
        store.close()
        print(json.dumps(report))
    """

    @pytest.fixture
    def report(self, tmp_path):
        """What the scenario says, run on a disk of 1 MiB that exists in a mount namespace of its own."""
        disk = tmp_path / "disk"
        disk.mkdir()
        mount = 'mount -t tmpfs -o size=1m tmpfs "$0"'
        unshare = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
        if shutil.which("unshare") is None:
            pytest.skip("this machine has no unshare(1)")
        probe = subprocess.run(
            [*unshare, mount, disk], capture_output=True, text=True, timeout=30, check=False
        )
        if probe.returncode:
            pytest.skip(f"this machine allows no private mounts: {probe.stderr.strip()}")
        done = subprocess.run(
            [
                *unshare,
                f'{mount} && exec "$1" -c "$2" "$0"',
                disk,
                sys.executable,
                textwrap.dedent(self.SCENARIO),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def test_it_refuses_and_loses_nothing_and_goes_on_when_there_is_room(self, report):
        for refused in (
            "commit",
            "commit again",
            "a new store",
            "a store that was closed",
            "commit when full again",
        ):
            kind, message = report[refused]
            assert kind == StoreFullError.__name__
            assert "disk/" in message
            assert "free some space" in message
        assert report["intact"]
        assert report["intact after restart"]
        assert report["commit with room"] == "done"
        assert report["attempts"] == [3]
        assert report["commit with room again"] == "done"
        assert report["attempts in the end"] == [5]


class TestDirectory:
    def test_it_is_made_and_is_its_owners_alone(self, tmp_path):
        store = SqliteStore(tmp_path / "new" / "coordinator")
        store.commit([SetEpoch(1)], epoch=1)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").rglob("*")}
        store.close()
        private = stat.S_IRUSR | stat.S_IWUSR
        assert modes.pop("coordinator") == private | stat.S_IXUSR
        assert modes == dict.fromkeys(("lock", FILE, f"{FILE}-wal", f"{FILE}-shm"), private)

    def test_a_second_coordinator_is_refused(self, store, directory):
        with pytest.raises(StoreLockedError, match=f"another coordinator uses .*{directory}.*--state-dir"):
            SqliteStore(directory)
        store.commit([Append(entry(1))], epoch=1)

    def test_it_is_free_when_it_was_closed_or_could_not_be_opened(self, store, directory):
        store.close()
        (directory / FILE).write_bytes(b"garbage" * 1_000)
        for _ in range(2):
            with pytest.raises(StoreError, match="damaged"):
                SqliteStore(directory)
        (directory / FILE).unlink()
        assert load(directory) == State(SETTINGS)

    def test_closing_leaves_no_descriptor(self, directory):
        before = os.listdir("/proc/self/fd")
        SqliteStore(directory).close()
        assert os.listdir("/proc/self/fd") == before

    def test_a_directory_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(StoreError, match=r"can.t use the state directory .*file/state: Not a directory"):
            SqliteStore(tmp_path / "file" / "state")


class TestDamage:
    def test_a_file_that_is_no_database(self, damaged):
        damaged.write_bytes(b"garbage" * 1_000)
        with pytest.raises(StoreError, match=f"{damaged} is damaged .*restore it from a backup"):
            load(damaged.parent)

    @pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
    def test_a_torn_file(self, damaged, kept):
        os.truncate(damaged, int(damaged.stat().st_size * kept))
        with pytest.raises(StoreError, match=f"{damaged} is damaged"):
            load(damaged.parent)

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE workers SET progress = '{\"step'",
            "UPDATE workers SET progress = '{}'",
            "UPDATE workers SET state = 'asleep'",
            "UPDATE workers SET attempt = 'first'",
        ],
    )
    def test_a_row_that_nobody_wrote(self, damaged, change):
        with sqlite3.connect(damaged) as connection:
            connection.execute(change)
        connection.close()
        with pytest.raises(StoreError, match=f"{damaged} is damaged .a row can't be read"):
            load(damaged.parent)

    def test_a_newer_version_wrote_it(self, damaged):
        with sqlite3.connect(damaged) as connection:
            connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.close()
        with pytest.raises(StoreTooNewError, match=f"{damaged} was written by a newer version of holdfast"):
            load(damaged.parent)

    def test_errors_keep_secrets(self, store):
        spec = JobSpec("train", ("true",), 1, env={"TOKEN": "hunter2"})
        job = Job("a", "", spec, Desired.RUNNING, JobState.PENDING, reason=None, created_ms=1)
        with pytest.raises(StoreError, match=r"NOT NULL constraint failed: jobs\.reason") as raised:
            store.commit([Put(job)], epoch=1)
        assert "hunter2" not in "".join(traceback.format_exception(raised.value))


def test_histories_are_read_beside_the_writer(store):
    def follow(reader):
        seen = []
        while len(seen) < 300:
            seen += store.entries(after=len(seen), limit=50)
        return [item.seq for item in seen]

    with ThreadPoolExecutor(2) as readers:
        found = [readers.submit(follow, number) for number in range(2)]
        for seq in range(1, 301):
            store.commit([Append(entry(seq))], epoch=1)
        for future in found:
            assert future.result(timeout=60) == list(range(1, 301))
