"""What JAX programs save comes back bit for bit, as what it was, where it was."""

import dataclasses
import importlib.util
import os
import subprocess
import sys
from typing import Any, NamedTuple

import numpy as np
import pytest

from holdfast.storage.local import LocalStorage, Writer
from holdfast.worker import state
from holdfast.worker.checkpoint import Checkpoints, Owner, packed
from holdfast.worker.errors import CheckpointMismatch
from holdfast.worker.manifest import Commit
from tests.ports import free_port


def through_a_file(top, value, default=None):
    """Save, and load what was saved."""
    checkpoints = Checkpoints(Owner("job", 0, 1), LocalStorage(str(top), "job", Writer(0, 1)))
    shard = checkpoints.save(1, packed(value, ""))
    return checkpoints.load(Commit("job", 1, 1, None, 1, 0, (shard,)), 0, default)


class Moments(NamedTuple):
    """As optax keeps them."""

    count: Any
    mu: Any
    nu: Any


class Nothing(NamedTuple):
    """As optax has them for transformations without a state."""


def test_named_tuples_need_no_jax(tmp_path):
    value = (Moments(3, {"w": np.ones(2)}, None), Nothing())
    restored = through_a_file(tmp_path, value, (Moments(0, {"w": np.zeros(2)}, None), Nothing()))
    assert isinstance(restored, tuple)
    assert isinstance(restored[0], Moments)
    assert isinstance(restored[1], Nothing)
    assert (restored[0].count, restored[0].mu["w"].tolist(), restored[0].nu) == (3, [1, 1], None)
    assert through_a_file(tmp_path, Moments(1, 2, 3)) == {"count": 1, "mu": 2, "nu": 3}


def test_a_named_tuple_of_other_fields_is_refused_by_name(tmp_path):
    class Fewer(NamedTuple):
        count: Any

    class Other(NamedTuple):
        count: Any
        mu: Any
        trace: Any

    with pytest.raises(CheckpointMismatch, match=r"has 'opt/(mu|nu)', for which the Fewer in the default"):
        through_a_file(tmp_path, {"opt": Moments(1, 2, 3)}, {"opt": Fewer(0)})
    with pytest.raises(CheckpointMismatch, match="the checkpoint has no 'opt/trace'"):
        through_a_file(tmp_path, {"opt": Moments(1, 2, 3)}, {"opt": Other(0, 0, 0)})
    with pytest.raises(CheckpointMismatch, match="'opt' is a Moments in the default state, but not"):
        through_a_file(tmp_path, {"opt": (1, 2, 3)}, {"opt": Moments(0, 0, 0)})


def needs_jax(test):
    missing = importlib.util.find_spec("jax") is None
    return pytest.mark.jax(pytest.mark.skipif(missing, reason="jax is not installed (`make jax`)")(test))


@pytest.fixture
def jax(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    import jax

    return jax


def bits(array):
    return np.asarray(array).tobytes()


@needs_jax
@pytest.mark.parametrize(
    "dtype",
    [
        "bfloat16",
        "float16",
        "float32",
        "float8_e4m3fn",
        "float8_e5m2",
        "int4",
        "uint4",
        "int8",
        "uint32",
        "bool",
        "complex64",
    ],
)
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (0, 2)])
def test_arrays_of_every_dtype_come_back_bit_for_bit(tmp_path, jax, dtype, shape):
    raw = np.random.default_rng(0).normal(0, 2, shape)
    value = {"x": jax.numpy.asarray(raw).astype(dtype)}
    restored = through_a_file(tmp_path, value, {"x": jax.numpy.zeros(shape, dtype)})["x"]
    assert isinstance(restored, jax.Array)
    assert (restored.dtype, restored.shape) == (value["x"].dtype, shape)
    assert bits(restored) == bits(value["x"])
    plain = through_a_file(tmp_path, value)["x"]
    assert isinstance(plain, np.ndarray)
    assert (plain.dtype, bits(plain)) == (value["x"].dtype, bits(value["x"]))


@needs_jax
def test_a_training_state_comes_back_as_it_was(tmp_path, jax):
    """Named tuples as of optax, a dataclass with a field that is no data as of flax, random keys, a step counter."""
    jnp = jax.numpy

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class TrainState:
        params: Any
        opt: Any
        key: Any
        step: int
        apply: Any = dataclasses.field(metadata={"static": True}, default=None)

    def make(seed):
        key, use = jax.random.split(jax.random.key(seed))
        params = {
            "w": jax.random.normal(use, (3, 2)).astype(jnp.bfloat16),
            "layers": [jnp.full(2, seed + 0.5)],
        }
        moments = Moments(jnp.int32(seed), jax.tree.map(jnp.zeros_like, params), params)
        return TrainState(params, (moments, Nothing(), None), key, seed, apply=print)

    saved, default = make(7), make(0)
    restored = through_a_file(tmp_path, saved, default)
    assert isinstance(restored, TrainState)
    assert restored.apply is print
    assert restored.step == 7
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    assert jax.random.key_impl(restored.key) == jax.random.key_impl(saved.key)
    assert bits(jax.random.normal(restored.key, (4,))) == bits(jax.random.normal(saved.key, (4,)))
    for one, other in zip(
        jax.tree.leaves((restored.params, restored.opt)),
        jax.tree.leaves((saved.params, saved.opt)),
        strict=True,
    ):
        assert (type(one), one.dtype, one.shape, bits(one)) == (
            type(other),
            other.dtype,
            other.shape,
            bits(other),
        )
        assert one.committed == other.committed


@needs_jax
def test_a_default_may_be_no_more_than_shapes(tmp_path, jax):
    value = {"w": jax.numpy.arange(6.0).reshape(2, 3), "n": jax.numpy.int32(4)}
    shapes = jax.eval_shape(lambda: value)
    restored = through_a_file(tmp_path, value, shapes)
    assert all(isinstance(leaf, jax.Array) for leaf in restored.values())
    assert bits(restored["w"]) == bits(value["w"])
    with pytest.raises(
        CheckpointMismatch, match=r"'w' is float32 of shape \(2, 3\) in the checkpoint, int32 of shape"
    ):
        through_a_file(tmp_path, value, {"w": jax.ShapeDtypeStruct((2, 3), np.int32)})


@needs_jax
def test_a_default_of_another_shape_or_dtype_is_refused_by_name(tmp_path, jax):
    value = {"w": jax.numpy.zeros((2, 3))}
    with pytest.raises(CheckpointMismatch, match=r"'w' is float32 .* bfloat16 of shape \(2, 3\)"):
        through_a_file(tmp_path, value, {"w": jax.numpy.zeros((2, 3), "bfloat16")})
    with pytest.raises(CheckpointMismatch, match=r"'w' is float32 of shape \(2, 3\) .* of shape \(3, 2\)"):
        through_a_file(tmp_path, value, {"w": jax.numpy.zeros((3, 2))})
    with pytest.raises(CheckpointMismatch, match="'w' is a ArrayImpl in the default state, but not"):
        through_a_file(tmp_path, {"w": 3}, value)


@needs_jax
def test_numpy_jax_and_torch_read_each_other(tmp_path, jax):
    bfloat16 = jax.numpy.arange(4, dtype="bfloat16").reshape(2, 2)
    from_numpy = through_a_file(tmp_path, {"x": np.asarray(bfloat16)}, {"x": bfloat16})["x"]
    to_numpy = through_a_file(tmp_path, {"x": bfloat16}, {"x": np.asarray(bfloat16)})["x"]
    assert isinstance(from_numpy, jax.Array)
    assert isinstance(to_numpy, np.ndarray)
    assert bits(from_numpy) == bits(to_numpy) == bits(bfloat16)
    torch = pytest.importorskip("torch", reason="torch is not installed (`make torch`)")
    to_torch = through_a_file(tmp_path, {"x": bfloat16}, {"x": torch.zeros(2, 2, dtype=torch.bfloat16)})["x"]
    assert to_torch.tolist() == [[0, 1], [2, 3]]
    assert bits(through_a_file(tmp_path, {"x": to_torch}, {"x": bfloat16})["x"]) == bits(bfloat16)


DEVICES = """
import sys, jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import holdfast
run = holdfast.init()
sharding = NamedSharding(Mesh(np.array(jax.devices()).reshape(2, 2), ("x", "y")), P("y", None))
make = lambda fill: {"w": jax.device_put(np.full((4, 2), fill, np.float32), sharding), "b": jax.numpy.full(2, fill)}
state = run.restore(default=make(0.0))
assert state["w"].sharding == sharding and state["w"].committed and not state["b"].committed
jax.jit(lambda state: state["w"] + state["b"])(state)
print(state["w"].sum())
run.step()
run.checkpoint(make(run.resume_step or 0.5), wait=True)
"""


@needs_jax
def test_a_restored_array_is_on_the_devices_of_the_default(tmp_path):
    """Four devices in one process: arrays that were spread over them are so again."""
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    said = [run_python(DEVICES, tmp_path, env, wait=True) for _ in range(2)]
    assert said == ["0.0\n", "4.0\n"]


PROCESSES = """
import sys, jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from holdfast.worker import state
mesh = Mesh(np.array(jax.devices()), ("x",))
make = lambda spec: jax.make_array_from_callback((4,), NamedSharding(mesh, spec), lambda i: np.arange(4.0)[i])
tree, arrays = state.pack({"everywhere": make(P())})
assert arrays["everywhere"].tolist() == [0, 1, 2, 3]
try:
    state.pack({"model": {"w": make(P("x"))}})
except TypeError as error:
    print(error)
"""


@needs_jax
def test_what_is_spread_over_processes_is_refused_by_name(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    env = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    both = [run_python(PROCESSES, tmp_path, env, address, str(rank)) for rank in (0, 1)]
    try:
        for process in both:
            said, _ = process.communicate(timeout=100)
            assert process.returncode == 0
            assert said.startswith("the jax.Array at 'model/w' is spread over several processes")
    finally:
        for process in both:
            process.kill()
            process.communicate()


def run_python(program, folder, env, *arguments, wait=False):
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, **env},
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    if not wait:
        return process
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    return said


@needs_jax
def test_what_is_no_part_of_a_pytree_is_still_refused_by_name(jax):
    with pytest.raises(TypeError, match="builtin_function_or_method at 'hook'"):
        state.pack({"hook": print})
