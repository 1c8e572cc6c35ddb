"""What is restored is, bit for bit, what was saved."""

import importlib.util
import math
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from holdfast.storage.local import LocalStorage, Writer
from holdfast.worker import state
from holdfast.worker.checkpoint import Checkpoints, Owner, packed
from holdfast.worker.errors import CheckpointMismatch
from holdfast.worker.manifest import Commit


def through_a_file(top, value, default=None):
    """Save, and load what was saved."""
    checkpoints = Checkpoints(Owner("job", 0, 1), LocalStorage(str(top), "job", Writer(0, 1)))
    shard = checkpoints.save(1, packed(value, ""))
    return checkpoints.load(Commit("job", 1, 1, None, 1, 0, (shard,)), 0, default)


def same(one, other):
    """Equal in type and in every bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray | np.generic):
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    if isinstance(one, float):
        return np.float64(one).tobytes() == np.float64(other).tobytes()
    return one == other


DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="="),
    hnp.unsigned_integer_dtypes(endianness="="),
    hnp.floating_dtypes(endianness="="),
    hnp.complex_number_dtypes(endianness="="),
    hnp.datetime64_dtypes(endianness="="),
    hnp.unicode_string_dtypes(endianness="="),
)
ARRAYS = DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=4)))
LEAVES = st.one_of(
    ARRAYS,
    ARRAYS.filter(lambda array: array.size).map(lambda array: array.reshape(-1)[0]),
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
)
KEYS = st.one_of(
    st.sampled_from(["a", "b", "a/b", "__metadata__", "", "'"]), st.integers(-1, 2), st.text(max_size=3)
)
STATES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.dictionaries(KEYS, inner, max_size=4),
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=150)
@given(STATES)
def test_any_state_comes_back_bit_for_bit(tmp_path_factory, value):
    assert same(through_a_file(tmp_path_factory.getbasetemp() / "any", value), value)


@pytest.mark.parametrize(
    "value", [math.nan, -math.nan, math.inf, -math.inf, -0.0, 5e-324, 2**200, np.float32(1.1)]
)
def test_numbers_keep_type_and_bits(tmp_path, value):
    assert same(through_a_file(tmp_path, {"n": value}), {"n": value})


def test_arrays_come_back_writable_whatever_their_layout_was(tmp_path):
    grid = np.arange(12.0).reshape(3, 4)
    restored = through_a_file(tmp_path, {"turned": grid.T, "every other": grid[::2, ::2], "none": grid[:0]})
    assert restored["turned"].tolist() == grid.T.tolist()
    assert restored["every other"].tolist() == grid[::2, ::2].tolist()
    assert restored["none"].shape == (0, 4)
    restored["turned"] += 1


def test_paths_that_look_the_same_stay_apart(tmp_path):
    value = {
        "a/b": np.array(1),
        "a": {"b": np.array(2)},
        "a/b'": np.array(3),
        1: np.array(4),
        "1": np.array(5),
    }
    assert same(through_a_file(tmp_path, value), value)


def test_the_state_of_a_random_generator_comes_back(tmp_path):
    rng = np.random.default_rng(1)
    saved = rng.bit_generator.state
    expected = rng.random(3).tolist()
    rng.bit_generator.state = through_a_file(tmp_path, saved)
    assert rng.random(3).tolist() == expected


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"model": {"hook": print}}, "builtin_function_or_method at 'model/hook'"),
        ({"x": np.array([object()])}, "array at 'x' has dtype object"),
        ({"x": np.zeros(2, ">f8")}, "'x' has dtype >f8"),
        ({"x": np.zeros(2, "i4,f4")}, "array at 'x' has dtype"),
        ({"x": np.ma.zeros(2)}, "MaskedArray at 'x'"),
        ({"x": {1.5: 0}}, "the key 1.5 at 'x'"),
        ({True: 0}, "the key True"),
        ({1, 2}, "a set at 'its top'"),
    ],
)
def test_what_a_checkpoint_cannot_hold_is_refused_by_name(value, sentence):
    with pytest.raises(TypeError, match=sentence):
        state.pack(value)


SAVED = {"w": np.zeros((2, 3), np.float32), "n": 3, "opt": {"lr": 0.1}, "list": [np.zeros(1)]}


@pytest.mark.parametrize(
    ("default", "sentence"),
    [
        (
            {"w": np.zeros((3, 2), np.float32)},
            r"'w' is float32 of shape \(2, 3\) in the checkpoint, float32 of shape \(3, 2\)",
        ),
        ({"w": np.zeros((2, 3))}, "'w' is float32 .* float64"),
        ({"opt": {"momentum": 0.9}}, "no 'opt/momentum'"),
        ({"w": {"a": 1}}, "'w' is a dict in the default state"),
        ({"n": np.zeros(1)}, "'n' is a ndarray in the default state"),
        ([1], "'the state' is a list"),
    ],
)
def test_a_default_that_does_not_fit_is_refused_by_name(tmp_path, default, sentence):
    with pytest.raises(CheckpointMismatch, match=sentence):
        through_a_file(tmp_path, SAVED, default)


def test_a_state_may_hold_more_than_the_default_knew(tmp_path):
    default = {"w": np.ones((2, 3), np.float32), "opt": {}, "list": None}
    assert same(through_a_file(tmp_path, SAVED, default), SAVED)


class FakeTensor:
    """As much of a torch tensor as the library touches, so that this runs where torch is not installed."""

    device = "cpu"

    def __init__(self, array, dtype=None):
        self.array = array
        self.dtype = f"torch.{dtype or array.dtype.name}"
        self.shape = array.shape

    def detach(self):
        return self

    cpu = resolve_conj = resolve_neg = contiguous = detach

    def numpy(self):
        return self.array

    def reshape(self, *shape):
        return FakeTensor(self.array.reshape(*shape), self.dtype.removeprefix("torch."))

    def view(self, dtype):
        raw = self.array.view(np.uint8 if dtype == "uint8" else np.uint16)
        return FakeTensor(raw, dtype)

    def to(self, device):
        return self


@pytest.fixture
def torch(monkeypatch):
    module = types.SimpleNamespace(
        Tensor=FakeTensor, from_numpy=FakeTensor, uint8="uint8", bfloat16="bfloat16"
    )
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


def test_tensors_come_back_as_tensors(tmp_path, torch):
    value = {
        "w": FakeTensor(np.arange(3.0)),
        "b": FakeTensor(np.arange(4, dtype=np.uint16).reshape(2, 2), "bfloat16"),
    }
    restored = through_a_file(tmp_path, value)
    assert isinstance(restored["w"], FakeTensor)
    assert same(restored["w"].array, np.arange(3.0))
    assert restored["b"].dtype == "torch.bfloat16"
    assert same(restored["b"].array, value["b"].array)


def test_the_default_says_which_kind_a_leaf_is(tmp_path, torch):
    saved = {"w": FakeTensor(np.arange(3.0)), "v": np.arange(3.0)}
    restored = through_a_file(tmp_path, saved, {"w": np.zeros(3), "v": FakeTensor(np.zeros(3))})
    assert isinstance(restored["w"], np.ndarray)
    assert isinstance(restored["v"], FakeTensor)
    with pytest.raises(CheckpointMismatch, match="'w' is float64"):
        through_a_file(tmp_path, saved, {"w": FakeTensor(np.zeros(3, np.float32))})


def test_tensors_are_arrays_where_torch_is_not_imported(tmp_path, torch, monkeypatch):
    checkpoints = Checkpoints(Owner("job", 0, 1), LocalStorage(str(tmp_path), "job", Writer(0, 1)))
    shard = checkpoints.save(1, packed({"w": FakeTensor(np.arange(3.0))}))
    monkeypatch.delitem(sys.modules, "torch")
    restored = checkpoints.load(Commit("job", 1, 1, None, 1, 0, (shard,)), 0)
    assert same(restored, {"w": np.arange(3.0)})


@pytest.mark.torch
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed (`make torch`)")
def test_tensors_of_the_real_torch_come_back_bit_for_bit(tmp_path):
    import torch

    value = {
        "turned": torch.nn.Parameter(torch.randn(2, 3).t()),
        "bfloat16": torch.randn(3, 2).bfloat16(),
        "float8": torch.randn(4).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(1.5, dtype=torch.bfloat16),
        "complex": torch.randn(2, dtype=torch.complex64).conj(),
        "empty": torch.zeros(0, 2).bfloat16(),
        "rng": torch.get_rng_state(),
    }
    for default in (None, value):
        restored = through_a_file(tmp_path, value, default)
        for name, tensor in value.items():
            plain = tensor.detach().resolve_conj().contiguous()
            assert (restored[name].dtype, restored[name].shape) == (plain.dtype, plain.shape)
            assert bits(restored[name]) == bits(plain)


def bits(tensor):
    import torch

    return tensor.reshape(-1).view(torch.uint8).tolist() if tensor.numel() else []
