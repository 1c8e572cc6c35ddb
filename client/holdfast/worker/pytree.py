"""What JAX programs hold: arrays on devices, and nodes of a state that are no dict, list or tuple.

Nothing here imports jax. A program that holds such a value has imported it already; a named tuple needs no jax.
"""

import sys
from typing import Any

import numpy as np

from holdfast.worker.errors import CheckpointMismatch


def fields(value: Any) -> dict[str, Any] | None:
    """What a node holds, by name: a named tuple, or an object of a class registered with JAX. None: it is no node."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    jax = _jax()
    if jax is None or value is None or isinstance(value, dict | list | tuple | np.ndarray | np.generic):
        return None
    # Its children, and not theirs: every value but the node itself is taken for a leaf.
    found, _ = jax.tree_util.tree_flatten_with_path(value, is_leaf=lambda inner: inner is not value)
    if len(found) == 1 and not found[0][0]:
        return None
    return {jax.tree_util.keystr(path, simple=True): child for path, child in found}


def rebuilt(node: Any, children: dict[str, Any], path: str) -> Any:
    """A node like this one that holds these children. Raises CheckpointMismatch when it has no place for one."""
    names = fields(node) or {}
    for name in children.keys() - names.keys():
        raise CheckpointMismatch(
            f"the checkpoint has {f'{path}/{name}'.lstrip('/')!r}, for which the {type(node).__name__} "
            "in the default state has no place"
        )
    if isinstance(node, tuple):
        return type(node)(*(children[name] for name in names))
    tree = _jax().tree_util.tree_structure(node, is_leaf=lambda inner: inner is not node)
    return tree.unflatten([children[name] for name in names])


def is_array(value: Any) -> bool:
    """It is an array of JAX or, as a default, says what one is like (`jax.ShapeDtypeStruct`)."""
    jax = _jax()
    return jax is not None and isinstance(value, jax.Array | jax.ShapeDtypeStruct)


def to_numpy(array: Any, path: str) -> tuple[np.ndarray[Any, Any], str]:
    """The array, and of a random key the name of its generator. Raises TypeError when this process has only a part."""
    if not (array.is_fully_addressable or array.is_fully_replicated):
        raise TypeError(
            f"the jax.Array at {path!r} is spread over several processes, of which this one holds a part; "
            "save what jax.experimental.multihost_utils.process_allgather makes of it"
        )
    jax = _jax()
    if _is_key(array):
        return np.asarray(jax.random.key_data(array)), str(jax.random.key_impl(array))
    return np.asarray(array), ""


def like(default: Any, array: np.ndarray[Any, Any], generator: str, path: str) -> Any:
    """The array on the devices of `default`, which is an array of JAX or a `jax.ShapeDtypeStruct`."""
    jax = _jax()
    value: Any = array
    if generator:
        value = jax.random.wrap_key_data(array, impl=generator)
    found, wanted = (value.dtype, value.shape), (default.dtype, default.shape)
    if found != wanted:
        raise CheckpointMismatch(
            f"{path!r} is {found[0]} of shape {found[1]} in the checkpoint, {wanted[0]} of shape {wanted[1]} "
            "in the default state"
        )
    # An array that was never put anywhere goes wherever it is needed; it must stay so.
    placed = getattr(default, "committed", True)
    return jax.device_put(value, default.sharding if placed else None)


def _is_key(array: Any) -> bool:
    jax = _jax()
    return bool(jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key))


def _jax() -> Any:
    return sys.modules.get("jax")
