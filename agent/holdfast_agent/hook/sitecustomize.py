"""The interpreter of a job comes by here while it starts, since this directory is first on its PYTHONPATH.

It imports what the job wants preloaded, and waits (zygote.py). Whoever comes out of that is a worker: it goes on
starting, and runs the program that the command line names, as if it had just been exec'd. So nothing of how Python runs
a program has to be imitated.

Here `import sitecustomize` of the module `site` is under way. The user's own one, if any, takes our place.
"""

import os
import sys

TOLD, ROOM = "HOLDFAST_ZYGOTE", "HOLDFAST_ROOM"


def _stand_aside() -> tuple[str, BaseException | None]:
    """Take everything away that would show a program that we are here. Returns what we are told to do."""
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120  pathlib is not imported at this point
    sys.path[:] = [path for path in sys.path if path != here]
    sys.path_importer_cache.pop(here, None)
    told = os.environ.pop(TOLD, "")
    os.environ.pop(ROOM, None)
    paths = os.environ.pop("PYTHONPATH", "").split(os.pathsep)
    if paths[1:]:
        os.environ["PYTHONPATH"] = os.pathsep.join(paths[1:])
    del sys.modules[__name__]
    try:
        import sitecustomize  # type: ignore[import-not-found]  # noqa: F401  another one by now
    except BaseException as error:  # noqa: BLE001  raised again when it is its turn
        return told, error
    return told, None


def _run(told: str) -> None:
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    # Loaded from beside this file: the job's interpreter may be another one than the agent's, which knows no holdfast.
    agent = type(sys)("holdfast_agent")
    agent.__path__ = [package]
    before = set(sys.modules)
    sys.modules["holdfast_agent"] = agent
    from holdfast_agent import zygote

    ours = [name for name in sys.modules if name.partition(".")[0] == "holdfast_agent"]
    for name in ours:
        del sys.modules[name]
    zygote.main(told, set(sys.modules) - before)


def _answer(told: str) -> str:
    """Say that we are reached, and by which Python, when that is all we are asked; otherwise what to go on with.

    Only the child of who asked is meant, and none of what that starts.
    """
    asker, what, *fds = told.split() or ["0", ""]
    if int(asker) != os.getppid():
        return ""
    if what == "probe":
        os.write(int(fds[0]), "{}.{}".format(*sys.version_info).encode())
        os._exit(0)
    return " ".join(fds)


_told, _error = _stand_aside()
_told = _answer(_told)
if _told:
    _run(_told)
if _error is not None:
    raise _error
