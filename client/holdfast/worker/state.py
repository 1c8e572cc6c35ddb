"""What a program trains, as named arrays and a description of how they hang together.

A state is a dict, list or tuple of the same, down to leaves: numpy arrays and scalars, torch tensors, None, bool,
int, float and str. Keys are str or int. `pack` takes it apart into arrays, which go into the file as tensors, and a
tree of plain JSON, which goes into the file's header; `unpack` puts it together again, bit for bit. No class is ever
named in a file and nothing is ever unpickled.

A tree is a JSON null, boolean, integer, string or finite float that stands for itself, or an object with one of:

=========== =====================================================================
key         stands for
=========== =====================================================================
``dict``    pairs of key and tree, in order
``list``    trees; ``tuple`` the same
``float``   the 16 hex digits of a float that JSON has no word for
``array``   the name of a numpy array; ``scalar`` of a numpy scalar;
            ``tensor`` of a torch tensor. Where safetensors has no such dtype the
            tensor is the bytes, and ``dtype`` and ``shape`` say what they were.
=========== =====================================================================
"""

import math
import struct
import sys
from typing import Any

import numpy as np

from holdfast.worker.errors import CheckpointMismatch
from holdfast.worker.shard_file import DTYPES, Arrays

_NATIVE = frozenset(DTYPES)
# Of the other numpy dtypes those that are plain bytes: complex, extended floats, times, fixed strings.
_PLAIN_KINDS = "fcmMSU"
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
    kind, a tensor on the same device. Every key of its dicts must be there; more may be, as optimizers grow theirs
    while they train. None in `default` stands for anything. Leaves it says nothing about come back as the kind they
    were saved as; tensors as numpy arrays when torch is not imported. Raises CheckpointMismatch.
    """
    return _unpack(tree, arrays, default, "")


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
    raise TypeError(
        f"the state holds a {type(value).__name__} at {path or 'its top'!r}; it may hold numpy arrays, torch tensors, "
        "numbers, strings, None, and dicts, lists and tuples of them"
    )


def _pack_array(kind: str, array: np.ndarray[Any, Any], path: str, arrays: Arrays) -> dict[str, Any]:
    dtype = array.dtype
    if dtype.name in _NATIVE and dtype.isnative:
        return {kind: _name(path, np.asarray(array, order="C"), arrays)}
    if dtype.kind not in _PLAIN_KINDS or not dtype.isnative or not dtype.itemsize:
        raise TypeError(f"the array at {path!r} has dtype {dtype}, which a checkpoint cannot hold")
    flat = np.ascontiguousarray(array).reshape(-1).view(_BYTES)
    return {kind: _name(path, flat, arrays), "dtype": dtype.str, "shape": list(array.shape)}


def _pack_tensor(tensor: Any, path: str, arrays: Arrays) -> dict[str, Any]:
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
    if isinstance(default, dict):
        fits = kind == "dict"
    elif isinstance(default, list | tuple):
        fits = kind in ("list", "tuple")
    elif isinstance(default, np.ndarray) or _is_tensor(default):
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


def _unpack_dict(pairs: Any, arrays: Arrays, default: Any, path: str) -> dict[Any, Any]:
    known = default if isinstance(default, dict) else {}
    missing = known.keys() - {key for key, _ in pairs}
    if missing:
        name = _join(path, min(missing, key=str))
        raise CheckpointMismatch(f"the checkpoint has no {name!r}, which the default state has")
    return {key: _unpack(item, arrays, known.get(key), _join(path, key)) for key, item in pairs}


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
        known = default.dtype.name if default.dtype.name in _NATIVE else default.dtype.str
        _check(path, (dtype, shape), (known, default.shape))
        return _to_array(array, dtype, shape)
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


def _to_array(array: np.ndarray[Any, Any], dtype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return array if array.dtype.name == dtype else array.view(np.dtype(dtype)).reshape(shape)


def _to_tensor(array: np.ndarray[Any, Any], dtype: str, shape: tuple[int, ...]) -> Any:
    torch: Any = sys.modules["torch"]
    if array.dtype.name == dtype:
        return torch.from_numpy(array)
    if not array.size:  # which torch cannot view as another dtype
        return torch.empty(shape, dtype=getattr(torch, dtype))
    return torch.from_numpy(array).view(getattr(torch, dtype)).reshape(shape)
