"""A program runs warm just as it runs cold: one table of programs, each run both ways, and nothing differs."""

import asyncio
import json
import re
import sys
import zipfile

import pytest

FACTS = """
import ctypes, gc, inspect, io, json, os, signal, subprocess, sys, threading, traceback
import __main__
libc = ctypes.CDLL(None)
libc.getenv.restype = ctypes.c_char_p
me = vars(__main__)
def stream(s):
    return [s.name, s.mode, s.encoding, s.errors, s.line_buffering, s.write_through, s.isatty(), s.seekable()]
shown = os.fsdecode(open("/proc/self/environ", "rb").read()).split(chr(0))
environ = dict(part.split("=", 1) for part in shown if "=" in part)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
facts = {
    "argv": sys.argv, "orig_argv": sys.orig_argv, "path": sys.path, "flags": str(sys.flags), "xoptions": sys._xoptions,
    "executable": sys.executable, "warnoptions": sys.warnoptions, "main": list(me),
    "file": me.get("__file__"), "cached": me.get("__cached__"), "package": me.get("__package__"),
    "spec": me["__spec__"] and [me["__spec__"].name, me["__spec__"].origin], "loader": str(type(me["__loader__"])),
    "name": __name__, "is main": me is globals(), "stack": [str(f) for f in traceback.extract_stack()],
    "frames": len(inspect.stack()), "environ": dict(os.environ),
    "c environ": {name: os.fsdecode(libc.getenv(os.fsencode(name)) or b"") for name in os.environ},
    "proc environ": {n: environ.get(n) for n in os.environ if n not in ("PYTHONPATH", "LC_CTYPE")},
    "child": sorted(map(os.fsdecode, subprocess.check_output("env").splitlines())), "cwd": os.getcwd(),
    "cmdline": open("/proc/self/cmdline").read(), "comm": open("/proc/self/comm").read(),
    "streams": [stream(s) for s in (sys.stdin, sys.stdout, sys.stderr)],
    "std": [sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__],
    "signals": [str(signal.getsignal(n)) for n in sorted(signal.valid_signals())], "wakeup": signal.set_wakeup_fd(-1),
    "masks": [status["SigBlk"], status["SigIgn"], status["SigCgt"]], "umask": os.umask(0o22),
    "fds": sorted(os.listdir("/proc/self/fd")), "leads": os.getsid(0) == os.getpgid(0) == os.getpid(),
    "parent": open(f"/proc/{os.getppid()}/comm").read(), "threads": len(os.listdir("/proc/self/task")),
    "main thread": [threading.current_thread() is threading.main_thread(), threading.active_count(),
                    threading.main_thread().native_id == os.getpid(), threading.main_thread().name],
    "gc": [gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()], "recursion": sys.getrecursionlimit(),
    "sitecustomize": "sitecustomize" in sys.modules, "ours": [m for m in sys.modules if "holdfast" in m],
    "meta path": len(sys.meta_path), "hooks": [sys.excepthook is sys.__excepthook__, len(sys.path_hooks)],
    "exception": sys.exc_info()[0], "last": hasattr(sys, "last_type"), "stdin": sys.stdin.read(),
}
print(json.dumps(facts, default=str))
"""

FILES = {
    "facts.py": FACTS,
    "pkg/__init__.py": "",
    "pkg/__main__.py": FACTS,
    "pkg/mod.py": FACTS,
    "folder/__main__.py": FACTS,
    "beside.py": "VALUE = 7\n",
    "exits.py": "import sys; sys.exit(3)",
    "says.py": "import sys; print('out'); sys.exit('a word')",
    "none.py": "raise SystemExit",
    "odd.py": "raise SystemExit(1 << 9)",
    "raises.py": "def f():\n    1 / 0\n\ntry:\n    f()\n"
    "except ZeroDivisionError as e:\n    raise KeyError('x') from e\n",
    "interrupted.py": "raise KeyboardInterrupt",
    "hard.py": "import os; print('lost?', end=''); os._exit(4)",
    "signalled.py": "import os; os.kill(os.getpid(), 15); input()",
    "last_words.py": "import atexit; atexit.register(print, 'bye', flush=False); print('hi', end='')",
    "thread.py": "import threading, time\n"
    "threading.Thread(target=lambda: (time.sleep(0.1), print('still here'))).start()\nprint('main ends')\n",
    "warns.py": "import warnings\nwarnings.warn('one')\nwarnings.warn('two', stacklevel=2)\n"
    "warnings.warn('far', stacklevel=9)\nwarnings.warn('old', DeprecationWarning)\n",
    "kicks.py": "import signal, threading, time\nsignal.signal(signal.SIGUSR2, lambda *_: print('kicked'))\n"
    "main = threading.main_thread().ident\n"
    "kicker = threading.Thread(target=lambda: signal.pthread_kill(main, signal.SIGUSR2))\n"
    "kicker.start()\nkicker.join()\ntime.sleep(0)\n",
    "stack.py": "import faulthandler, traceback\ntraceback.print_stack()\n"
    "faulthandler.dump_traceback(all_threads=False)\n",
    "broken.py": "def f(:\n",
    "hook.py": "import sys\nsys.excepthook = lambda *a: print('hooked', a[0])\nraise ValueError\n",
    "deep.py": "import sys\ndef f(n):\n    try:\n        return f(n + 1)\n"
    "    except RecursionError:\n        return n\nprint(f(0))\n",
    "asks.py": "print(repr(input()))",
    "sibling.py": "import beside, sys; print(beside.VALUE, beside.__file__)",
    "closes.py": "import sys; sys.stdout.close()",
    "full.py": "import sys; sys.stdout.write('x'); sys.stdout = None",
    "pool.py": "import multiprocessing as mp\nimport os\n\ndef f(n):\n    return n * n, __name__ == '__main__'\n\n"
    "if __name__ == '__main__':\n    for how in ('spawn', 'forkserver', 'fork'):\n"
    "        with mp.get_context(how).Pool(2) as pool:\n            print(how, pool.map(f, range(4)))\n",
    "again.py": "import os, subprocess, sys\n"
    "print(subprocess.run([sys.executable, '-c', 'import sys, os; print(sys.path, sorted(os.environ))'],"
    " capture_output=True, text=True).stdout)",
    "loud.py": "import loudly\nprint('program')",
    "loudly.py": "import sys\nprint('import of loudly')\nprint('on stderr', file=sys.stderr)\n",
    "environs.py": "import environly, os\nprint(sorted(os.environ))",
    "environly.py": "import os\nos.environ['SET_BY_IMPORT'] = '1'\nos.environ.pop('REMOVED', None)\n"
    "os.environ.setdefault('RANK', 'nobody')\n",
    "opener.py": "import openly\nprint(openly.FILE.read())\n",
    "openly.py": "FILE = open(__file__.replace('openly.py', 'beside.py'))\n",
    "handles.py": "import handly, signal\n"
    "print(signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGTERM).__name__)",
    "handly.py": "import signal\ndef on_term(*_):\n    pass\nsignal.signal(signal.SIGTERM, on_term)\n"
    "signal.signal(signal.SIGUSR1, signal.SIG_IGN)\n",
}

COMMANDS = [
    "facts.py a --b",
    "./facts.py",
    "-u facts.py",
    "-O facts.py",
    "-BOOs facts.py",
    "-P facts.py",
    "-P -m pkg x",
    "-X dev facts.py",
    "-Xutf8 -W error::FutureWarning facts.py",
    "-m pkg x y",
    "-m pkg.mod x",
    "-um pkg.mod",
    "folder one",
    "packed.zip one",
    "-c CODE one two",
    "-cprint(1)",
    "link.py",
    *sorted(
        name
        for name in FILES
        if "/" not in name and not name.endswith("ly.py") and name not in ("facts.py", "beside.py")
    ),
    "nosuch.py",
    "-m nosuch",
    "-m pkg.nosuch",
    "-m json.tool nosuch.json",
    "-W error warns.py",
]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "program"
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with zipfile.ZipFile(folder / "packed.zip", "w") as archive:
        archive.writestr("__main__.py", FACTS)
    (folder / "bin").mkdir()
    (folder / "bin/linked.py").write_text(FACTS)
    (folder / "link.py").symlink_to("bin/linked.py")
    return folder


def normal(text, path):
    """What differs between any two attempts."""
    text = text.replace(str(path), "<attempt>")
    return re.sub(r"0x[0-9a-f]+|Thread 0x\S+|\[Process \d+\]|pid=\d+|/proc/\d+", "<n>", text)


async def run(house, attempt, command, folder, **how):
    env = {
        "REMOVED": "1",
        "TOKEN": "sécret\udcff",
        "RANK": "3",
        "PYTHONPATH": "",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    env |= how.pop("env", {})
    path = house.start(*command, attempt=attempt, cwd=folder, env=env, **how)
    code, signal, message, never_ran = await house.ended()
    said = [normal((path / name).read_text(errors="replace"), path) for name in ("stdout.log", "stderr.log")]
    return {"end": [code, signal, message, never_ran], "stdout": said[0], "stderr": said[1]}


def parts(found):
    """One by one what a run has shown, with facts as such."""
    if not found["stdout"].startswith('{"'):
        return found
    facts = json.loads(found["stdout"])
    return facts | {"end": found["end"], "stderr": found["stderr"]}


@pytest.mark.parametrize("line", COMMANDS)
@pytest.mark.parametrize("spares", [0, 1])
async def test_warm_is_as_cold(house, folder, line, spares):
    words = [FACTS if word == "CODE" else word for word in line.split()]
    command = [sys.executable, *words]
    modules = [
        "colorsys",
        *(name for name in ("loudly", "environly", "openly", "handly") if name[:-2] in line),
    ]
    cold = await run(house, 1, command, folder)
    if spares:  # the first start waits for no spare
        await run(house, 2, command, folder, preload=modules, spares=1)
        async with asyncio.timeout(20):
            while not house.preload().pids:
                await asyncio.sleep(0.01)
    warm = await run(house, 3, command, folder, preload=modules, spares=spares)
    assert house.preload().started == 1, house.preload()
    cold = parts(cold)
    assert {
        name: (found, cold.get(name)) for name, found in parts(warm).items() if found != cold.get(name)
    } == {}
