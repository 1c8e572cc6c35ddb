"""An agent and its coordinator: what is said, what is said again, what is obeyed (P2, P4, P6)."""

import asyncio
import os
import signal
import socket
import sys

import pytest

from holdfast import framing, wire
from holdfast.data.shards import DataIndex, Declared, ShardInfo, decode_declared
from holdfast.heartbeat import Writer
from holdfast.v1 import agent_pb2, job_pb2, worker_pb2
from holdfast_agent.agent import Agent, AgentConfig
from tests.agent.fake_coordinator import BEAT_MS, FakeCoordinator, key, release, soon, start, stop
from tests.agent.processes import alive, line_of, names, until

FOREVER = ("sleep", "1000")


def logs(tmp_path, rank=0, attempt=1, job_id="job1"):
    return tmp_path / "state" / "jobs" / job_id / f"{rank}-{attempt}" / "stdout.log"


@pytest.fixture
async def session(coordinator, agent):
    return await coordinator.session()


class TestHello:
    async def test_it_says_who_and_what_the_node_is(self, session, tmp_path):
        hello = session.hello
        assert hello.node == "node-a"
        assert hello.instance_id == (tmp_path / "state" / "instance_id").read_text()
        assert hello.boot_id
        assert hello.address == "127.0.0.1"
        assert hello.capacity.slots == 4
        assert hello.capacity.cpus > 0
        assert hello.capacity.memory_bytes > 0
        assert len(set(hello.ports)) == 4
        assert not hello.inventory

    async def test_nothing_is_sent_before_the_welcome(self, coordinator, agent):
        coordinator.greets = False
        session = await coordinator.session()
        session.end()
        coordinator.greets = True
        await coordinator.session()
        assert session.messages == []

    async def test_a_name_is_looked_up_for_every_session(self, session, tmp_path, monkeypatch):
        """It may lead to another coordinator by then, and the one before answer still."""
        other = FakeCoordinator(f"unix:{tmp_path}/other.sock")
        await other.start()
        look_up = wire.open_channel
        monkeypatch.setattr(wire, "open_channel", lambda _: look_up(other.target))
        session.end()
        await other.session()
        await other.stop()


class TestWorkers:
    async def test_a_start_makes_a_process_and_its_end_is_told(self, session):
        session.say(start_workers=start(*FOREVER, ranks=(0, 1)))
        pids = {}
        for _ in range(2):
            started = await session.heard("worker_started")
            assert alive(started.pid)
            assert started.pid_start_time > 0
            pids[started.key.rank] = started.pid
        os.kill(pids[1], signal.SIGKILL)
        ended = await session.heard("worker_exited")
        assert (ended.key, ended.exit.status.signal, ended.exit.status.code) == (key(1), signal.SIGKILL, -1)
        assert ended.exit.status.message == "killed by SIGKILL"
        assert alive(pids[0])

    async def test_a_start_said_twice_makes_one_process(self, session, tmp_path):
        command = start("sh", "-c", f"echo $$ >>{tmp_path}/pids; exec sleep 1000")
        session.say(start_workers=command)
        session.say(start_workers=command)
        started = await session.heard("worker_started")
        session.say(start_workers=command)
        await session.settled()
        assert (session.count("worker_started"), session.count("worker_exited")) == (1, 0)
        await line_of(tmp_path / "pids")
        assert (tmp_path / "pids").read_text() == f"{started.pid}\n"
        assert alive(started.pid)

    async def test_a_start_of_a_superseded_attempt_is_refused(self, session, tmp_path):
        session.say(start_workers=start(*FOREVER, attempt=2))
        await session.heard("worker_started")
        session.say(start_workers=start(*FOREVER, attempt=1))
        await session.settled()
        assert session.count("worker_started") == 1
        assert not logs(tmp_path, attempt=1).exists()

    async def test_a_newer_attempt_begins_when_the_older_is_dead(self, session):
        session.say(start_workers=start("sh", "-c", "trap '' TERM; while :; do sleep 1; done"))
        old = await session.heard("worker_started")
        session.say(start_workers=start(*FOREVER, attempt=2))
        ended = await session.heard("worker_exited")
        assert ended.key == key(attempt=1)
        assert not alive(old.pid)
        assert (await session.heard("worker_started")).key == key(attempt=2)

    async def test_what_cannot_be_run_is_told_as_never_ran(self, session):
        session.say(start_workers=start("no-such-program"))
        ended = await session.heard("worker_exited")
        assert ended.exit.never_ran
        assert ended.exit.status.message == "command not found: no-such-program"
        assert session.count("worker_started") == 0

    async def test_a_script_whose_interpreter_is_not_there_is_not_called_missing(self, session, tmp_path):
        script = tmp_path / "train.sh"
        script.write_bytes(b"#!/bin/sh\r\necho hello\r\n")
        script.chmod(0o700)
        session.say(start_workers=start(str(script)))
        message = (await session.heard("worker_exited")).exit.status.message
        assert message == (
            f"command {script} can't be run: its first line names '/bin/sh\\r', which is not there"
        )

    async def test_stop_gives_the_jobs_grace_and_force_none(self, session, tmp_path):
        deaf = ("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.01; done")
        session.say(start_workers=start(*deaf, grace_ms=100))
        session.say(start_workers=start(*deaf, job_id="job2", grace_ms=1_000_000))
        await line_of(logs(tmp_path))
        await line_of(logs(tmp_path, job_id="job2"))
        session.say(stop_workers=stop(key()))
        assert (await session.heard("worker_exited")).exit.status.signal == signal.SIGKILL
        session.say(stop_workers=stop(key(job_id="job2")))
        session.say(stop_workers=stop(key(job_id="job2"), force=True))
        assert (await session.heard("worker_exited")).key.job_id == "job2"

    async def test_a_key_that_would_leave_the_state_directory_is_ignored(self, session, tmp_path):
        session.say(start_workers=start("true", job_id="../../escaped"))
        session.say(forget_job=agent_pb2.ForgetJob(job_id=".."))
        await session.settled()
        assert (tmp_path / "state" / "instance_id").exists()
        assert session.count("worker_exited", "../../escaped") == 0


class TestEnvironment:
    async def test_the_data_sets_of_a_job_are_in_a_file(self, session, tmp_path, monkeypatch):
        monkeypatch.setenv("HOLDFAST_DATA_MIRROR", "/mirror")
        found = job_pb2.DataSet(name="train", uri="/data")
        found.shards.add(file="a.npy", samples=3, size_bytes=40, digest="0123456789abcdef")
        show = ("sh", "-c", "cat $HOLDFAST_DATASETS; echo; echo $HOLDFAST_DATA_MIRROR")
        session.say(start_workers=start(*show, ranks=(0, 1), datasets=[found]))
        for _ in range(2):
            await session.heard("worker_exited")
        shards = (ShardInfo("a.npy", 3, 40, "0123456789abcdef"),)
        for rank in range(2):
            content, mirror = logs(tmp_path, rank).read_text().splitlines()
            assert decode_declared(content.encode()) == [Declared("train", DataIndex("/data", shards))]
            assert mirror == "/mirror"

    async def test_a_worker_is_told_who_it_is(self, session, tmp_path):
        record = worker_pb2.CommitRecord(job_id="job1", step=40, attempt=1, world_size=3)
        more = {"master_port": 1, "env": {"MINE": "yes"}, "resume_from": "/old/job0"}
        command = start("env", ranks=(1, 2), attempt=2, world_size=3, resume=[record], **more)
        session.say(start_workers=command)
        for _ in range(2):
            await session.heard("worker_exited")
        found = dict(line.split("=", 1) for line in logs(tmp_path, 2, 2).read_text().splitlines())
        assert {
            name: found[name] for name in found if name.startswith(("HOLDFAST", "TORCHELASTIC", "MASTER"))
        } == {
            "HOLDFAST_JOB_ID": "job1",
            "HOLDFAST_ATTEMPT": "2",
            "HOLDFAST_RESUME_STEP": "40",
            "HOLDFAST_RESTART_SCOPE": "gang",
            "HOLDFAST_CHECKPOINT_URI": f"{tmp_path}/state/checkpoints",
            "HOLDFAST_HEARTBEAT_FILE": f"{tmp_path}/state/jobs/job1/2-2/heartbeat",
            "HOLDFAST_RESUME_FROM": "/old/job0",
            "HOLDFAST_SPOOL_DIR": f"{tmp_path}/state/spool",
            "HOLDFAST_SOCKET": found["HOLDFAST_SOCKET"],
            "TORCHELASTIC_RUN_ID": "job1",
            "TORCHELASTIC_RESTART_COUNT": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "1",
        }
        assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"], found["LOCAL_WORLD_SIZE"]) == (
            *("2", "3"),
            *("1", "2"),
        )
        assert (found["GROUP_RANK"], found["MINE"], found["OMP_NUM_THREADS"]) == ("0", "yes", "1")

    async def test_without_a_working_directory_it_is_in_the_agents_own(self, session, tmp_path):
        session.say(start_workers=start("pwd"))
        session.say(start_workers=start("pwd", job_id="job2", working_dir=str(tmp_path)))
        for _ in range(2):
            await session.heard("worker_exited")
        assert logs(tmp_path).read_text() == f"{os.getcwd()}\n"
        assert logs(tmp_path, job_id="job2").read_text() == f"{tmp_path}\n"

    async def test_the_master_port_is_free_when_the_worker_starts(self, session):
        port = session.hello.ports[0]
        with socket.socket() as probe, pytest.raises(OSError):
            probe.bind(("", port))
        bind = f"import socket; s = socket.socket(); s.bind(('', {port})); s.listen()"
        session.say(start_workers=start(sys.executable, "-S", "-c", bind, master_port=port))
        offered = (await session.heard("ports_offered")).ports
        assert port not in offered
        assert len(offered) == 4
        assert (await session.heard("worker_exited")).exit.status.code == 0


class TestForgetting:
    async def test_a_released_exit_is_not_reported_again_and_its_log_stays(
        self, coordinator, session, tmp_path
    ):
        session.say(start_workers=start("echo", "said"))
        await session.heard("worker_exited")
        session.end()
        session = await coordinator.session()
        assert session.inventory[0, 1].exit.status.message == "exit code 0"
        session.say(release_workers=release(key()))
        await session.settled()
        session.end()
        session = await coordinator.session()
        assert (0, 1) not in session.inventory
        assert logs(tmp_path).read_text() == "said\n"

    async def test_a_forgotten_job_leaves_nothing_on_disk(self, session, tmp_path):
        session.say(start_workers=start("echo", "said"))
        await session.heard("worker_exited")
        session.say(release_workers=release(key()))
        session.say(forget_job=agent_pb2.ForgetJob(job_id="job1"))
        await until(lambda: not logs(tmp_path).parent.parent.exists())

    async def test_a_forgotten_job_that_still_runs_is_stopped_first(self, session, tmp_path):
        session.say(start_workers=start(*FOREVER))
        worker = await session.heard("worker_started")
        session.say(forget_job=agent_pb2.ForgetJob(job_id="job1"))
        assert (await session.heard("worker_exited")).exit.status.signal == signal.SIGKILL
        assert not alive(worker.pid)
        session.say(release_workers=release(key()))
        await until(lambda: not logs(tmp_path).parent.parent.exists())


class TestReconnecting:
    async def test_workers_run_on_while_the_coordinator_is_away(self, coordinator, session):
        """P4, P9."""
        session.say(start_workers=start(*FOREVER, ranks=(0, 1)))
        pids = {}
        for _ in range(2):
            started = await session.heard("worker_started")
            pids[started.key.rank] = started.pid
        await coordinator.stop()
        os.kill(pids[0], signal.SIGKILL)
        coordinator.epoch = 2
        await coordinator.start()
        session = await coordinator.session()
        # It is in the inventory, or told after it.
        if not session.inventory[0, 1].HasField("exit"):
            assert (await session.heard("worker_exited")).exit.status.signal == signal.SIGKILL
        else:
            assert session.inventory[0, 1].exit.status.signal == signal.SIGKILL
        assert (session.inventory[1, 1].pid, alive(pids[1])) == (pids[1], True)

    async def test_a_deposed_leader_is_left(self, coordinator, session):
        coordinator.epoch = 5
        session.end()
        session = await coordinator.session()
        await session.settled()
        coordinator.epoch = 4
        session.end()
        deposed = await coordinator.session()
        deposed.say(start_workers=start(*FOREVER))
        await soon(deposed.over.wait())
        coordinator.epoch = 5
        session = await coordinator.session()
        while session.epoch == 4:
            session = await coordinator.session()
        assert (0, 1) not in session.inventory

    async def test_a_command_of_an_older_epoch_is_dropped(self, coordinator, session):
        coordinator.epoch = 5
        session.end()
        session = await coordinator.session()
        session.say(epoch=4, start_workers=start(*FOREVER))
        await session.settled()
        assert session.count("worker_started") == 0

    async def test_heartbeats_tell_what_changed_and_begin_anew_with_each_session(
        self, coordinator, session, tmp_path
    ):
        session.say(start_workers=start(*FOREVER))
        await session.heard("worker_started")
        page = Writer(str(tmp_path / "state/jobs/job1/0-1/heartbeat"))
        page.step(7)
        page.metric("loss", 0.5)
        beat = await session.heard(
            "heartbeat", lambda beat: beat.workers and beat.workers[0].progress.metrics
        )
        assert (beat.workers[0].key, beat.workers[0].progress.step) == (key(), 7)
        assert (beat.workers[0].progress.section, dict(beat.workers[0].progress.metrics)) == (
            "step",
            {"loss": 0.5},
        )
        assert not (await session.beat()).workers
        page.step(8)
        await session.heard("heartbeat", lambda beat: beat.workers and beat.workers[0].progress.step == 8)
        session.end()
        session = await coordinator.session()
        await session.heard("heartbeat", lambda beat: beat.workers and beat.workers[0].progress.step == 8)
        page.close()

    async def test_a_heartbeat_file_that_cannot_be_read_harms_nobody(self, session, tmp_path):
        session.say(
            start_workers=start("sh", "-c", "mkdir $HOLDFAST_HEARTBEAT_FILE; echo up; exec sleep 1000")
        )
        session.say(
            start_workers=start(
                "sh", "-c", "mkfifo $HOLDFAST_HEARTBEAT_FILE; echo up; exec sleep 1000", job_id="job2"
            )
        )
        await line_of(logs(tmp_path))
        await line_of(logs(tmp_path, job_id="job2"))
        await session.beat()
        assert not session.over.is_set()

    async def test_the_coordinator_sets_the_pace(self, session, agent):
        await session.beat()
        assert agent._session._interval_s == BEAT_MS / 1000
        pace = agent_pb2.Pace()
        pace.heartbeat_interval.FromMilliseconds(5_000)
        session.say(pace=pace)
        await session.settled()
        assert agent._session._interval_s == 5

    async def test_how_far_a_worker_came_is_told_with_its_end(self, session):
        write = "from holdfast.heartbeat import Writer; import os; w = Writer(os.environ['HOLDFAST_HEARTBEAT_FILE']);"
        session.say(start_workers=start(sys.executable, "-c", write + "w.step(3); w.step(4); os._exit(9)"))
        ended = await session.heard("worker_exited")
        assert (ended.exit.status.code, ended.exit.progress.step, ended.exit.progress.steps_done) == (9, 4, 2)


class Worker:
    """A worker's end of the link, in this process."""

    def __init__(self, path):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(str(path))
        self._decoder = framing.Decoder()
        self._replies = []

    def say(self, **message):
        data = worker_pb2.WorkerMessage(**message).SerializeToString()
        self._socket.sendall(framing.encode(data))

    def hello(self, rank=0, attempt=1):
        self.say(hello=worker_pb2.WorkerHello(job_id="job1", rank=rank, attempt=attempt, pid=1))

    def prepare(self, step, rank=0):
        self.say(prepare=worker_pb2.Prepare(step=step, shard=worker_pb2.Shard(rank=rank, file=f"{step}")))

    async def reply(self):
        """The next reply; None when the agent hangs up."""
        return await soon(asyncio.to_thread(self._reply))

    def _reply(self):
        while not self._replies:
            data = self._socket.recv(65536)
            if not data:
                return None
            self._replies += map(worker_pb2.WorkerReply.FromString, self._decoder.feed(data))
        return self._replies.pop(0)

    def close(self):
        self._socket.close()


class TestCommits:
    @pytest.fixture
    async def workers(self, session, agent):
        """Two of them, greeted, whose gang resumes from step 5."""
        record = worker_pb2.CommitRecord(job_id="job1", step=5, attempt=1, world_size=2)
        session.say(start_workers=start(*FOREVER, ranks=(0, 1), resume=[record]))
        for _ in range(2):
            await session.heard("worker_started")
        workers = [Worker(agent._link.path) for _ in range(2)]
        for rank, worker in enumerate(workers):
            worker.hello(rank)
            assert (await worker.reply()).welcome.resume == record
        yield workers
        for worker in workers:
            worker.close()

    async def test_a_shard_goes_up_and_the_commit_comes_down(self, session, workers):
        for rank, worker in enumerate(workers):
            worker.prepare(10, rank)
        for _ in range(2):
            prepared = await session.heard("shard_prepared")
            assert (prepared.step, prepared.shard.rank) == (10, prepared.key.rank)
        record = worker_pb2.CommitRecord(job_id="job1", step=10, attempt=1, world_size=2)
        session.say(
            ack_commit=agent_pb2.AckCommit(job_id="job1", attempt=1, step=10, ranks=[0, 1], publish=record)
        )
        assert (await workers[0].reply()).committed == worker_pb2.Committed(step=10, publish=record)
        assert (await workers[1].reply()).committed == worker_pb2.Committed(step=10)

    async def test_a_refusal_comes_down(self, session, workers):
        workers[0].prepare(10)
        await session.heard("shard_prepared")
        session.say(refuse_shard=agent_pb2.RefuseShard(key=key(), step=10, reason="why not"))
        assert (await workers[0].reply()).refused == worker_pb2.Refused(step=10, reason="why not")

    async def test_an_unanswered_shard_is_sent_again_in_every_session_until_it_is_answered(
        self, coordinator, session, workers
    ):
        workers[0].prepare(10)
        await session.heard("shard_prepared")
        session.end()
        session = await coordinator.session()
        assert (await session.heard("shard_prepared")).step == 10
        session.say(ack_commit=agent_pb2.AckCommit(job_id="job1", attempt=1, step=10, ranks=[0]))
        await workers[0].reply()
        session.end()
        session = await coordinator.session()
        await session.settled()
        assert session.count("shard_prepared") == 0

    async def test_a_shard_of_a_dead_worker_goes_nowhere(self, coordinator, session, workers):
        """P2: what an attempt prepared ends with it, even when its connection lives on."""
        session.say(stop_workers=stop(key(), force=True))
        await session.heard("worker_exited")
        workers[0].prepare(10)
        assert (await workers[0].reply()).refused.reason == "this attempt is over"
        await session.settled()
        assert session.count("shard_prepared") == 0

    async def test_what_to_delete_goes_to_the_one_that_publishes(self, session, workers):
        record = worker_pb2.CommitRecord(job_id="job1", step=10, attempt=1, world_size=2)
        ack = agent_pb2.AckCommit(
            job_id="job1", attempt=1, step=10, ranks=[0, 1], publish=record, drop=[3, 4]
        )
        session.say(ack_commit=ack)
        assert list((await workers[0].reply()).committed.drop) == [3, 4]
        assert list((await workers[1].reply()).committed.drop) == []

    async def test_a_report_is_sent_in_every_session_until_it_is_noted(self, coordinator, session, workers):
        report = worker_pb2.Report(kind=worker_pb2.Report.KIND_CORRUPT, step=5, message="x" * 5_000)
        workers[1].say(report=report)
        said = await session.heard("checkpoint_reported")
        report.message = "x" * 1_000
        assert (said.key, said.report) == (key(1), report)
        session.end()
        session = await coordinator.session()
        assert (await session.heard("checkpoint_reported")).report == report
        noted = agent_pb2.NoteReport(key=key(1), kind=report.kind, step=5)
        session.say(note_report=noted)
        assert (await workers[1].reply()).noted == worker_pb2.Noted(kind=report.kind, step=5)
        session.end()
        session = await coordinator.session()
        await session.settled()
        assert session.count("checkpoint_reported") == 0

    async def test_a_report_that_nobody_understands_goes_nowhere(self, session, workers):
        workers[0].say(report=worker_pb2.Report(step=5))
        workers[0].say(report=worker_pb2.Report(kind=worker_pb2.Report.KIND_DRAINED, step=6))
        assert (await session.heard("checkpoint_reported")).report.step == 6

    async def test_who_is_no_worker_here_is_hung_up_on(self, agent, session, workers):
        stranger = Worker(agent._link.path)
        stranger.hello(rank=7)
        assert await stranger.reply() is None
        stranger.close()
        mute = Worker(agent._link.path)
        mute.prepare(10)
        assert await mute.reply() is None
        mute.close()
        noise = Worker(agent._link.path)
        noise._socket.sendall(b"\xff" * 64)
        assert await noise.reply() is None
        noise.close()
        assert session.count("shard_prepared") == 0


async def test_an_agent_that_ends_leaves_its_workers_and_no_socket(tmp_path, mark, coordinator):
    agent = Agent(AgentConfig(coordinator.target, tmp_path / "state"))
    running = asyncio.create_task(agent.run())
    session = await coordinator.session()
    session.say(start_workers=start(*FOREVER))
    worker = await session.heard("worker_started")
    assert [(live.key, live.pid) for live in agent.workers()] == [(("job1", 0, 1), worker.pid)]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await agent.stop(workers=False)
    assert not agent._link.path.exists()
    assert sorted(names(mark).values()) == ["holdfast-shim", "sleep"]
