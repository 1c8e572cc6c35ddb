# ruff: noqa: F401, F811  fixtures are imported by name
"""`holdfast checkpoint get|delete|pin|verify` and what `--resume-from` means."""

import json
import textwrap

import numpy as np
import pytest
from google.protobuf.json_format import ParseDict
from google.rpc import code_pb2

from holdfast.cli.exits import EXIT
from holdfast.storage.local import LocalStorage
from holdfast.v1 import job_pb2, worker_pb2
from holdfast.worker.checkpoint import Checkpoints, Owner, packed
from holdfast.worker.manifest import Commit
from tests.client.fake_coordinator import status
from tests.client.scripted import ago, coordinator, holdfast, make_job, run

JOB = "k7m2p9xq4w"
SHARDS = [
    worker_pb2.Shard(
        rank=rank,
        file=f"rank-0000{rank}.attempt-2.safetensors",
        size_bytes=2**20,
        digest=f"{rank:016x}",
        cursor='{"epoch": 1}',
        metrics={"loss": 0.25},
        local_only=rank == 1,
    )
    for rank in range(2)
]


def lines(text):
    return textwrap.dedent(text).lstrip("\n")


def save(place, step, state):
    """A checkpoint as a worker leaves it."""
    checkpoints = Checkpoints(Owner(JOB, 0, 1), LocalStorage(str(place), JOB))
    shard = checkpoints.save(step, packed(state))
    checkpoints.publish(Commit(JOB, step, 1, None, 1, 1000 + step, (shard,)))


@pytest.fixture
def place(tmp_path):
    return tmp_path / "shared"


@pytest.fixture(autouse=True)
def full(coordinator, place):
    coordinator.add_job(make_job())
    coordinator.jobs[JOB].spec.checkpoint_uri = str(place)
    for step in (300, 200):
        coordinator.checkpoints.append(
            job_pb2.Checkpoint(
                job_id=JOB,
                step=step,
                attempt=2,
                committed_at=ago(2.5 * 3_600),
                size_bytes=2**21,
                shard_count=2,
                uri=str(place),
                degraded=step == 300,
                pin="good" if step == 200 else "",
                metrics={"loss": 0.25},
                world_size=2,
            )
        )
        coordinator.records[step] = worker_pb2.CommitRecord(
            job_id=JOB, step=step, attempt=2, world_size=2, shards=SHARDS
        )


@pytest.fixture
def files(place):
    """What lies in the storage of the job's two checkpoints."""
    for step in (300, 200):
        directory = place / JOB / f"step-{step:010d}"
        directory.mkdir(parents=True)
        for name in ("manifest.json", *(shard.file for shard in SHARDS), "rank-00000.attempt-1.safetensors"):
            (directory / name).write_text(f"{name} of {step}")


def found_in(place):
    return sorted(path.name for path in (place / JOB).glob("*"))


class TestGet:
    def test_a_table_of_it_and_of_its_files(self, holdfast, place):
        shown = holdfast("checkpoint", "get", JOB).stdout
        assert [line.rstrip() for line in shown.splitlines() if line] == lines(f"""
            step        300
            attempt     2
            rank        all
            world size  2
            committed   2h ago
            size        2.0 MiB in 2 files
            metrics     loss=0.25
            pinned as   -
            where       {place}
            state       degraded: files lie on their nodes alone
            RANK  FILE                              SIZE     DIGEST            LIES            METRICS
            0     rank-00000.attempt-2.safetensors  1.0 MiB  0000000000000000  in the storage  loss=0.25
            1     rank-00001.attempt-2.safetensors  1.0 MiB  0000000000000001  on its node     loss=0.25
        """).splitlines()

    def test_json_is_the_protos_own_form(self, coordinator, holdfast):
        data = json.loads(holdfast("checkpoint", "get", JOB, "200", "-o", "json").stdout)
        found = ParseDict(data, job_pb2.GetCheckpointResponse())
        assert (found.checkpoint, found.record) == (coordinator.checkpoints[1], coordinator.records[200])

    def test_the_name(self, holdfast):
        assert holdfast("checkpoint", "get", JOB, "-o", "name").stdout == "step-0000000300\n"

    def test_one_that_is_not_there(self, holdfast):
        result = holdfast("checkpoint", "get", JOB, "7")
        assert (result.exit_code, result.stdout) == (EXIT.NOT_FOUND, "")
        assert result.stderr == f"Error: job {JOB} has no checkpoint of step 7; list its checkpoints\n"

    def test_its_files_are_copied(self, holdfast, files, place, tmp_path):
        result = holdfast("checkpoint", "get", JOB, "200", "--download", str(tmp_path / "here"), "-o", "name")
        assert result.exit_code == 0, result.stderr
        copied, kept = tmp_path / "here" / "step-0000000200", place / JOB / "step-0000000200"
        assert {p.name: p.read_text() for p in copied.iterdir()} == {
            p.name: p.read_text() for p in kept.iterdir()
        }

    def test_files_that_are_not_there_are_not_copied(self, holdfast, place, tmp_path):
        result = holdfast("checkpoint", "get", JOB, "--download", str(tmp_path / "here"))
        assert result.exit_code == EXIT.NOT_FOUND
        assert f"there is no step-0000000300 in {place / JOB}" in result.stderr


class TestDelete:
    def test_while_the_job_runs_a_worker_deletes_the_files(self, holdfast, files, place):
        result = holdfast("checkpoint", "delete", JOB, "200")
        assert (result.exit_code, result.stdout) == (0, "")
        assert result.stderr == "step 200 is forgotten; a worker deletes its files with the next checkpoint\n"
        assert found_in(place) == ["step-0000000200", "step-0000000300"]

    def test_of_a_job_that_has_ended_this_command_does(self, coordinator, holdfast, files, place):
        coordinator.ended = True
        assert holdfast("checkpoint", "delete", JOB, "200").stderr == "step 200 deleted\n"
        assert found_in(place) == ["step-0000000300"]

    def test_in_scope_rank_only_those_of_the_rank(self, coordinator, holdfast, place):
        coordinator.ended = True
        coordinator.records[200].rank = 1
        for rank in (0, 1):
            directory = place / JOB / f"rank-0000{rank}" / "step-0000000200"
            directory.mkdir(parents=True)
            (directory / "manifest.json").write_text("{}")
        assert holdfast("checkpoint", "delete", JOB, "200", "--rank", "1").exit_code == 0
        (request,) = coordinator.asked("DeleteCheckpoint")
        assert request.rank == 1
        assert [str(p.relative_to(place)) for p in place.rglob("manifest.json")] == [
            f"{JOB}/rank-00000/step-0000000200/manifest.json"
        ]

    def test_what_lies_on_the_nodes_stays_there(self, coordinator, holdfast):
        coordinator.ended = True
        coordinator.jobs[JOB].spec.checkpoint_uri = ""
        result = holdfast("checkpoint", "delete", JOB, "200")
        assert result.exit_code == 0
        assert "below the agents' state directories, and stay" in result.stderr

    def test_a_refusal_is_passed_on_and_nothing_is_deleted(self, coordinator, holdfast, files, place):
        refusal = status(code_pb2.FAILED_PRECONDITION, 'it is pinned as "good"', remedy="unpin it first")
        coordinator.fail("DeleteCheckpoint", refusal)
        result = holdfast("checkpoint", "delete", JOB, "200")
        assert (result.exit_code, result.stderr) == (
            EXIT.FAILED,
            'Error: it is pinned as "good"; unpin it first\n',
        )
        assert found_in(place) == ["step-0000000200", "step-0000000300"]


class TestPin:
    def test_under_a_name(self, coordinator, holdfast):
        result = holdfast("checkpoint", "pin", JOB, "200", "good", "--rank", "0")
        assert (result.exit_code, result.stderr) == (0, 'step 200 is pinned as "good"\n')
        (request,) = coordinator.asked("PinCheckpoint")
        assert (request.step, request.name, request.rank) == (200, "good", 0)

    def test_without_one_it_is_let_go_of(self, coordinator, holdfast):
        assert holdfast("checkpoint", "unpin", JOB, "200").stderr == "step 200 is not pinned\n"
        (request,) = coordinator.asked("PinCheckpoint")
        assert (request.name, request.HasField("rank")) == ("", False)

    def test_an_empty_name_is_no_way_to_unpin(self, holdfast):
        assert holdfast("checkpoint", "pin", JOB, "200", "").exit_code == EXIT.USAGE


class TestVerify:
    """The command, over real files; what verifying is, see the tests of the worker library."""

    @pytest.fixture
    def files(self, place):
        """Two checkpoints of a job, the older of which has lost a bit."""
        for step in (200, 300):
            save(place, step, {"w": np.arange(1000.0)})
        (shard,) = (place / JOB / "step-0000000200").glob("*.safetensors")
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
        return place

    def test_a_place_is_looked_at_without_a_coordinator(self, files):
        result = run("checkpoint", "verify", str(files), "--server", "unix:/nobody.sock")
        assert (result.exit_code, result.stderr) == (0, "")
        assert [line.split() for line in result.stdout.splitlines()] == [
            ["CHECKPOINT", "STEP", "RANK", "FILES", "SIZE", "STATE"],
            [f"{JOB}/step-0000000300", "300", "all", "1", "8.1", "KiB", "ok"],
        ]

    def test_one_that_is_corrupt_is_an_error_that_names_the_tensor(self, files):
        result = run("checkpoint", "verify", str(files), "--all")
        assert result.exit_code == EXIT.FAILED
        assert "CORRUPT: checkpoint is corrupt" in result.stdout
        assert "tensor 'w'" in result.stdout
        assert result.stderr == f"Error: 1 of 2 checkpoints in {files} are not what was committed\n"

    def test_a_name_in_a_file_steers_no_terminal(self, place):
        save(place, 5, {"\x1b[31mred": np.arange(10.0)})
        (shard,) = (place / JOB / "step-0000000005").glob("*.safetensors")
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
        result = run("checkpoint", "verify", str(place))
        assert "CORRUPT" in result.stdout
        assert "\x1b" not in result.stdout

    def test_where_there_is_none(self, place):
        result = run("checkpoint", "verify", str(place), "--step", "5")
        assert result.exit_code == EXIT.NOT_FOUND
        assert result.stderr == f"Error: there is no checkpoint of step 5 in {place}\n"

    def test_those_of_a_job_are_found_by_its_id(self, files, holdfast):
        assert holdfast("checkpoint", "verify", JOB).exit_code == 0
        assert holdfast("checkpoint", "verify", JOB, "--step", "200").exit_code == EXIT.FAILED

    def test_a_job_whose_nodes_keep_them(self, coordinator, holdfast):
        coordinator.jobs[JOB].spec.checkpoint_uri = ""
        result = holdfast("checkpoint", "verify", JOB)
        assert result.exit_code == EXIT.FAILED
        assert "lie below its agents' state directories" in result.stderr

    def test_no_such_job(self, holdfast):
        assert holdfast("checkpoint", "verify", "nope").exit_code == EXIT.NOT_FOUND

    def test_json_and_names(self, files):
        (verdict,) = json.loads(run("checkpoint", "verify", str(files), "-o", "json").stdout)["verdicts"]
        assert (verdict["where"], verdict["ok"]) == (f"{JOB}/step-0000000300", True)
        assert run("checkpoint", "verify", str(files), "-o", "name").stdout == f"{JOB}/step-0000000300\n"

    def test_one_step_and_all_of_them_are_not_both(self, place):
        assert run("checkpoint", "verify", str(place), "--all", "--step", "3").exit_code == EXIT.USAGE

    def test_a_place_that_is_no_storage_is_one_sentence(self):
        result = run("checkpoint", "verify", "file://host/x")
        assert (result.exit_code, result.stdout) == (EXIT.FAILED, "")
        assert result.stderr.startswith("Error: 'file://host/x' names no directory")


class TestResumeFrom:
    def submit(self, coordinator, holdfast, where):
        result = holdfast("job", "submit", "--resume-from", where, "--", "train")
        asked = coordinator.asked("CreateJob")
        return result, asked[0].spec.resume_from if asked else None

    @pytest.mark.parametrize("uri", ["s3://bucket/x", "/shared/x", "file:///x"])
    def test_a_place_is_taken_as_it_is(self, coordinator, holdfast, uri):
        assert self.submit(coordinator, holdfast, uri)[1] == uri

    @pytest.mark.parametrize("path", ["./old", "old/step-0000000300", "old"])
    def test_a_path_is_made_absolute(self, coordinator, holdfast, tmp_path, monkeypatch, path):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "old").mkdir()
        assert self.submit(coordinator, holdfast, path)[1] == str(tmp_path / path)

    def test_a_job_is_asked_where_its_checkpoints_lie(self, coordinator, holdfast, place):
        assert self.submit(coordinator, holdfast, JOB)[1] == f"{place}/{JOB}"

    def test_and_a_step_of_it_whether_it_is_kept(self, coordinator, holdfast, place):
        assert self.submit(coordinator, holdfast, f"{JOB}@200")[1] == f"{place}/{JOB}/step-0000000200"
        result, _ = self.submit(coordinator, holdfast, f"{JOB}@7")
        assert result.exit_code == EXIT.NOT_FOUND
        assert "has no checkpoint of step 7" in result.stderr

    def test_a_job_without_checkpoints(self, coordinator, holdfast):
        coordinator.jobs[JOB].ClearField("last_committed_step")
        result, spec = self.submit(coordinator, holdfast, JOB)
        assert (result.exit_code, spec) == (EXIT.USAGE, None)
        assert f"--resume-from: job {JOB} has no checkpoint yet" in result.stderr

    def test_a_job_whose_nodes_keep_them(self, coordinator, holdfast):
        coordinator.jobs[JOB].spec.checkpoint_uri = ""
        result, spec = self.submit(coordinator, holdfast, JOB)
        assert (result.exit_code, spec) == (EXIT.USAGE, None)
        assert "give their path" in result.stderr

    def test_a_run_of_this_directory_goes_by_its_name(self, coordinator, holdfast, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        place = tmp_path / ".holdfast" / "runs" / "digits" / "checkpoints"
        (place / "abc" / "step-0000000200").mkdir(parents=True)
        assert self.submit(coordinator, holdfast, "digits")[1] == str(place / "abc")

    def test_and_a_step_of_it(self, coordinator, holdfast, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        step = tmp_path / ".holdfast" / "runs" / "digits" / "checkpoints" / "abc" / "step-0000000200"
        step.mkdir(parents=True)
        assert self.submit(coordinator, holdfast, "digits@200")[1] == str(step)
        coordinator.requests.clear()
        result, spec = self.submit(coordinator, holdfast, "digits@300")
        assert (result.exit_code, spec) == (EXIT.USAGE, None)
        assert "run digits has no checkpoint of all ranks of step 300" in result.stderr

    def test_a_run_without_checkpoints(self, coordinator, holdfast, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / ".holdfast" / "runs" / "digits").mkdir(parents=True)
        result, spec = self.submit(coordinator, holdfast, "digits")
        assert (result.exit_code, spec) == (EXIT.USAGE, None)
        assert "run digits has no checkpoint" in result.stderr
