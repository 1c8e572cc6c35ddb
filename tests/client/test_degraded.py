"""A job whose storage is away: its checkpoints are committed on the machine, said to be, and brought there later."""

import numpy as np
import pytest

import holdfast.worker.run
from holdfast.storage.local import LocalStorage
from holdfast.worker import place, saver, spool
from holdfast.worker.checkpoint import Checkpoints
from tests.checkpoint.away import Away
from tests.checkpoint.places import names_below
from tests.client.fake_agent import PATIENCE


class Line:
    """The storages that workers open, all behind one line that may be cut."""

    def __init__(self, uri):
        self._uri = uri
        self._cut = False
        self._opened = []

    def open(self, uri, below="", writer=None, env=None):
        storage = Away(self._uri, gone=self._cut)
        storage.uri = f"{self._uri}/{below}"
        storage._there = LocalStorage(str(self._uri), below, writer)
        self._opened.append(storage)
        return storage

    def cut(self):
        self._cut = True
        for storage in self._opened:
            storage.gone = True

    def mend(self):
        self._cut = False
        for storage in self._opened:
            storage.gone = False


@pytest.fixture
def line(uri, tmp_path, monkeypatch):
    line = Line(uri)
    monkeypatch.setattr(place, "open_storage", line.open)
    monkeypatch.setattr(holdfast.worker.run, "EXIT_PATIENCE", 0.05)
    monkeypatch.setattr(place, "_LOCAL_SPOOL", str(tmp_path / "spool"))
    for name, pause in (("FIRST_PAUSE", 0.001), ("LAST_PAUSE", 0.01)):
        monkeypatch.setattr(spool, name, pause)
        monkeypatch.setattr(saver, name, pause)
    yield line
    line.mend()


def take(run, step):
    run.step(step)
    run.checkpoint({"step": np.full(9, step)}, wait=True)


def drained(agent, *steps, rank=0, attempt=1):
    expected = {(rank, attempt, "KIND_DRAINED", step) for step in steps}
    agent.wait_for(lambda: expected <= set(agent.reports))


def test_it_is_committed_here_and_brought_there(line, make_agent, start, uri, tmp_path, capfd):
    agent = make_agent()
    run = start(agent)
    take(run, 1)
    line.cut()
    for step in (2, 3):
        take(run, step)
        assert agent.commits[None].step == step
        assert [shard.local_only for shard in agent.commits[None].shards] == [True]
    assert not (uri / "job-1/step-0000000002").exists()
    line.mend()
    drained(agent, 2, 3)
    assert run._saver._storage.wait(PATIENCE)
    take(run, 4)
    run.close()
    assert [shard.local_only for shard in agent.commits[None].shards] == [False]
    assert (uri / "job-1/LATEST").read_text() == "step-0000000004\n"
    assert all((uri / f"job-1/step-{step:010}/manifest.json").exists() for step in (1, 2, 3, 4))
    assert names_below(tmp_path / "spool") == ["job-1/DESTINATION"]
    assert capfd.readouterr().err.count("cannot be written") == 1


def test_a_worker_resumes_while_the_storage_is_away(line, make_agent, start, tmp_path):
    agent = make_agent()
    line.cut()
    run = start(agent)
    take(run, 5)
    run._saver._storage.close()
    again = start(agent, attempt=2, resume_step=5)
    assert again.restore()["step"][0] == 5
    take(again, 6)
    assert agent.commits[None].step == 6


def test_it_resumes_by_the_record_when_another_rank_holds_the_manifest(
    line, make_agent, start, monkeypatch, tmp_path
):
    """Two machines: the manifest is held by that of rank 0."""
    agent = make_agent(world_size=2)
    line.cut()
    for rank in (0, 1):
        monkeypatch.setattr(place, "_LOCAL_SPOOL", str(tmp_path / f"spool-{rank}"))
        run = start(agent, rank)
        run.step(5)
        run.checkpoint({"rank": rank})
        agent.wait_for(lambda rank=rank: (rank, 1, 5) in agent.prepares)
    agent.wait_for(lambda: None in agent.commits)
    assert not (tmp_path / "spool-1/job-1/step-0000000005/manifest.json").exists()
    again = start(agent, 1, attempt=2, resume_step=5)
    assert again.restore() == {"rank": 1}


def test_a_shard_on_another_machine_is_waited_for(line, make_agent, start, monkeypatch, tmp_path, uri, capfd):
    agent = make_agent()
    line.cut()
    run = start(agent)
    take(run, 5)
    run._saver._storage.close()
    monkeypatch.setattr(place, "_LOCAL_SPOOL", str(tmp_path / "elsewhere"))
    line.mend()
    again = start(agent, attempt=2, resume_step=5)

    def comes(sentence):
        if "another machine holds" in sentence:
            assert spool.drain_directory(str(tmp_path / "spool")) == []

    monkeypatch.setattr(spool, "open_storage", lambda uri: LocalStorage(uri))
    monkeypatch.setattr(saver, "say", comes)
    assert again.restore()["step"][0] == 5
    assert agent.reports == []


def test_one_that_never_comes_is_reported(line, make_agent, start, monkeypatch, tmp_path):
    monkeypatch.setattr(saver, "HELD_PATIENCE", 0.01)
    agent = make_agent()
    line.cut()
    run = start(agent)
    take(run, 5)
    run._saver._storage.close()
    monkeypatch.setattr(place, "_LOCAL_SPOOL", str(tmp_path / "elsewhere"))
    line.mend()
    with pytest.raises(saver.CheckpointCorrupt):
        start(agent, attempt=2, resume_step=5).restore()
    assert (0, 2, "KIND_CORRUPT", 5) in agent.reports


def test_what_an_earlier_attempt_held_is_brought_by_the_next(line, make_agent, start, uri):
    agent = make_agent()
    line.cut()
    first = start(agent)
    take(first, 5)
    first._saver._storage.close()
    line.mend()
    again = start(agent, attempt=2, resume_step=5)
    again.restore()
    drained(agent, 5, attempt=2)
    assert (uri / "job-1/step-0000000005/rank-00000.attempt-1.safetensors").exists()


class Ledger:
    """A committer that remembers what it was told, in order."""

    def __init__(self):
        self.told = []

    def submit(self, step, shard):
        self.told.append(("submit", step, shard.local_only))

    def drained(self, step, timeout):
        self.told.append(("drained", step))
        return True

    def wait(self, step, timeout=None):
        return True

    def committed(self, step):
        return True

    def close(self):
        pass


def test_that_a_shard_was_brought_is_said_after_the_shard(line, make_agent, start, monkeypatch):
    """The storage is back in the moment between the writing and the saying."""
    run, ledger = start(make_agent()), Ledger()
    run._checkpoints()._committer = ledger
    line.cut()
    save = Checkpoints.save

    def overtaken(checkpoints, step, what):
        shard = save(checkpoints, step, what)
        line.mend()
        assert checkpoints._storage.wait(PATIENCE)
        return shard._replace(local_only=True)

    monkeypatch.setattr(Checkpoints, "save", overtaken)
    take(run, 5)
    assert ledger.told == [("drained", 5), ("submit", 5, True), ("drained", 5)]


def test_a_lone_process_resumes_from_what_is_whole_here(line, start_alone, monkeypatch):
    run = start_alone()
    take(run, 1)
    line.cut()
    take(run, 2)
    run._saver._storage.close()
    again = start_alone()
    assert again.restore()["step"][0] == 2
    assert again.resume_step == 2
    take(again, 3)
    line.mend()
    assert again._saver._storage.wait(PATIENCE)
    again.close()
    assert start_alone().restore()["step"][0] == 3
