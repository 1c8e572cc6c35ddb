"""holdfast: training jobs that finish, whatever dies under them.

``run = holdfast.init()`` is where a training program starts. Names are loaded when they are first used: every
import is paid again at every restart.
"""

import importlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from holdfast import errors
    from holdfast.blocking import Client
    from holdfast.client import Client as AsyncClient
    from holdfast.data.errors import DataError, ShardChanged
    from holdfast.worker.errors import CheckpointCorrupt, CheckpointError, CheckpointMismatch
    from holdfast.worker.reading import load
    from holdfast.worker.run import Run, init

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "CheckpointCorrupt",
    "CheckpointError",
    "CheckpointMismatch",
    "Client",
    "DataError",
    "Run",
    "ShardChanged",
    "errors",
    "init",
    "load",
]

_HOME = {
    "CheckpointCorrupt": "holdfast.worker.errors",
    "CheckpointError": "holdfast.worker.errors",
    "CheckpointMismatch": "holdfast.worker.errors",
    "Client": "holdfast.blocking",
    "DataError": "holdfast.data.errors",
    "ShardChanged": "holdfast.data.errors",
    "Run": "holdfast.worker.run",
    "init": "holdfast.worker.run",
    "load": "holdfast.worker.reading",
}


def __getattr__(name: str) -> object:
    if name == "errors":
        return importlib.import_module("holdfast.errors")
    if name == "AsyncClient":
        from holdfast.client import Client

        return Client
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
