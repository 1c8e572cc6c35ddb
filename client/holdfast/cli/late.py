"""Modules that are slow to come up, imported when something of them is used first, so that `--help` is quick.

Take them from here in `holdfast.cli`, with `from __future__ import annotations`, and name what is theirs in full:
`api.Client`, `wire.NotFound`, `job_pb2.Job`. At the top level of a module nothing of them may be used.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any


class _Late:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        module = sys.modules.get(self._name)
        return getattr(importlib.import_module(self._name) if module is None else module, attribute)


if TYPE_CHECKING:
    import asyncio

    from holdfast import client as api
    from holdfast import wire
    from holdfast.v1 import job_pb2, node_pb2, worker_pb2
else:
    asyncio = _Late("asyncio")
    api = _Late("holdfast.client")
    wire = _Late("holdfast.wire")
    job_pb2, node_pb2, worker_pb2 = (_Late(f"holdfast.v1.{name}_pb2") for name in ("job", "node", "worker"))

__all__ = ["api", "asyncio", "job_pb2", "node_pb2", "wire", "worker_pb2"]
