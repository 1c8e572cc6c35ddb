"""The small parts: environment, ports, facts, the state directory, where the socket is."""

import asyncio
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast import framing
from holdfast.v1 import worker_pb2
from holdfast_agent import node
from holdfast_agent.core import Key
from holdfast_agent.environment import Place, worker_environment
from holdfast_agent.ports import HELD, Ports
from holdfast_agent.workdir import StateDir, StateDirError
from holdfast_agent.worker_link import WorkerLink, socket_path

PLACE = Place(
    job_id="job1",
    rank=1,
    world_size=2,
    local_rank=1,
    local_world_size=2,
    group_rank=0,
    attempt=3,
    restart_count=2,
    scope="gang",
    resume_step=None,
    gpus=(),
    master_addr="10.0.0.1",
    master_port=4000,
)


def environment(place=PLACE, inherited=(), asked=(), checkpoint_uri="/checkpoints"):
    return worker_environment(
        place,
        inherited=dict(inherited),
        asked=dict(asked),
        checkpoint_uri=checkpoint_uri,
        node_checkpoints="/node",
        socket="/socket",
        heartbeat_file="/heartbeat",
        spool_dir="/spool",
        resume_from="s3://bucket/old",
    )


class TestEnvironment:
    def test_the_specs_wins_over_the_agents_and_who_it_is_over_both(self):
        found = environment(
            inherited={"A": "agent", "B": "agent", "RANK": "9"}, asked={"B": "spec", "WORLD_SIZE": "9"}
        )
        assert (found["A"], found["B"], found["RANK"], found["WORLD_SIZE"]) == ("agent", "spec", "1", "2")

    def test_no_step_to_resume_from_is_empty(self):
        assert environment()["HOLDFAST_RESUME_STEP"] == ""
        assert environment(replace(PLACE, resume_step=0))["HOLDFAST_RESUME_STEP"] == "0"

    def test_it_says_where_checkpoints_lie_and_wait_and_come_from(self):
        names = ("HOLDFAST_CHECKPOINT_URI", "HOLDFAST_SPOOL_DIR", "HOLDFAST_RESUME_FROM")
        assert [environment()[name] for name in names] == ["/checkpoints", "/spool", "s3://bucket/old"]

    @pytest.mark.parametrize(
        ("asked", "where"), [({}, "/node"), ({"USE_S3": "0"}, "/node"), ({"USE_S3": "1"}, "checkpoints")]
    )
    def test_checkpoints_without_a_place_lie_on_the_node_or_where_every_node_sees_them(self, asked, where):
        assert environment(asked=asked, checkpoint_uri="")["HOLDFAST_CHECKPOINT_URI"] == where

    def test_where_s3_is_and_who_may_use_it_is_inherited(self):
        s3 = {"USE_S3": "1", "S3_BUCKET": "b", "S3_ENDPOINT": "http://h:1", "AWS_ACCESS_KEY_ID": "k"}
        found = environment(inherited=s3, asked={"S3_BUCKET": "mine"})
        assert {name: found[name] for name in s3} == s3 | {"S3_BUCKET": "mine"}

    def test_threads_are_bounded_where_ranks_share_a_node_unless_somebody_has_said(self):
        assert environment()["OMP_NUM_THREADS"] == "1"
        assert environment(inherited={"OMP_NUM_THREADS": "8"})["OMP_NUM_THREADS"] == "8"
        assert "OMP_NUM_THREADS" not in environment(replace(PLACE, world_size=1))

    def test_output_is_unbuffered_unless_somebody_has_said(self):
        assert environment()["PYTHONUNBUFFERED"] == "1"
        assert environment(asked={"PYTHONUNBUFFERED": ""})["PYTHONUNBUFFERED"] == ""

    def test_gpus_and_a_master_are_named_where_there_are_any(self):
        assert environment(replace(PLACE, gpus=(0, 3)))["CUDA_VISIBLE_DEVICES"] == "0,3"
        assert "CUDA_VISIBLE_DEVICES" not in environment()
        assert environment()["MASTER_ADDR"] == "10.0.0.1"
        assert "MASTER_ADDR" not in environment(replace(PLACE, master_port=0))


class TestPorts:
    @pytest.fixture
    def ports(self):
        ports = Ports()
        yield ports
        ports.close()

    def test_a_held_port_is_nobody_elses_until_it_is_let_go_of(self, ports):
        port = ports.offered()[0]
        with socket.socket() as other:
            with pytest.raises(OSError):
                other.bind(("127.0.0.1", port))
            assert ports.release(port)
            other.bind(("127.0.0.1", port))

    def test_another_takes_its_place(self, ports):
        before = ports.offered()
        ports.release(before[0])
        after = ports.offered()
        assert len(after) == HELD
        assert before[0] not in after

    def test_nobody_is_given_one_by_the_kernel_after_it_was_let_go_of(self, ports):
        first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
        assert not [port for port in ports.offered() if first <= port <= last]

    def test_where_the_kernel_gives_all_of_them_any_will_do(self, tmp_path, monkeypatch):
        (tmp_path / "range").write_text("1024\t65535\n")
        monkeypatch.setattr("holdfast_agent.ports._EPHEMERAL", tmp_path / "range")
        ports = Ports()
        assert len(ports.offered()) == HELD
        ports.close()

    def test_a_port_of_somebody_else_is_left_alone(self, ports):
        before = ports.offered()
        assert not ports.release(1)
        assert ports.offered() == before


class TestNode:
    @pytest.mark.parametrize("target", ["unix:/somewhere/c.sock", "127.0.0.1:7070", "localhost:7070"])
    def test_a_coordinator_on_this_machine_is_reached_over_loopback(self, target):
        assert node.address_towards(target) in ("127.0.0.1", "::1")

    def test_of_several_coordinators_the_first_says_the_way(self, monkeypatch):
        asked = []

        def look_up(host, port, **_):
            asked.append((host, port))
            raise OSError

        monkeypatch.setattr(node.socket, "getaddrinfo", look_up)
        assert node.address_towards("10.0.0.1:7070,10.0.0.2:7071") == "127.0.0.1"
        assert asked == [("10.0.0.1", 7070)]

    def test_what_cannot_be_reached_leaves_loopback(self):
        assert node.address_towards("no-such-host.invalid:1") == "127.0.0.1"
        assert node.address_towards("nonsense") == "127.0.0.1"

    def test_without_nvidia_smi_there_are_no_gpus(self, monkeypatch):
        monkeypatch.setenv("PATH", "")
        assert node.look().gpus == 0

    def test_with_it_its_lines_are_counted(self, monkeypatch, tmp_path):
        tool = tmp_path / "nvidia-smi"
        tool.write_text("#!/bin/sh\necho GPU 0; echo GPU 1\n")
        tool.chmod(0o700)
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
        assert node.look().gpus == 2
        tool.write_text("#!/bin/sh\necho no driver; exit 9\n")
        assert node.look().gpus == 0


class TestStateDir:
    @pytest.fixture
    def state_dir(self, tmp_path):
        state_dir = StateDir(tmp_path / "state")
        yield state_dir
        state_dir.close()

    def test_its_id_stays(self, tmp_path):
        first = StateDir(tmp_path)
        first.close()
        second = StateDir(tmp_path)
        second.close()
        assert first.instance_id == second.instance_id != ""

    def test_it_is_nobody_elses_to_look_into(self, state_dir):
        assert state_dir.path.stat().st_mode & 0o777 == 0o700

    def test_an_id_that_was_torn_is_made_anew(self, tmp_path):
        (tmp_path / "instance_id").write_text("")
        state_dir = StateDir(tmp_path)
        state_dir.close()
        assert len(state_dir.instance_id) == 32

    def test_a_second_agent_is_told_what_to_do(self, state_dir):
        with pytest.raises(StateDirError, match=r"another agent uses .* --state-dir"):
            StateDir(state_dir.path)

    def test_a_place_that_cannot_be_used_is_one_sentence(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(StateDirError, match=r"can't use the state directory .*: Not a directory"):
            StateDir(tmp_path / "file" / "state")

    def test_a_full_disk_is_one_sentence_and_holds_no_lock(self, tmp_path, monkeypatch):
        def full(_):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(StateDirError, match="No space left on device"):
                StateDir(tmp_path)
        StateDir(tmp_path).close()

    def test_an_attempt_appears_whole_and_locked(self, state_dir):
        attempt, lock = state_dir.create(Key("job1", 0, 1), {"argv": ["true"]}, b"resume")
        assert attempt.read("start.json") == {"argv": ["true"]}
        assert attempt.read_resume() == b"resume"
        assert attempt.try_lock() is None
        os.close(lock)
        os.close(attempt.try_lock())

    def test_what_was_left_half_made_is_in_nobodys_way(self, state_dir):
        half = state_dir.path / "jobs" / "job1" / ".0-1"
        half.mkdir(parents=True)
        (half / "start.json").write_text("half")
        assert list(state_dir.attempts()) == []
        attempt, lock = state_dir.create(Key("job1", 0, 1), {"argv": ["true"]}, b"")
        os.close(lock)
        assert [a.key for a in state_dir.attempts()] == [Key("job1", 0, 1)]
        assert attempt.read_resume() == b""

    def test_a_deleted_job_leaves_nothing(self, state_dir):
        attempt, lock = state_dir.create(Key("job1", 0, 1), {"argv": ["true"]}, b"")
        os.close(lock)
        empty = state_dir.spool / "job1" / "rank-00000"
        empty.mkdir(parents=True)
        state_dir.remove_job("job1")
        assert not attempt.path.parent.exists()
        assert list(state_dir.spool.iterdir()) == []

    def test_a_job_may_be_deleted_while_attempts_are_looked_through(self, state_dir):
        for job_id in ("job1", "job2", "job3"):
            _, lock = state_dir.create(Key(job_id, 0, 1), {"argv": ["true"]}, b"")
            os.close(lock)
        found = state_dir.attempts()
        assert next(found).key.job_id == "job1"
        state_dir.remove_job("job2")
        assert [attempt.key.job_id for attempt in found] == ["job3"]

    def test_but_for_checkpoint_files_that_are_nowhere_else(self, state_dir):
        file = state_dir.spool / "job1" / "step-0000000010" / "rank-00000.attempt-1.safetensors"
        file.parent.mkdir(parents=True)
        file.write_text("the only copy")
        other = state_dir.spool / "job2"
        other.mkdir()
        state_dir.remove_job("job1")
        assert file.read_text() == "the only copy"
        assert other.exists()


class TestSocketPath:
    def test_in_the_state_directory_where_that_is_short_enough(self, tmp_path):
        assert socket_path(tmp_path) == tmp_path / "worker.sock"

    def test_elsewhere_and_always_the_same_where_it_is_not(self, tmp_path):
        deep = tmp_path / ("deep" * 30)
        path = socket_path(deep)
        assert len(os.fsencode(path)) <= 100
        assert path == socket_path(deep) != socket_path(tmp_path / ("peed" * 30))
        assert path.parent.stat().st_mode & 0o077 == 0


async def test_who_is_connected_when_the_agent_ends_is_hung_up_on_and_nobody_serves_it_any_more(tmp_path):
    connected = asyncio.Event()
    link = WorkerLink(
        tmp_path,
        welcome=lambda _: worker_pb2.WorkerWelcome(),
        prepared=lambda *_: None,
        reported=lambda *_: None,
        connected=lambda _: connected.set(),
        answered=lambda *_: None,
    )
    before = asyncio.all_tasks()
    await link.start()
    ends = [await asyncio.open_unix_connection(link.path) for _ in range(2)]
    hello = worker_pb2.WorkerHello(job_id="job1", rank=0, attempt=1)
    ends[1][1].write(framing.encode(worker_pb2.WorkerMessage(hello=hello).SerializeToString()))
    await connected.wait()  # the first says nothing
    await link.stop()
    assert asyncio.all_tasks() == before
    for reader, writer in ends:
        while await reader.read(1000):
            pass
        writer.close()
