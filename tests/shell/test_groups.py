"""Control groups as the kernel has them: nobody is left in one, and whom it killed for memory is told as such."""

import ctypes
import errno
import mmap
import os
import signal
import sys
from pathlib import Path

import pytest

from holdfast.v1 import job_pb2
from holdfast_agent import cgroups
from holdfast_agent.groups import Groups
from tests.agent.processes import alive, gone, groups_of, line_of, marked, shims, until
from tests.shell.conftest import House

MOUNTS = cgroups.find()
BY_VERSION = {"2": MOUNTS.unified, "1": MOUNTS.freezer}
# Out of its session, its environment and its parent: nothing but the group still has it.
ESCAPED = (
    "(setsid env -i sh -c 'echo $$ >{out}/escaped; exec sleep 1000' >/dev/null 2>&1 &) ; "
    "while [ ! -s {out}/escaped ]; do sleep 0.01; done; echo up; exec sleep 1000"
)


def may_make(base):
    probe = f"{base}/holdfast-probe-{os.getpid()}"
    try:
        os.mkdir(probe)
        os.rmdir(probe)
    except OSError:
        return False
    return bool(base)


@pytest.fixture(params=["2", "1"])
async def grouped(request, tmp_path, mark):
    """A crew whose workers are in groups of this version."""
    base = BY_VERSION[request.param]
    if not may_make(base):
        pytest.skip(f"no control groups of version {request.param} can be made here")
    house = House(tmp_path, cgroup=base)
    yield house
    await house.close(workers=True)


def group_of(pid, base):
    with open(f"/proc/{pid}/cgroup") as file:
        return [line.strip() for line in file if base in line]


async def test_a_worker_is_in_a_group_of_its_own_and_its_shim_is_not(grouped, mark, tmp_path):
    path = grouped.sh("echo up; exec sleep 1000")
    worker = (await grouped.spawned()).pid
    await line_of(path / "stdout.log")
    base = Path(grouped.groups.base).name
    (there,) = group_of(worker, base)
    assert there.endswith(f"/{base}/job1/0-1")
    (shim,) = shims(mark)
    assert group_of(shim, base) == []


IMPORTS = "import sys, time; print('colorsys' in sys.modules, flush=True); time.sleep(1000)"


async def one_warm(house, *modules, spares, cwd):
    """A worker that was started warm: its pid, and that of the zygote when there is one."""
    command = (sys.executable, "-c", IMPORTS)
    how = {"preload": ["colorsys", *modules], "spares": spares, "cwd": cwd}
    if spares:  # the first start waits for no spare
        house.start(*command, rank=1, **how)
        await house.spawned()
        await until(lambda: house.preload().pids)
    path = house.start(*command, **how)
    worker = (await house.spawned()).pid
    assert await line_of(path / "stdout.log") == "True"
    assert house.preload().started == 1
    return worker


@pytest.mark.parametrize("spares", [0, 1])
async def test_a_warm_worker_too_and_what_it_came_from_in_one_of_the_job(grouped, mark, tmp_path, spares):
    worker = await one_warm(grouped, spares=spares, cwd=tmp_path)
    base = Path(grouped.groups.base).name
    (there,) = group_of(worker, base)
    assert there.endswith(f"/{base}/job1/0-1")
    (waiting,) = await until(lambda: grouped.preload().pids)
    (there,) = group_of(waiting, base)
    assert there.endswith(f"/{base}/job1/preload")
    # Shims that a zygote has forked outlive it, and are where it is; nothing is ever killed by that group.
    assert [len(group_of(pid, base)) for pid in shims(mark)] == [0, 0] if spares else [1]
    grouped.kill()
    assert (await grouped.ended())[1] == signal.SIGKILL
    assert not [path for group in groups_of(tmp_path) for path in Path(group).glob("job1/0-1")]
    if not spares:
        grouped.crew.warm.end("job1")
        await until(lambda: groups_of(tmp_path) == [])


async def test_the_jobs_group_goes_with_the_shim_that_outlived_its_zygote(grouped, mark, tmp_path):
    await one_warm(grouped, spares=0, cwd=tmp_path)
    (zygote,) = grouped.preload().pids
    grouped.crew.warm.end("job1")
    await gone(zygote)
    assert groups_of(tmp_path) != []
    grouped.kill()
    await grouped.ended()
    await until(lambda: groups_of(tmp_path) == [])


OWN_THREAD = """
import ctypes, mmap, signal, sys, threading, time
assert "colorsys" in sys.modules
heard = []
signal.signal(signal.SIGUSR2, lambda *_: heard.append(True))
signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR2)  # not the shim, from which it was forked
libc = ctypes.CDLL(None)
file = open(sys.argv[1], "r+b")
mutex = (ctypes.c_char * 64).from_buffer(mmap.mmap(file.fileno(), 64))
how = (ctypes.c_char * 8)()
libc.pthread_mutexattr_init(how)
libc.pthread_mutexattr_setpshared(how, 1)
libc.pthread_mutexattr_setrobust(how, 1)
libc.pthread_mutex_init(mutex, how)
libc.pthread_mutex_lock(mutex)
print(heard, flush=True)
time.sleep(1000)
"""


@pytest.mark.skipif(not os.confstr("CS_GNU_LIBC_VERSION").startswith("glibc"), reason="another C library")
async def test_a_warm_workers_thread_is_its_own_to_the_c_library(grouped, tmp_path):
    """Signals to it reach it, and a lock that it held when it died is known to be nobody's."""
    with open(tmp_path / "mutex", "wb") as file:
        file.truncate(64)
    command = (sys.executable, "-c", OWN_THREAD, str(tmp_path / "mutex"))
    path = grouped.start(*command, preload=["colorsys"])
    assert await line_of(path / "stdout.log") == "[True]"
    grouped.kill()
    await grouped.ended()
    with open(tmp_path / "mutex", "r+b") as file, mmap.mmap(file.fileno(), 64) as memory:
        mutex = (ctypes.c_char * 64).from_buffer(memory)
        assert ctypes.CDLL(None).pthread_mutex_trylock(mutex) == errno.EOWNERDEAD
        del mutex


async def test_what_the_imports_of_a_spare_have_started_comes_along(grouped, mark, tmp_path):
    escaped = ESCAPED.format(out=tmp_path).partition("echo up")[0]
    (tmp_path / "leaves.py").write_text(
        f"import subprocess\nsubprocess.run({escaped!r}, shell=True, check=True)\n"
    )
    await one_warm(grouped, "leaves", spares=0, cwd=tmp_path)
    assert grouped.preload().reason == "the imports have left a process behind"
    first = int((tmp_path / "escaped").read_text())
    base = Path(grouped.groups.base).name
    assert group_of(first, base)[0].endswith(f"/{base}/job1/0-1")


async def test_the_group_is_gone_with_its_attempt(grouped, tmp_path):
    grouped.sh("exit 3")
    assert await grouped.ended() == (3, 0, "exit code 3", False)
    assert groups_of(tmp_path) == []


async def test_also_when_it_never_ran(grouped, tmp_path):
    grouped.start("no-such-program")
    assert (await grouped.ended())[3]
    assert groups_of(tmp_path) == []


async def test_who_escaped_a_killed_shim_is_killed(grouped, mark, tmp_path):
    path = grouped.sh(ESCAPED.format(out=tmp_path))
    await line_of(path / "stdout.log")
    escaped = int((tmp_path / "escaped").read_text())
    assert escaped not in marked(mark)
    os.kill(shims(mark)[0], signal.SIGKILL)
    assert (await grouped.ended())[2] == "killed: its shim was killed"
    assert not alive(escaped)
    assert groups_of(tmp_path) == []


async def test_what_dead_attempts_left_is_removed_when_the_agent_starts(grouped, mark, tmp_path):
    """Agent and shim are killed together; what was released before is not looked at otherwise."""
    path = grouped.sh(ESCAPED.format(out=tmp_path))
    await line_of(path / "stdout.log")
    escaped = int((tmp_path / "escaped").read_text())
    await grouped.crew.stop(workers=False)
    os.kill(shims(mark)[0], signal.SIGKILL)
    (path / "released").touch()
    assert alive(escaped)
    await grouped.restart()
    await gone(escaped)
    assert groups_of(tmp_path) == []


async def test_workers_that_live_are_let_be_when_the_agent_starts(grouped, mark, tmp_path):
    grouped.sh("exec sleep 1000")
    worker = (await grouped.spawned()).pid
    await grouped.restart()
    assert alive(worker)
    assert len(groups_of(tmp_path)) == 1


async def test_a_storm_of_forks_is_ended_whole(grouped, mark, tmp_path):
    path = grouped.sh(
        "for n in 1 2 3 4 5 6 7 8; do (while :; do sh -c 'sleep 0.01' & sleep 0.02; done) & done; echo up; wait"
    )
    await line_of(path / "stdout.log")
    grouped.kill(force=True)
    assert (await grouped.ended())[1] == signal.SIGKILL
    await until(lambda: shims(mark) == [])
    assert groups_of(tmp_path) == []


async def test_where_no_groups_may_be_made_workers_run_all_the_same(house, tmp_path):
    """Its place was writable when the agent looked, and is not any more."""
    place = {"dirs": ["/proc/none/such"], "kill": "/proc/none/such", "memory": "", "own": False, "limit": 0}
    house.sh("exit 4", cgroup=place)
    assert (await house.ended())[0] == 4


def memory_house(tmp_path):
    probe = None
    try:
        probe = Groups("probe" + str(os.getpid()), "auto", limit_memory=True)
    except Exception:
        return None
    finally:
        if probe is not None:
            probe.close()
    return House(tmp_path, limit_memory=True)


@pytest.fixture
async def limited(tmp_path, mark):
    house = memory_house(tmp_path)
    if house is None:
        pytest.skip("no control groups that limit memory can be made here")
    yield house
    await house.close(workers=True)


EATER = "x = []\nwhile True: x.append(bytearray(1 << 20))"


async def test_the_kernels_killer_is_told_as_such(limited, tmp_path):
    limited.start(sys.executable, "-S", "-c", EATER, memory=64 * 2**20)
    found = await limited.exit()
    assert found.status.signal == signal.SIGKILL
    assert found.status.kind == job_pb2.EXIT_KIND_OUT_OF_MEMORY
    assert found.status.message == "killed by the kernel's out-of-memory killer (limit 64 MiB of the cgroup)"


async def test_a_warm_worker_is_limited_too(limited, tmp_path):
    limited.start(sys.executable, "-c", EATER, memory=64 * 2**20, preload=["colorsys"])
    assert (await limited.exit()).status.kind == job_pb2.EXIT_KIND_OUT_OF_MEMORY
    assert limited.preload().started == 1


async def test_a_process_that_the_worker_had_started_and_the_kernel_killed(limited, tmp_path):
    limited.sh(f"{sys.executable} -S -c '{EATER}' || exit 7", memory=64 * 2**20)
    found = await limited.exit()
    assert (found.status.code, found.status.kind) == (7, job_pb2.EXIT_KIND_OUT_OF_MEMORY)
    assert found.status.message.startswith("exit code 7, after the kernel's out-of-memory killer had killed")


async def test_a_sigkill_beside_it_is_none_of_the_kernels(limited):
    limited.sh("exec sleep 1000", memory=64 * 2**20)
    os.kill((await limited.spawned()).pid, signal.SIGKILL)
    found = await limited.exit()
    assert (found.status.kind, found.status.message) == (job_pb2.EXIT_KIND_SIGNALLED, "killed by SIGKILL")


async def test_within_its_limit_a_worker_runs(limited, tmp_path):
    limited.start(sys.executable, "-S", "-c", "bytearray(16 << 20)", memory=256 * 2**20)
    assert (await limited.ended())[0] == 0
    await until(lambda: not [p for base in groups_of(tmp_path) for p in Path(base).iterdir() if p.is_dir()])
