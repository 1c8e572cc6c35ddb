"""What a program trains, as named arrays and a description of how they hang together.

A state is a dict, list or tuple of the same, down to leaves: numpy arrays and scalars, torch tensors, JAX arrays, None,
bool, int, float and str. Keys are str or int. Named tuples, and objects of classes that are registered with JAX, count
as dicts; where `default` has one, it becomes one again. `pack` takes a state apart into arrays, which go into the file
as tensors, and a tree of plain JSON, which goes into the file's header; `unpack` puts it together again, bit for bit.
No class is ever named in a file and nothing is ever unpickled.

A tree is a JSON null, boolean, integer, string or finite float that stands for itself, or an object with one of:

=========== =====================================================================
key         stands for
=========== =====================================================================
``dict``    pairs of key and tree, in order
``list``    trees; ``tuple`` the same
``float``   the 16 hex digits of a float that JSON has no word for
``array``   the name of a numpy array or one of JAX; ``scalar`` of a numpy scalar;
            ``tensor`` of a torch tensor. Where safetensors has no such dtype the
            tensor is the bytes, and ``dtype`` and ``shape`` say what they were.
            ``generator`` says of which kind a random key of JAX is.
=========== =====================================================================
"""

import importlib
import math
import struct
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from holdfast.worker import pytree
from holdfast.worker.errors import CheckpointMismatch
from holdfast.worker.shard_file import DTYPES, Arrays

_NATIVE = frozenset(DTYPES)
# Of the other numpy dtypes those that are plain bytes: complex, extended floats, times, fixed strings.
_PLAIN_KINDS = "fcmMSU"
# And bfloat16, the float8s and int4 of this package, which JAX brings along; torch has them under the same names.
_MORE_DTYPES = "ml_dtypes"
_LEAVES = ("array", "scalar", "tensor")
_BYTES = np.dtype(np.uint8)
_DOUBLE = struct.Struct(">d")


def pack(state: Any) -> tuple[Any, Arrays]:
    """Take a state apart. Raises TypeError, naming the leaf, for what it cannot hold."""
    arrays: Arrays = {}
    return _pack(state, "", arrays), arrays


def unpack(tree: Any, arrays: Arrays, default: Any = None) -> Any:
    """Put a state together again.

    Where `default` has an array or a tensor, the leaf must have its shape and dtype, and comes back as the same
    kind, a tensor or a JAX array on the same device. Every key of its dicts must be there; more may be, as optimizers
    grow theirs while they train. None in `default` stands for anything. Leaves it says nothing about come back as the
    kind they were saved as; JAX arrays as numpy arrays, and tensors when torch is not imported. Raises
    CheckpointMismatch.
    """
    return _unpack(tree, arrays, default, "")


def member(tree: Any, key: str) -> Any:
    """The tree of what a dict has under a key. Raises KeyError."""
    pairs = tree.get("dict", ()) if isinstance(tree, dict) else ()
    for name, item in pairs:
        if name == key:
            return item
    raise KeyError(key)


def leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """The arrays and tensors in a tree: their names, and their own trees."""
    if not isinstance(tree, dict):
        return
    kind = next(iter(tree))
    if kind in _LEAVES:
        yield tree[kind], tree
    elif kind != "float":
        for item in tree[kind]:
            yield from leaves(item[1] if kind == "dict" else item)


def _pack(value: Any, path: str, arrays: Arrays) -> Any:
    if isinstance(value, np.generic):
        return _pack_array("scalar", np.asarray(value), path, arrays)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": _DOUBLE.pack(value).hex()}
    if isinstance(value, dict):
        return {
            "dict": [[_key(key, path), _pack(item, _join(path, key), arrays)] for key, item in value.items()]
        }
    if type(value) in (list, tuple):
        kind = type(value).__name__
        return {kind: [_pack(item, _join(path, index), arrays) for index, item in enumerate(value)]}
    if type(value) in (np.ndarray, np.memmap):
        return _pack_array("array", value, path, arrays)
    if _is_tensor(value):
        return _pack_tensor(value, path, arrays)
    if pytree.is_array(value):
        array, generator = pytree.to_numpy(value, path)
        leaf = _pack_array("array", array, path, arrays)
        return {**leaf, "generator": generator} if generator else leaf
    if (inside := pytree.fields(value)) is not None:
        return _pack(inside, path, arrays)
    raise TypeError(
        f"the state holds a {type(value).__name__} at {path or 'its top'!r}; it may hold numpy and JAX arrays, "
        "torch tensors, numbers, strings, None, and dicts, lists and tuples of them"
    )


def _pack_array(kind: str, array: np.ndarray[Any, Any], path: str, arrays: Arrays) -> dict[str, Any]:
    dtype = array.dtype
    if dtype.name in _NATIVE and dtype.isnative:
        return {kind: _name(path, np.asarray(array, order="C"), arrays)}
    plain = dtype.kind in _PLAIN_KINDS or _is_more(dtype)
    if not plain or not dtype.isnative or not dtype.itemsize:
        raise TypeError(f"the array at {path!r} has dtype {dtype}, which a checkpoint cannot hold")
    flat = np.ascontiguousarray(array).reshape(-1).view(_BYTES)
    return {kind: _name(path, flat, arrays), "dtype": _code(dtype), "shape": list(array.shape)}


def _pack_tensor(tensor: Any, path: str, arrays: Arrays) -> dict[str, Any]:
    if hasattr(tensor, "device_mesh") or hasattr(tensor, "local_shards"):
        raise TypeError(
            f"the {type(tensor).__name__} at {path!r} is spread over several ranks; "
            "save it with holdfast.torch.checkpoint, and restore it with holdfast.torch.restore"
        )
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    dtype = str(plain.dtype).removeprefix("torch.")
    if dtype in _NATIVE:
        return {"tensor": _name(path, plain.numpy(), arrays)}
    flat = plain.reshape(-1).view(sys.modules["torch"].uint8).numpy()
    return {"tensor": _name(path, flat, arrays), "dtype": dtype, "shape": list(plain.shape)}


def _name(path: str, array: np.ndarray[Any, Any], arrays: Arrays) -> str:
    """Keep an array under its path, or near it where the paths of two are the same, as of {"a/b"} and {"a": {"b"}}."""
    name = path or "state"
    while name in arrays or name == "__metadata__":
        name += "'"
    arrays[name] = array
    return name


def _key(key: Any, path: str) -> Any:
    if type(key) in (str, int):
        return key
    raise TypeError(f"the state has the key {key!r} at {path or 'its top'!r}; keys may be str or int")


def _join(path: str, key: Any) -> str:
    return f"{path}/{key}" if path else str(key)


def _unpack(tree: Any, arrays: Arrays, default: Any, path: str) -> Any:
    if not isinstance(tree, dict):
        _check_kind(path, "plain", default)
        return tree
    kind = next(iter(tree))
    _check_kind(path, kind, default)
    if kind == "dict":
        return _unpack_dict(tree[kind], arrays, default, path)
    if kind == "list":
        return _unpack_items(tree[kind], arrays, default, path)
    if kind == "tuple":
        return tuple(_unpack_items(tree[kind], arrays, default, path))
    if kind == "float":
        return _DOUBLE.unpack(bytes.fromhex(tree[kind]))[0]
    return _unpack_leaf(kind, tree, arrays, default, path)


def _check_kind(path: str, kind: str, default: Any) -> None:
    if isinstance(default, dict) or pytree.fields(default) is not None:
        fits = kind == "dict"
    elif isinstance(default, list | tuple):
        fits = kind in ("list", "tuple")
    elif isinstance(default, np.ndarray) or _is_tensor(default) or pytree.is_array(default):
        fits = kind in _LEAVES
    else:
        fits = True
    if not fits:
        raise CheckpointMismatch(
            f"{path or 'the state'!r} is a {type(default).__name__} in the default state, but not in the checkpoint"
        )


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _unpack_dict(pairs: Any, arrays: Arrays, default: Any, path: str) -> Any:
    node = pytree.fields(default)
    known = default if isinstance(default, dict) else node or {}
    missing = known.keys() - {key for key, _ in pairs}
    if missing:
        name = _join(path, min(missing, key=str))
        raise CheckpointMismatch(f"the checkpoint has no {name!r}, which the default state has")
    found = {key: _unpack(item, arrays, known.get(key), _join(path, key)) for key, item in pairs}
    return found if node is None else pytree.rebuilt(default, found, path)


def _unpack_items(items: Any, arrays: Arrays, default: Any, path: str) -> list[Any]:
    known = (
        default if isinstance(default, list | tuple) and len(default) == len(items) else [None] * len(items)
    )
    return [_unpack(item, arrays, known[index], _join(path, index)) for index, item in enumerate(items)]


def _unpack_leaf(kind: str, tree: dict[str, Any], arrays: Arrays, default: Any, path: str) -> Any:
    array = arrays[tree[kind]]
    dtype: str = tree.get("dtype", array.dtype.name)
    shape: tuple[int, ...] = tuple(tree["shape"]) if "shape" in tree else array.shape
    if _is_tensor(default):
        _check(path, (dtype, shape), (str(default.dtype).removeprefix("torch."), tuple(default.shape)))
        return _to_tensor(array, dtype, shape).to(default.device)
    if isinstance(default, np.ndarray):
        _check(path, (dtype, shape), (_code(default.dtype), default.shape))
        return _to_array(array, dtype, shape)
    if pytree.is_array(default):
        return pytree.like(default, _to_array(array, dtype, shape), tree.get("generator", ""), path)
    if kind == "tensor":
        return _to_tensor(array, dtype, shape) if "torch" in sys.modules else array
    array = _to_array(array, dtype, shape)
    return array[()] if kind == "scalar" else array


def _check(path: str, saved: tuple[str, tuple[int, ...]], known: tuple[str, tuple[int, ...]]) -> None:
    if saved != known:
        raise CheckpointMismatch(
            f"{path!r} is {saved[0]} of shape {saved[1]} in the checkpoint, {known[0]} of shape {known[1]} "
            "in the default state"
        )


def _is_more(dtype: "np.dtype[Any]") -> bool:
    return dtype.type.__module__ == _MORE_DTYPES


def _code(dtype: "np.dtype[Any]") -> str:
    """What a dtype is called in a file."""
    return dtype.name if dtype.name in _NATIVE or _is_more(dtype) else dtype.str


def _to_array(array: np.ndarray[Any, Any], dtype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return array if array.dtype.name == dtype else array.view(_dtype(dtype)).reshape(shape)


def _dtype(code: str) -> "np.dtype[Any]":
    try:
        return np.dtype(code)
    except TypeError:
        pass
    try:
        more: np.dtype[Any] = np.dtype(getattr(importlib.import_module(_MORE_DTYPES), code))
    except (ImportError, AttributeError):
        raise CheckpointMismatch(
            f"the checkpoint holds {code}, which numpy has not; import torch before, or `pip install ml_dtypes`"
        ) from None
    return more


def _to_tensor(array: np.ndarray[Any, Any], dtype: str, shape: tuple[int, ...]) -> Any:
    torch: Any = sys.modules["torch"]
    if array.dtype.name == dtype:
        return torch.from_numpy(array)
    if not array.size:  # which torch cannot view as another dtype
        return torch.empty(shape, dtype=getattr(torch, dtype))
    return torch.from_numpy(array).view(getattr(torch, dtype)).reshape(shape)
