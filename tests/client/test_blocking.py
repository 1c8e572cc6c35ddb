"""The blocking client: the asyncio one, in a thread's event loop."""

import gc
import inspect
import itertools
import os
import signal
import subprocess
import sys
import threading
import typing
from collections.abc import AsyncIterator, Generator
from concurrent.futures import ThreadPoolExecutor

import pytest
from google.rpc import code_pb2

import holdfast
from holdfast import errors
from holdfast.v1 import job_pb2
from tests.client.fake_coordinator import FakeCoordinator, status

PATIENCE = 60
AWAY = status(code_pb2.UNAVAILABLE, "not now")


@pytest.fixture
def fake(tmp_path):
    """It has one job, which runs."""
    found = FakeCoordinator(tmp_path / "c.sock")
    found.add_job(job_pb2.Job(id="a", state=job_pb2.JOB_STATE_RUNNING))
    found.start()
    yield found
    found.stop()


@pytest.fixture
def client(fake):
    with holdfast.Client(fake.target) as found:
        yield found
    assert not found._tasks
    assert "holdfast-client" not in [thread.name for thread in threading.enumerate()]


def public(kind):
    methods = inspect.getmembers(kind, inspect.isfunction)
    return {name: method for name, method in methods if not name.startswith("_")}


def test_both_clients_have_the_same_methods():
    blocking, asyncio = public(holdfast.Client), public(holdfast.AsyncClient)
    del asyncio["raise_unless_away"]  # for read_logs
    assert blocking.keys() == asyncio.keys()
    for name, method in asyncio.items():
        twin = blocking[name]
        assert twin.__doc__ == method.__doc__ or name == "close", name
        assert inspect.signature(twin).parameters == inspect.signature(method).parameters, name
        gives, wanted = (typing.get_type_hints(one)["return"] for one in (twin, method))
        if typing.get_origin(wanted) is AsyncIterator:
            wanted = Generator[*typing.get_args(wanted), None, None]
        assert gives == wanted, name


def test_it_is_imported_when_it_is_used():
    program = (
        "import holdfast, sys; assert 'grpc' not in sys.modules; holdfast.errors.NotFound; holdfast.Client"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_calls_and_lists(fake, client):
    fake.add_job(job_pb2.Job(id="b"))
    fake.add_job(job_pb2.Job(id="c"))
    assert client.get_job("b").id == "b"
    assert [job.id for job in client.list_jobs(name="x")] == ["a", "b", "c"]
    assert {request.filter.name for request in fake.asked("ListJobs")} == {"x"}


def test_errors_are_of_their_kinds(fake, client):
    with pytest.raises(errors.NotFound) as caught:
        client.get_job("nope")
    assert caught.value.remedy == "list the jobs to see their ids"
    bad = status(code_pb2.INVALID_ARGUMENT, "no", violations=[("world_size", "is 0")])
    fake.fail("CreateJob", bad)
    with pytest.raises(errors.InvalidSpec) as caught:
        client.create_job(job_pb2.JobSpec())
    assert caught.value.violations == (errors.Violation("world_size", "is 0"),)
    with pytest.raises(errors.NotFound):
        next(client.watch_job("nope"))


def test_a_watch_goes_on_when_the_coordinator_was_away(fake, client):
    fake.fail("WatchJob", AWAY, None, AWAY)
    fake.watched = [job_pb2.Job(id="a", state=state) for state in (2, job_pb2.JOB_STATE_SUCCEEDED)]
    assert [job.state for job in client.watch_job("a")] == [2, job_pb2.JOB_STATE_SUCCEEDED]
    assert len(fake.asked("WatchJob")) == 2


def test_who_leaves_logs_ends_their_call(fake, client):
    fake.log = [job_pb2.StreamLogsResponse(data=b"one\n")]
    fake.hold.clear()
    assert next(client.stream_logs("a", follow=True, grep="one")).data == b"one\n"
    assert fake.hold.wait(PATIENCE)


@pytest.mark.parametrize("leave", ["close", "break", "cycle"])
def test_who_leaves_an_iterator_ends_its_call(fake, client, leave):
    fake.watched = [fake.jobs["a"]]
    fake.hold.clear()
    watching = client.watch_job("a")
    assert next(watching).id == "a"
    if leave == "close":
        watching.close()
    elif leave == "break":
        del watching
    else:
        around = [watching]
        around.append(around)
        del watching, around
        gc.collect()
    assert fake.hold.wait(PATIENCE)  # set when the call is over
    assert client.get_job("a").id == "a"


async def test_who_leaves_an_asynchronous_iterator_ends_its_call(fake):
    fake.watched = [fake.jobs["a"]]
    fake.hold.clear()
    async with holdfast.AsyncClient(fake.target) as client:
        async for _ in client.watch_job("a"):
            break
        while not fake.hold.is_set():
            await client.get_job("a")


def test_one_client_serves_many_threads(fake, client):
    names = [f"job-{n}" for n in range(200)]
    for name in names:
        fake.add_job(job_pb2.Job(id=name))
    with ThreadPoolExecutor(8) as pool:
        assert [job.id for job in pool.map(client.get_job, names)] == names


def test_closing_ends_what_others_wait_for(fake):
    fake.watched = [fake.jobs["a"]]
    fake.hold.clear()
    client, other = holdfast.Client(fake.target), holdfast.Client(fake.target)
    with ThreadPoolExecutor(1) as pool:
        watching = client.watch_job("a")
        next(watching)
        ended = pool.submit(next, watching)
        client.close()
        with pytest.raises(errors.ClientClosed):
            ended.result(PATIENCE)
    client.close()
    with pytest.raises(errors.ClientClosed, match="is closed; make another"):
        client.get_job("a")
    with pytest.raises(errors.ClientClosed):
        next(client.watch_job("a"))
    assert other.get_job("a").id == "a"
    other.close()


def test_what_is_not_closed_is_told_and_ends(fake):
    client = holdfast.Client(fake.target)
    client.get_job("a")
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "holdfast-client"]
    with pytest.warns(ResourceWarning, match="was not closed"):
        del client
    thread.join(PATIENCE)
    assert not thread.is_alive()


async def test_it_works_where_an_event_loop_runs(fake, client, caplog):
    """As in notebooks; and beside an asyncio client in another loop."""
    async with holdfast.AsyncClient(fake.target) as other:
        for _ in range(50):
            assert client.get_job("a") == await other.get_job("a")
    assert [record.getMessage() for record in caplog.records] == []


def program(fake, text, warnings="error"):
    """Begin one that has `client`."""
    head = f"import holdfast, os, signal, sys\nfrom holdfast import errors\nclient = holdfast.Client({fake.target!r})\n"
    return subprocess.Popen(
        [sys.executable, "-W", warnings, "-c", head + text],
        env=os.environ | {"GRPC_VERBOSITY": "ERROR"},  # it says at a fork that it does nothing about it
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(process):
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")
    return out.splitlines()


def test_interrupting_ends_the_call_and_not_the_client(fake):
    fake.watched = [fake.jobs["a"]]
    fake.hold.clear()
    process = program(
        fake,
        """
try:
    for job in client.watch_job("a"):
        print("watching", flush=True)
except KeyboardInterrupt:
    print("interrupted", client.get_job("a").id, flush=True)
client.close()
""",
    )
    assert process.stdout.readline() == "watching\n"
    process.send_signal(signal.SIGINT)
    assert fake.hold.wait(PATIENCE)
    assert said(process) == ["interrupted a"]


def test_a_process_ends_although_nothing_was_closed(fake):
    fake.watched = [fake.jobs["a"]]
    fake.hold.clear()
    process = program(
        fake, 'watching = client.watch_job("a")\nprint(next(watching).id)\n', warnings="default"
    )
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (0, "a\n")
    assert "ResourceWarning: a client of unix:" in err
    assert "Traceback" not in err
    assert fake.hold.wait(PATIENCE)


FORKING = """
def ask():
    with holdfast.Client(client.target) as another:
        return another.get_job("a").id

def in_child(*calls):
    sys.stdout.flush()
    if child := os.fork():
        print(os.waitpid(child, 0)[1])
        return
    for call in calls:
        try:
            print(call())
        except errors.ClientClosed as error:
            print(error)
    client.close()
    sys.exit()

print(ask())
in_child(ask, lambda: client.get_job("a"))
print(ask(), client.get_job("a").id)
client.close()
in_child(ask)
"""


def test_a_child_of_a_fork_is_told_and_does_not_hang(fake):
    told = "this process was forked after a client was made, and gRPC does not work in it; start processes another way"
    lines = said(program(fake, FORKING))
    assert [line[: len(told)] for line in lines] == ["a", told, told, "0", "a a", told, "0"]


def test_many_open_and_close_at_once(fake):
    """The thread ends with the last, and the next one has another."""

    def use(_):
        with holdfast.Client(fake.target) as client:
            return client.get_job("a").id

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(use, range(40))) == {"a"}
    assert "holdfast-client" not in [thread.name for thread in threading.enumerate()]


def test_taking_some_of_a_list_is_enough(fake, client):
    for n in range(10):
        fake.add_job(job_pb2.Job(id=f"job-{n}"))
    assert len(list(itertools.islice(client.list_jobs(), 3))) == 3
    assert len(fake.asked("ListJobs")) == 2
