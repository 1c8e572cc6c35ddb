"""Sharded state of torch: saved by any number of ranks, in any layout, and restored by any other, bit for bit."""

import itertools
import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.storage.local import LocalReader, LocalStorage, Writer
from holdfast.worker import shard_file
from holdfast.worker import state as plain_state
from holdfast.worker.checkpoint import Checkpoints, Owner, packed
from holdfast.worker.errors import CheckpointCorrupt, CheckpointError, CheckpointMismatch
from holdfast.worker.identity import identify
from holdfast.worker.manifest import Commit, decode
from holdfast.worker.run import Run
from holdfast.worker.shard_file import ShardFile
from tests.client.fake_agent import FakeAgent
from tests.ports import free_port

torch = pytest.importorskip("torch", reason="torch is not installed (`make torch`)")

import torch.distributed as dist  # noqa: E402
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner  # noqa: E402
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.tensor import DTensor, Replicate, Shard  # noqa: E402
from torch.distributed.tensor import empty as empty_dtensor  # noqa: E402
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset  # noqa: E402
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402

import holdfast.torch  # noqa: E402
from holdfast.torch.loading import Saved  # noqa: E402
from holdfast.torch.part import Piece, make_part  # noqa: E402
from tests.client import sharded_program  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]
PROGRAM = str(Path(sharded_program.__file__))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """What four real ranks have saved: the directory of the checkpoints, and what each said."""
    top = tmp_path_factory.mktemp("saved")
    agent = FakeAgent(top / "worker.sock", world_size=4)
    env = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OMP_NUM_THREADS": "1",
        "HOLDFAST_JOB_ID": agent.job_id,
        "HOLDFAST_ATTEMPT": "1",
        "HOLDFAST_SOCKET": agent.path,
        "HOLDFAST_CHECKPOINT_URI": str(top),
        "WORLD_SIZE": "4",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, PROGRAM], env={**env, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(4)
    ]
    try:
        said = [rank.communicate(timeout=250)[0] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0] * 4
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
        agent.stop()
    return top / agent.job_id, [json.loads(text) for text in said]


class World:
    """Being one rank of a world, whose other ranks are not there: nothing is said between them."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size

    def __enter__(self):
        dist.init_process_group("fake", rank=self.rank, world_size=self.size, store=FakeStore())

    def __exit__(self, *_):
        dist.destroy_process_group()


def local_part(tensor, dtensor):
    """What of a whole tensor is this rank's part of a DTensor."""
    lengths, offsets = compute_local_shape_and_global_offset(
        dtensor.shape, dtensor.device_mesh, dtensor.placements
    )
    for dimension, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        tensor = tensor.narrow(dimension, min(offset, tensor.shape[dimension]), length)
    return tensor


def same(one, other):
    return (one.dtype, one.shape) == (other.dtype, other.shape) and bits(one) == bits(other)


def bits(tensor):
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).tolist() if tensor.numel() else []


@pytest.fixture
def restore(tmp_path):
    """Restores a state as a world of one does that begins with another job's checkpoint."""
    runs = itertools.count()

    def make(source, state, *, partial=False):
        env = {
            "HOLDFAST_RESUME_FROM": str(source),
            "HOLDFAST_CHECKPOINT_URI": str(tmp_path / f"{next(runs)}"),
        }
        run = Run(identify(env, "train.py"))
        try:
            planner = DefaultLoadPlanner(allow_partial_load=partial)
            assert holdfast.torch.restore(run, state, planner=planner)
        finally:
            run.close()
        return run

    return make


READERS = [
    ((1,), [Shard(0)]),
    ((2,), [Shard(0)]),
    ((3,), [Shard(1)]),
    ((6,), [Shard(0)]),
    ((2, 3), [Shard(1), Shard(0)]),
    ((2, 2), [Replicate(), Shard(1)]),
]


@pytest.mark.parametrize("step", sharded_program.LAYOUTS)
def test_every_layout_is_read_in_every_other(saved, restore, step):
    source = saved[0] / f"step-{step:010}"
    for shape, placements in READERS:
        for rank in range(math.prod(shape)):
            with World(rank, math.prod(shape)):
                mesh = init_device_mesh("cpu", shape)
                wanted = {
                    name: empty_dtensor(
                        *tensor.shape, dtype=tensor.dtype, device_mesh=mesh, placements=placements
                    )
                    for name, tensor in sharded_program.whole().items()
                }
                state = {"cut": wanted}
                run = restore(source, state, partial=True)
                assert run.resume_step == step
                for name, tensor in sharded_program.whole().items():
                    assert same(wanted[name].to_local(), local_part(tensor, wanted[name])), (
                        shape,
                        rank,
                        name,
                    )


@pytest.mark.parametrize("step", sharded_program.LAYOUTS)
def test_one_process_reads_all_of_it(saved, restore, step):
    state = {
        "cut": {name: torch.empty_like(tensor) for name, tensor in sharded_program.whole().items()},
        "plain": {name: torch.empty_like(tensor) for name, tensor in sharded_program.plain().items()},
        "values": {"lr": 0.0, "nan": 0.0, "names": [], "deep": {"er": ()}},
    }
    inside = {id(tensor) for part in ("cut", "plain") for tensor in state[part].values()}
    restore(saved[0] / f"step-{step:010}", state)
    for part, expected in (("cut", sharded_program.whole()), ("plain", sharded_program.plain())):
        assert all(same(state[part][name], tensor) for name, tensor in expected.items())
    assert {id(tensor) for part in ("cut", "plain") for tensor in state[part].values()} == inside
    assert repr(state["values"]) == repr(sharded_program.VALUES)


def test_whole_tensors_can_be_read_by_name(saved):
    found = holdfast.torch.load(f"{saved[0]}/step-0000000004", ["cut.*", "plain.table"])
    expected = {f"cut.{name}": tensor for name, tensor in sharded_program.whole().items()}
    expected["plain.table"] = sharded_program.plain()["table"]
    assert found.keys() == expected.keys()
    assert all(same(found[name], expected[name]) for name in expected)
    with pytest.raises(CheckpointMismatch, match=r"no tensor 'cut.x'; it has .*plain.table"):
        holdfast.torch.load(saved[0], "cut.x", step=4)


def test_the_model_and_optimizer_of_fsdp_come_back_in_one_process(saved):
    found = holdfast.torch.load(saved[0])
    for name, values in saved[1][0]["model"].items():
        assert found[f"model.{name}"].tolist() == values
    assert found["optimizer.state.0.weight.exp_avg"].shape == (5, 7)
    assert found["optimizer.state.1.bias.step"].item() == 1


def test_what_all_ranks_have_is_saved_once(saved):
    step = saved[0] / "step-0000000003"
    names = []
    for shard in decode((step / "manifest.json").read_bytes()).shards:
        with LocalStorage(str(step)).open(shard.file) as reader:
            file = ShardFile(reader, shard.file, shard.size_bytes, shard.digest)
            names += [name for name, _ in plain_state.leaves(file.content["tree"])]
    assert names.count("tensors/plain.table") == 1
    assert len(names) == len(set(names))  # each half is held by two ranks


def test_ranks_plan_together_when_something_has_changed_and_not_else(saved):
    """Five layouts, then the same state twice, at steps 6 and 8; what rank 0 is asked to do, the others are not."""
    coordinator, *others = [said["planned"] for said in saved[1]]
    assert coordinator == [1, 2, 3, 4, 5, 6, 6, 6, 6]
    assert others == [[0] * 9] * 3


def test_a_plan_that_fails_on_one_rank_fails_on_all(saved):
    assert {said["failed"] for said in saved[1]} == {"the state cannot be saved: rank 0: there is no plan"}


def test_the_files_are_safetensors_and_json(saved):
    from safetensors.numpy import load_file

    for path in saved[0].rglob("*"):
        if path.suffix == ".safetensors":
            load_file(path)
        elif path.is_file():
            assert path.name in ("manifest.json", "LATEST")


# Any cut, into any other.


@st.composite
def cut_tensors(draw):
    """A tensor, boxes that make it up, ranks that hold them; a world, and how the tensor is to lie in it."""
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=0, max_size=3)))
    edges = [sorted({0, length, *draw(st.lists(st.integers(0, length), max_size=2))}) for length in shape]
    boxes = [
        (tuple(low for low, _ in box), tuple(high - low for low, high in box))
        for box in itertools.product(*(list(itertools.pairwise(edge)) for edge in edges))
    ]
    ranks = [draw(st.integers(0, 2)) for _ in boxes]
    mesh = draw(st.sampled_from([(1,), (2,), (3,), (2, 2)]))
    kinds = [Replicate(), *(Shard(dimension) for dimension in range(len(shape)))]
    placements = [draw(st.sampled_from(kinds)) for _ in mesh]
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.uint8, torch.complex64, torch.bool]))
    return shape, dtype, boxes, ranks, mesh, placements


@settings(deadline=None, max_examples=60)
@given(cut_tensors())
def test_any_cut_is_read_into_any_other(tmp_path_factory, case):
    shape, dtype, boxes, ranks, mesh_shape, placements = case
    whole = (torch.arange(math.prod(shape)) % 251).to(dtype).reshape(shape)
    pieces = {0: [], 1: [], 2: []}
    for (offsets, lengths), rank in zip(boxes, ranks, strict=True):
        box = whole
        for dimension, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
            box = box.narrow(dimension, offset, length)
        piece = Piece("x", str(dtype).removeprefix("torch."), shape, offsets, lengths)
        pieces[rank].append((piece, box))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_file, "CHUNK_BYTES", 16)  # so that boxes begin and end inside of chunks
        where, commit = save_parts(
            tmp_path_factory.getbasetemp() / "cut", [make_part(pieces[r], {}) for r in range(3)]
        )
    for rank in range(math.prod(mesh_shape)):
        with World(rank, math.prod(mesh_shape)):
            mesh = init_device_mesh("cpu", mesh_shape)
            wanted = empty_dtensor(*shape, dtype=dtype, device_mesh=mesh, placements=placements)
            fill(where, commit, {"x": wanted})
            assert same(wanted.to_local(), local_part(whole, wanted))


def save_parts(top, parts):
    """Commit what several ranks save."""
    places = [
        Checkpoints(Owner("job", rank, 1), LocalStorage(str(top), "job", Writer(rank, 1)))
        for rank in range(len(parts))
    ]
    shards = tuple(place.save(1, packed(part)) for place, part in zip(places, parts, strict=True))
    return places[0], Commit("job", 1, 1, None, len(parts), 0, shards)


def fill(where, commit, state):
    Saved(where, commit).fill(state, DefaultLoadPlanner())


def test_a_rank_reads_its_own_rows_and_no_others(tmp_path, monkeypatch):
    """A quarter of the rows, out of the first of the two halves that were saved."""
    monkeypatch.setattr(shard_file, "CHUNK_BYTES", 256)
    whole = torch.arange(1024.0).reshape(64, 16)
    halves = [
        [(Piece("x", "float32", (64, 16), (first, 0), (32, 16)), whole[first : first + 32])]
        for first in (0, 32)
    ]
    _, commit = save_parts(tmp_path, [make_part(half, {}) for half in halves])
    reads = []

    class Counting(LocalReader):
        def read_into(self, buffer, offset):
            reads.append((os.path.basename(self.path)[:10], len(buffer)))
            super().read_into(buffer, offset)

    class Elsewhere(LocalStorage):
        def open(self, name):
            return Counting(self._path(name))

    where = Checkpoints(Owner("job", 0, 1), Elsewhere(str(tmp_path), "job"))
    with World(1, 4):
        mesh = init_device_mesh("cpu", (4,))
        wanted = empty_dtensor(64, 16, device_mesh=mesh, placements=[Shard(0)])
        fill(where, commit, {"x": wanted})
        assert same(wanted.to_local(), whole[16:32])
    # The headers of both, and that of the one that is read once more.
    headers = [name for name, length in reads if length == 8]
    assert sorted(headers) == ["rank-00000", "rank-00000", "rank-00001"]
    data = [(name, length) for name, length in reads if length == 256]
    assert data == [("rank-00000", 256)] * (16 * 16 * 4 // 256)


def test_a_piece_that_no_rank_saved_is_missed(tmp_path):
    half = Piece("x", "float32", (4,), (0,), (2,))
    where, commit = save_parts(tmp_path, [make_part([(half, torch.zeros(2))], {})])
    with pytest.raises(CheckpointMismatch, match="holds 2 of the 4 elements of 'x'"):
        fill(where, commit, {"x": torch.zeros(4)})


def test_a_target_that_is_not_contiguous_is_filled(tmp_path):
    piece = Piece("x", "float32", (3, 4), (0, 0), (3, 4))
    where, commit = save_parts(tmp_path, [make_part([(piece, torch.arange(12.0).reshape(3, 4))], {})])
    turned = torch.zeros(4, 3).t()
    fill(where, commit, {"x": turned})
    assert turned.tolist() == torch.arange(12.0).reshape(3, 4).tolist()


# A world of one.


def make_training(seed=0):
    torch.manual_seed(seed)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_objects_are_asked_for_their_state_and_given_it(start_alone):
    """A module, an optimizer whose state has numbers for keys, a schedule."""
    model, optimizer = make_training()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.step()
    schedule.step()
    run = start_alone()
    run.step(5)
    holdfast.torch.checkpoint(run, {"m": model, "o": optimizer, "s": schedule, "n": 3}, wait=True)
    run.close()
    other, its_optimizer = make_training(1)
    its_schedule = torch.optim.lr_scheduler.StepLR(its_optimizer, 1)
    state = {"m": other, "o": its_optimizer, "s": its_schedule, "n": 0}
    again = start_alone()
    assert holdfast.torch.restore(again, state)
    assert (again.resume_step, again.step(), state["n"]) == (5, 6, 3)
    assert state["m"] is other
    assert other.weight.tolist() == model.weight.tolist()
    restored, expected = its_optimizer.state_dict(), optimizer.state_dict()
    assert (
        restored["state"][0]["momentum_buffer"].tolist() == expected["state"][0]["momentum_buffer"].tolist()
    )
    assert restored["param_groups"] == expected["param_groups"]
    assert its_schedule.state_dict() == schedule.state_dict()


def test_an_optimizer_without_a_state_is_not_left_without_one(start_alone):
    """It has made no step yet: nothing of it is there to be filled, and its momentum would be lost in silence."""
    model, optimizer = make_training()
    run = start_alone()
    run.step()
    holdfast.torch.checkpoint(run, {"o": optimizer}, wait=True)
    run.close()
    fresh = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(
        CheckpointMismatch, match=r"'o.state.0.momentum_buffer', which the state has not .and 1 more"
    ):
        holdfast.torch.restore(start_alone(), {"o": fresh})


def test_nothing_is_pickled(start_alone, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("something was pickled")

    for place, name in (
        (pickle, "dumps"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
        (torch, "save"),
        (torch, "load"),
    ):
        monkeypatch.setattr(place, name, refuse)
    state = {"w": torch.ones(3), "lr": 0.5, "list": [1, {"a": torch.zeros(2)}], "t": ("x", True)}
    run = start_alone()
    run.step()
    holdfast.torch.checkpoint(run, state, wait=True)
    run.close()
    wanted = {"w": torch.zeros(3), "lr": 0, "list": [0, {"a": torch.ones(2)}], "t": ()}
    assert holdfast.torch.restore(start_alone(), wanted)
    assert repr(wanted) == repr(state)


def test_without_a_checkpoint_nothing_changes(start_alone):
    state = {"w": torch.ones(3), "lr": 0.5}
    run = start_alone()
    assert holdfast.torch.restore(run, state) is False
    assert repr(state) == repr({"w": torch.ones(3), "lr": 0.5})
    assert run.resume_step is None


def test_only_steps_that_are_due_ask_for_the_state(start_alone):
    asked = []

    def state():
        asked.append(run.step(run._step))
        return {"w": torch.ones(1)}

    run = start_alone()
    for _ in range(6):
        run.step()
        holdfast.torch.checkpoint(run, state, every=3)
    assert asked == [3, 6]


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({"hook": print}, "builtin_function_or_method at 'values/hook'"),
        ({"deep": {"er": [torch.zeros(1), {1, 2}]}}, "a set at 'values/deep.er.1'"),
    ],
)
def test_what_cannot_be_saved_is_refused_by_name(start_alone, state, sentence):
    run = start_alone()
    run.step()
    with pytest.raises(TypeError, match=sentence):
        holdfast.torch.checkpoint(run, state)


def test_a_dtensor_in_a_plain_checkpoint_is_refused_by_name(start_alone):
    run = start_alone()
    run.step()
    with World(0, 2):
        tensor = empty_dtensor(4, device_mesh=init_device_mesh("cpu", (2,)), placements=[Shard(0)])
        assert isinstance(tensor, DTensor)
        with pytest.raises(
            TypeError, match=r"the DTensor at 'model/w' is spread over .* holdfast.torch.checkpoint"
        ):
            run.checkpoint({"model": {"w": tensor}})


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ({"x": torch.zeros(3)}, "the checkpoint has no 'x'"),
        ({"w": torch.zeros(3)}, "the checkpoint has 'lr', which the state has not"),
        ({"w": torch.zeros(4)}, r"'w' is float32 of shape \(3,\) in the checkpoint, float32 of shape \(4,\)"),
        (
            {"w": torch.zeros(3, dtype=torch.bfloat16)},
            r"'w' is float32 .*, bfloat16 of shape \(3,\) in the state",
        ),
        ({"w": 0.5}, r"'w' is float32 of shape \(3,\) in the checkpoint, no tensor in the state"),
        ({"lr": torch.zeros(1)}, r"'lr' is no tensor in the checkpoint, float32"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_by_name_and_stays_as_it_is(start_alone, wanted, sentence):
    run = start_alone()
    run.step()
    holdfast.torch.checkpoint(run, {"w": torch.ones(3), "lr": 0.5}, wait=True)
    run.close()
    wanted = (
        {"w": torch.zeros(3), "lr": 0.0, **wanted} if sentence.startswith("'") or "x" in wanted else wanted
    )
    before = repr(wanted)
    with pytest.raises(CheckpointMismatch, match=sentence):
        holdfast.torch.restore(start_alone(), wanted)
    assert repr(wanted) == before


def test_an_ordinary_checkpoint_is_told_apart(start_alone):
    run = start_alone()
    run.step()
    run.checkpoint({"w": torch.ones(3)}, wait=True)
    run.close()
    with pytest.raises(
        CheckpointMismatch, match=r"not saved with holdfast.torch.checkpoint; restore it with run.restore"
    ):
        holdfast.torch.restore(start_alone(), {"w": torch.zeros(3)})


def save_twice(run):
    for fill_with in (1.0, 2.0):
        run.step()
        state = {"a": torch.full((100,), fill_with), "b": torch.full((100,), fill_with + 10)}
        holdfast.torch.checkpoint(run, state, wait=True)


def flip(path, value):
    data = bytearray(path.read_bytes())
    data[data.index(torch.full((100,), value).numpy().tobytes())] ^= 1
    path.write_bytes(data)


def test_a_checkpoint_that_is_corrupt_is_set_aside_and_the_one_before_it_used(start_alone, uri):
    run = start_alone()
    save_twice(run)
    run.close()
    (path,) = (uri / "train/step-0000000002").glob("*.safetensors")
    flip(path, 12.0)
    state = {"a": torch.zeros(100), "b": torch.zeros(100)}
    run = start_alone()
    assert holdfast.torch.restore(run, state)
    assert (run.resume_step, state["a"].unique().tolist(), state["b"].unique().tolist()) == (1, [1], [11])
    assert [found.name for found in path.parent.glob("manifest*")] == ["manifest.quarantined-attempt-1.json"]


def test_a_state_that_was_half_loaded_is_not_trained_on(start_alone, uri):
    """There is nothing before the checkpoint that is corrupt: the next start begins anew."""
    run = start_alone()
    save_twice(run)
    run.close()
    for step, value in ((1, 11.0), (2, 12.0)):
        flip(next((uri / f"train/step-{step:010}").glob("*.safetensors")), value)
    run = start_alone()
    with pytest.raises(CheckpointError, match="start again, to begin anew"):
        holdfast.torch.restore(run, {"a": torch.zeros(100), "b": torch.zeros(100)})
    run.close()
    assert not holdfast.torch.restore(start_alone(), {"a": torch.zeros(100), "b": torch.zeros(100)})


def test_under_holdfast_who_finds_it_corrupt_tells_and_a_part_that_is_not_needed_is_not_read(
    make_agent, start, uri
):
    agent = make_agent()
    save_twice(start(agent))
    flip(next((uri / "job-1/step-0000000002").glob("*.safetensors")), 12.0)
    run = start(agent, attempt=2, resume_step=2)
    partial = DefaultLoadPlanner(allow_partial_load=True)
    assert holdfast.torch.restore(run, {"a": torch.zeros(100)}, planner=partial)
    with pytest.raises(CheckpointCorrupt, match="tensor 'tensors/b'"):
        holdfast.torch.restore(run, {"a": torch.zeros(100), "b": torch.zeros(100)})
    assert (0, 2, "KIND_CORRUPT", 2) in agent.reports


def test_independent_ranks_cannot_share_a_state(make_agent, start):
    run = start(make_agent(world_size=2, scope="rank"))
    run.step()
    with World(0, 2), pytest.raises(CheckpointError, match="start this job with restart scope gang"):
        holdfast.torch.checkpoint(run, {"w": torch.ones(2)})
