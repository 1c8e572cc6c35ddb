"""Logs: whole, in order, from any place on, and as they are written."""

import asyncio
import gzip
import json
import os
import signal
from types import SimpleNamespace

import pytest

from holdfast.v1 import agent_pb2, job_pb2
from holdfast_agent import archiver
from holdfast_agent.core import Key
from holdfast_agent.log_file import Log
from holdfast_agent.logs import CHUNK
from holdfast_agent.workdir import Attempt
from tests.agent.fake_coordinator import key, soon, start, stop
from tests.agent.processes import line_of, until

OUT, ERR = job_pb2.LOG_STREAM_STDOUT, job_pb2.LOG_STREAM_STDERR


@pytest.fixture
async def session(coordinator, agent):
    return await coordinator.session()


@pytest.fixture
def open_log(coordinator, session):
    """Asks the agent for a log, and gives the stream on which it answers."""
    asked = iter(range(1000))

    async def open_log(*, rank=0, attempt=0, follow=False, cursors=(), **more):
        request_id = f"request-{next(asked)}"
        session.say(
            open_log=agent_pb2.OpenLog(
                request_id=request_id,
                job_id="job1",
                rank=rank,
                attempt=attempt,
                follow=follow,
                cursors=cursors,
                **more,
            )
        )
        return await coordinator.push(request_id)

    return open_log


async def run(session, script, attempt=1, **spec):
    session.say(start_workers=start("sh", "-c", script, attempt=attempt, **spec))
    return await session.heard("worker_exited")


class TestReading:
    async def test_every_attempt_oldest_first(self, session, open_log):
        await run(session, "echo one; echo oops >&2; exit 1")
        await run(session, "echo two", attempt=2)
        found = await (await open_log()).all()
        assert list(found.items()) == [((1, OUT), b"one\n"), ((1, ERR), b"oops\n"), ((2, OUT), b"two\n")]

    async def test_one_attempt(self, session, open_log):
        await run(session, "echo one")
        await run(session, "echo two", attempt=2)
        assert await (await open_log(attempt=2)).all() == {(2, OUT): b"two\n"}

    async def test_from_a_place_on(self, session, open_log):
        await run(session, "echo one; echo two")
        cursor = job_pb2.LogCursor(attempt=1, stream=OUT, offset=4)
        push = await open_log(cursors=[cursor])
        chunk = await push.chunk()
        assert (chunk.cursor.offset, chunk.data) == (4, b"two\n")
        assert await push.chunk() is None

    async def test_chunks_are_bounded_and_end_with_lines(self, session, open_log):
        await run(session, "seq 1 200000; printf unfinished")
        push = await open_log()
        data = b""
        while chunk := await push.chunk():
            assert len(chunk.data) <= CHUNK
            assert chunk.data.endswith((b"\n", b"unfinished"))
            data += chunk.data
        assert data == b"".join(b"%d\n" % n for n in range(1, 200001)) + b"unfinished"

    async def test_a_line_longer_than_a_chunk(self, session, open_log):
        size = CHUNK + 200_000
        await run(session, f"head -c {size} /dev/zero")
        assert await (await open_log()).all() == {(1, OUT): bytes(size)}

    async def test_of_who_was_never_here_there_is_nothing(self, open_log):
        assert await (await open_log(rank=5)).all() == {}


class TestFollowing:
    async def test_lines_come_as_they_are_written_until_the_attempt_ends(self, session, open_log, tmp_path):
        os.mkfifo(tmp_path / "tell")
        session.say(
            start_workers=start("sh", "-c", f"while read -r line; do echo $line; done <{tmp_path}/tell")
        )
        await session.heard("worker_started")
        push = await open_log(attempt=1, follow=True)
        with open(tmp_path / "tell", "w") as tell:
            for n in range(3):
                tell.write(f"{n}\n")
                tell.flush()
                assert (await push.chunk()).data == b"%d\n" % n
        assert await push.chunk() is None

    async def test_half_a_line_waits_for_the_other_half_or_the_end(self, session, open_log, tmp_path):
        os.mkfifo(tmp_path / "tell")
        half = f"printf half; read -r _ <{tmp_path}/tell; echo ' and half'; printf end"
        session.say(start_workers=start("sh", "-c", half))
        log = tmp_path / "state/jobs/job1/0-1/stdout.log"
        await until(lambda: log.exists() and log.read_bytes() == b"half")
        push = await open_log(attempt=1, follow=True)
        with open(tmp_path / "tell", "w") as tell:
            tell.write("\n")
        first = (await push.chunk()).data
        assert first.startswith(b"half and half\n")
        assert first + (await push.all()).get((1, OUT), b"") == b"half and half\nend"

    async def test_new_attempts_are_picked_up(self, session, open_log):
        push = await open_log(follow=True)  # before there is anything
        for attempt in (1, 2, 3):
            await run(session, f"printf {attempt}", attempt=attempt)
            chunk = await push.chunk()
            assert (chunk.cursor.attempt, chunk.data) == (attempt, b"%d" % attempt)

    async def test_many_follow_at_once_and_what_they_held_is_let_go_of(
        self, session, open_log, tmp_path, agent
    ):
        """More than the 128 inotify instances that a user may have, and again after they are gone."""
        session.say(start_workers=start("sh", "-c", "echo up; exec sleep 1000"))
        await line_of(tmp_path / "state/jobs/job1/0-1/stdout.log")
        await session.settled()
        before = len(os.listdir("/proc/self/fd"))
        pushes = [await open_log(follow=True) for _ in range(150)]
        for push in pushes:
            assert (await push.chunk()).data == b"up\n"
        for push in pushes:
            push.unwanted.set()
        await until(lambda: not agent._tasks)
        assert len(os.listdir("/proc/self/fd")) <= before + 1  # the one inotify instance stays
        with open(f"/proc/self/fdinfo/{agent._inotify._fd}") as file:
            assert "inotify wd:" not in file.read()

    async def test_a_reader_that_is_gone_disturbs_nothing(self, session, open_log):
        """Its descriptor, closed while the loop still watched it, once broke whoever was given the same number."""
        for attempt in range(1, 6):
            push = await open_log(follow=True)
            push.unwanted.set()
            await run(session, "exit 0", attempt=attempt)
        await soon(session.settled())

    async def test_a_deleted_job_ends_nothing_else(self, session, open_log, tmp_path):
        push = await open_log(follow=True)
        await run(session, "echo said")
        assert (await push.chunk()).data == b"said\n"
        session.say(
            release_workers=agent_pb2.ReleaseWorkers(keys=[{"job_id": "job1", "rank": 0, "attempt": 1}])
        )
        session.say(forget_job=agent_pb2.ForgetJob(job_id="job1"))
        await until(lambda: not (tmp_path / "state/jobs/job1").exists())
        await run(session, "echo anew", attempt=7)
        assert (await push.chunk()).data == b"anew\n"


class TestTails:
    async def test_the_last_lines_of_each_log_counted_back_over_attempts(self, session, open_log):
        await run(session, "seq 1 100; echo oops >&2; exit 1")
        await run(session, "seq 101 102; exit 1", attempt=2)
        await run(session, "seq 103 104", attempt=3)
        found = await (await open_log(tail=3)).all()
        assert {place: data for place, data in found.items() if data} == {
            (1, ERR): b"oops\n",
            (2, OUT): b"102\n",
            (3, OUT): b"103\n104\n",
        }

    async def test_what_comes_after_is_not_counted_again(self, session, open_log):
        await run(session, "seq 1 5", attempt=1)
        push = await open_log(tail=1, follow=True)
        await run(session, "seq 6 9", attempt=2)
        said = b""
        while not said.endswith(b"9\n"):
            said += (await push.chunk()).data
        assert said == b"5\n6\n7\n8\n9\n"

    async def test_a_reader_that_comes_back_misses_nothing_of_a_log_that_was_empty(
        self, session, open_log, tmp_path
    ):
        os.mkfifo(tmp_path / "tell")
        script = f"echo one; read -r _ <{tmp_path}/tell; seq 1 9 >&2"
        session.say(start_workers=start("sh", "-c", script))
        await line_of(tmp_path / "state/jobs/job1/0-1/stdout.log")
        push = await open_log(tail=1, follow=True)
        begun = [(await push.chunk()).cursor for _ in range(2)]
        push.unwanted.set()
        (tmp_path / "tell").write_text("\n")
        await session.heard("worker_exited")
        found = await (await open_log(tail=1, cursors=begun)).all()
        assert found[1, ERR] == b"".join(b"%d\n" % n for n in range(1, 10))

    async def test_attempts_before_the_first_are_left_out(self, session, open_log):
        await run(session, "echo one; exit 1")
        await run(session, "echo two", attempt=2)
        assert await (await open_log(first_attempt=2)).all() == {(2, OUT): b"two\n"}


async def test_since(session, open_log):
    await run(session, "echo early; exit 1")
    end = await run(session, "echo late; sleep 1.2; echo later", attempt=2)
    since = end.exit.status.at
    since.FromMilliseconds(since.ToMilliseconds() - 100)
    assert await (await open_log(since=since)).all() == {(2, OUT): b"later\n"}
    since.FromMilliseconds(0)
    assert len(await (await open_log(since=since)).all()) == 2


class TestFloods:
    """A worker that writes as fast as it can harms nobody."""

    KEEP = 4 * 2**20
    FLOOD = ("yes", "the same line again and again and again")
    LINE = b"the same line again and again and again\n"

    @pytest.fixture
    async def flooding(self, session, tmp_path):
        logs = job_pb2.LogPolicy(keep_bytes=self.KEEP)
        session.say(start_workers=start(*self.FLOOD, ranks=(0, 1), logs=logs))
        for rank in (0, 1):
            log = tmp_path / f"state/jobs/job1/{rank}-1/stdout.log"
            await until(lambda log=log: log.exists() and log.stat().st_size)
        return tmp_path / "state/jobs/job1"

    async def test_the_disk_is_bounded_and_its_end_is_noticed(self, session, flooding):
        until_bytes = 20 * self.KEEP
        log = flooding / "0-1/stdout.log"
        await until(lambda: log.stat().st_size > until_bytes)
        assert log.stat().st_blocks * 512 <= self.KEEP
        session.say(stop_workers=stop(key(0), key(1)))
        for _ in range(2):
            assert (await session.heard("worker_exited")).exit.status.signal == signal.SIGTERM
        sizes = [(flooding / f"{rank}-1/stdout.log").stat().st_blocks * 512 for rank in (0, 1)]
        assert sum(sizes) <= self.KEEP + 2 * 65_536  # and what a block at either end takes

    async def test_who_follows_it_may_fall_behind_and_is_told(self, session, open_log, flooding):
        push = await open_log(follow=True, attempt=1)
        offset = skipped = 0
        while offset < 10 * self.KEEP or not skipped:
            chunk = await push.chunk()
            assert chunk.cursor.offset == offset + chunk.skipped
            assert len(self.LINE) * chunk.data.count(self.LINE) == len(
                chunk.data
            )  # whole lines, none of zeros
            assert chunk.cursor.offset % len(self.LINE) == 0
            offset, skipped = chunk.cursor.offset + len(chunk.data), skipped + chunk.skipped
            if not skipped:
                ahead = offset + 2 * self.KEEP
                await until(lambda ahead=ahead: (flooding / "0-1/stdout.log").stat().st_size > ahead)
        push.unwanted.set()

    async def test_others_and_heartbeats_do_not_wait(self, session, open_log, flooding):
        pushes = [await open_log(rank=rank, follow=True) for rank in (0, 1)]
        session.say(start_workers=start("echo", "quiet", job_id="job2"))
        await session.heard("worker_exited", lambda m: m.key.job_id == "job2")
        for _ in range(5):
            await session.beat()
        for push in pushes:
            push.unwanted.set()


class TestArchives:
    async def test_an_attempt_that_ended_is_archived_when_the_storage_is_there(
        self, session, tmp_path, monkeypatch
    ):
        warned = []
        monkeypatch.setattr(archiver, "log", SimpleNamespace(warning=lambda what, **_: warned.append(what)))
        place = tmp_path / "shared"
        place.write_text("in the way")  # and not a directory, for now
        await run(session, "echo said", checkpoint_uri=str(place))
        await until(lambda: "logs are not archived" in warned)
        place.unlink()
        found = place / "job1/logs/0-1"
        await until(lambda: (tmp_path / "state/jobs/job1/0-1/archived").exists())
        assert gzip.decompress((found / "stdout.0.log.gz").read_bytes()) == b"said\n"
        assert gzip.decompress((found / "stderr.0.log.gz").read_bytes()) == b""

    async def test_not_where_only_this_node_would_find_it(self, session, tmp_path):
        await run(session, "echo said")
        await session.settled()
        assert not list(tmp_path.rglob("*.gz"))

    async def test_a_storage_that_is_none_as_things_are_is_tried_again_and_keeps_no_other_waiting(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(archiver, "REFUSED_PAUSE_S", 0.1)
        attempts = {}
        for job, place in (("refused", "s3://"), ("good", str(tmp_path / "shared"))):
            attempts[job] = Attempt(Key(job, 0, 1), tmp_path / job / "0-1")
            attempts[job].path.mkdir(parents=True)
            (attempts[job].path / "start.json").write_text(json.dumps({"archive": place, "env": {}}))
            for name in ("stdout.log", "stderr.log"):
                with Log(str(attempts[job].path), name, make=True) as log:
                    log.append(b"said\n")
        warned = []
        monkeypatch.setattr(archiver, "log", SimpleNamespace(warning=lambda _, **more: warned.append(more)))
        found = archiver.Archiver()
        found.add([attempts["refused"]])
        running = asyncio.create_task(found.run())
        await until(lambda: warned)
        assert warned[0]["why"].endswith("write s3://bucket/prefix")
        found.add([attempts["good"]])
        await until((attempts["good"].path / "archived").exists)
        start = {"archive": str(tmp_path / "shared"), "env": {}}
        (attempts["refused"].path / "start.json").write_text(json.dumps(start))
        await until((attempts["refused"].path / "archived").exists)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
