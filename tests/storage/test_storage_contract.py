"""What every storage promises (`holdfast.storage.api`), over every storage there is."""

import itertools
import mmap
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from holdfast.storage.api import Bytes, StorageError
from tests.storage.bodies import Pieces, noise
from tests.storage.conftest import PART

PLACES = ["local", "s3", "fsspec_local", "fsspec_memory", "fsspec_objects"]
SHARED_PLACES = ["local", "s3"]
"""Where other processes are kept out of an update."""
BAD_NAMES = ["", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/..", "./a", "a\0b"]
ODD_NAMES = [
    "with space", "ünïcode/çà/日本語", "🙂", "a+b=c&d", "100%", "%2F", "a#b?c", "[1]*", "it's \"so\"", "a:b", "~",
    "<&>", "trailing.", "-dash", "a\\b",
]  # fmt: skip


@pytest.fixture(params=PLACES)
def place(request):
    return request.getfixturevalue(f"{request.param}_place")


@pytest.fixture
def storage(place):
    storage = place.open("job-1")
    yield storage
    storage.close()


def contents(storage):
    return {entry.name: storage.read(entry.name) for entry in storage.files()}


def run_at_once(functions):
    """Run each in a thread of its own, all from the same moment on."""
    barrier = threading.Barrier(len(functions))

    def begin(function):
        barrier.wait()
        return function()

    with ThreadPoolExecutor(len(functions)) as pool:
        return [each.result() for each in [pool.submit(begin, function) for function in functions]]


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 2 * PART + 12_345])
def test_put_keeps_every_byte(storage, size):
    data = noise(size)
    storage.put("a/file", Bytes(data))
    assert storage.read("a/file") == data
    (entry,) = storage.files()
    assert (entry.name, entry.size) == ("a/file", size)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_pieces_come_in_any_order(storage, order):
    data = noise(1000)
    storage.put("file", Pieces(data, [100, 101], order))
    assert storage.read("file") == data


def test_the_head_of_many_parts_comes_last(storage):
    data = noise(2 * PART + 100)
    storage.put("file", Pieces(data, [1000, PART - 1, PART + 500_000], [1, 2, 3, 0]))
    assert storage.read("file") == data


def test_put_replaces(storage):
    storage.put("file", Bytes(noise(1000)))
    storage.put("file", Bytes(b"new"))
    assert contents(storage) == {"file": b"new"}


@pytest.mark.parametrize("size", [1000, PART + 1000])
def test_a_put_that_fails_changes_nothing(storage, size):
    storage.put("there", Bytes(b"old"))
    for name in ("there", "a/new"):
        with pytest.raises(OSError, match="no data"):
            storage.put(name, Pieces(noise(size), [10], error=OSError("no data")))
    assert contents(storage) == {"there": b"old"}


def test_a_reader_sees_all_of_a_file_or_all_of_the_other(storage):
    both = [noise(300_000, 1), noise(200_000, 2)]
    storage.put("file", Bytes(both[0]))
    done = threading.Event()

    def write():
        for data in both[::-1] * 5:
            storage.put("file", Bytes(data))
        done.set()

    def read():
        seen = []
        while not done.is_set():
            seen.append(storage.read("file"))
            seen += [data for data in both if len(data) == storage.files()[0].size]
        return seen

    _, *seen = run_at_once([write, read])
    assert all(data in both for data in seen[0])


def test_files_of_one_name_in_several_directories_are_put_at_once(storage):
    files = {f"step-{step}/rank-0": noise(50_000, step) for step in range(8)}
    run_at_once([lambda name=name, data=data: storage.put(name, Bytes(data)) for name, data in files.items()])
    assert contents(storage) == files


def test_update_makes_a_file(storage):
    given = []
    storage.update("a/file", lambda before: given.append(before) or b"first")
    assert given == [None]
    assert storage.read("a/file") == b"first"


def test_update_gives_what_is_there(storage):
    storage.put("file", Bytes(b"1"))
    storage.update("file", lambda before: before + b"2")
    storage.update("file", lambda before: before + b"3")
    assert storage.read("file") == b"123"


def test_update_empties_a_file(storage):
    storage.put("file", Bytes(b"1"))
    storage.update("file", lambda before: b"")
    storage.update("file", lambda before: b"more" if before == b"" else None)
    assert storage.read("file") == b"more"


def test_update_leaves_what_is_not_to_change(storage):
    storage.update("none", lambda before: None)
    assert storage.files() == []
    storage.put("file", Bytes(b"1"))
    before = storage.files()
    storage.update("file", lambda before: None)
    assert storage.files() == before


def test_an_update_that_fails_changes_nothing(storage):
    def change(before):
        raise KeyError(before)

    storage.put("file", Bytes(b"1"))
    with pytest.raises(KeyError):
        storage.update("file", change)
    assert contents(storage) == {"file": b"1"}
    storage.update("file", lambda before: before + b"2")
    assert storage.read("file") == b"12"


def increment(before):
    return str(int(before or 0) + 1).encode()


def test_threads_lose_no_update(place, storage):
    storages = [place.open("job-1") for _ in range(2)]
    run_at_once(
        [
            lambda each=each: [each.update("count", increment) for _ in range(10)]
            for each in [*storages, storage] * 2
        ]
    )
    for each in storages:
        each.close()
    assert storage.read("count") == b"60"


INCREMENT = """
import sys
from holdfast.storage.places import open_storage
storage = open_storage(sys.argv[1], "job-1")
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    storage.update("count", lambda before: str(int(before or 0) + 1).encode())
storage.close()
"""


@pytest.mark.parametrize("place", SHARED_PLACES, indirect=True)
def test_processes_lose_no_update(place, storage):
    command = [sys.executable, "-c", INCREMENT, place.uri]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(3)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
    for process in processes:
        process.communicate("go\n", timeout=60)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert storage.read("count") == b"60"


@pytest.mark.parametrize("ask", ["read", "open"])
def test_what_is_not_there_is_not_found(storage, ask):
    for name in ("file", "a/file"):
        with pytest.raises(FileNotFoundError):
            getattr(storage, ask)(name)
    storage.put("file", Bytes(b"1"))
    storage.delete(["file"])
    with pytest.raises(FileNotFoundError):
        getattr(storage, ask)("file")


def test_a_place_that_does_not_exist_is_empty(storage):
    assert storage.names() == []
    assert storage.files() == []
    assert storage.files("a") == []
    storage.delete(["a/file"])


def test_names_are_what_lies_at_the_top(storage):
    for name in ("step-1/a", "step-1/b", "step-10/a/b/c", "LATEST"):
        storage.put(name, Bytes(b"1"))
    assert sorted(storage.names()) == ["LATEST", "step-1", "step-10"]


def test_files_are_all_below_sorted(storage):
    for size, name in enumerate(("step-1/b", "step-1/a", "step-10/a/b/c", "LATEST", "step-1.txt")):
        storage.put(name, Bytes(bytes(size)))
    found = [(entry.name, entry.size) for entry in storage.files()]
    assert found == [("LATEST", 3), ("step-1.txt", 4), ("step-1/a", 1), ("step-1/b", 0), ("step-10/a/b/c", 2)]
    assert [entry.name for entry in storage.files("step-1")] == ["step-1/a", "step-1/b"]
    assert [entry.name for entry in storage.files("step-10/a")] == ["step-10/a/b/c"]
    assert storage.files("step-1/a") == []
    assert storage.files("step") == []


def test_a_version_changes_with_the_content(storage):
    storage.put("file", Bytes(b"1"))
    storage.put("other", Bytes(b"1"))
    before = storage.files()
    assert storage.files() == before
    storage.put("file", Bytes(b"2"))
    after = storage.files()
    assert after[0].version != before[0].version
    assert after[1] == before[1]
    with storage.open("file") as file:
        assert file.version == after[0].version


def test_places_see_nothing_of_each_other(place, storage):
    other = place.open("job-10")
    storage.put("file", Bytes(b"1"))
    assert other.files() == []
    other.update("file", lambda before: b"10" if before is None else None)
    other.delete(["x"])
    assert contents(storage) == {"file": b"1"}
    assert contents(other) == {"file": b"10"}
    assert sorted(place.open().names()) == ["job-1", "job-10"]
    assert storage.uri.endswith("/job-1")
    other.close()


def test_rename(storage):
    storage.put("a/old", Bytes(b"1"))
    storage.rename("a/old", "b/c/new")
    assert contents(storage) == {"b/c/new": b"1"}


def test_rename_takes_the_place_of_what_had_the_name(storage):
    storage.put("old", Bytes(b"1"))
    storage.put("new", Bytes(b"longer"))
    storage.rename("old", "new")
    assert contents(storage) == {"new": b"1"}


def test_rename_to_its_own_name_leaves_it(storage):
    storage.put("file", Bytes(b"1"))
    storage.rename("file", "file")
    assert contents(storage) == {"file": b"1"}


def test_rename_of_what_is_not_there_changes_nothing(storage):
    storage.put("new", Bytes(b"1"))
    for new in ("new", "other", "old"):
        with pytest.raises(FileNotFoundError):
            storage.rename("old", new)
    assert contents(storage) == {"new": b"1"}


def test_delete(storage):
    for name in ("a/1", "a/2", "a/3", "b"):
        storage.put(name, Bytes(b"1"))
    storage.delete(name for name in ("a/1", "a/none", "a/3", "none/at/all"))
    assert [entry.name for entry in storage.files()] == ["a/2", "b"]
    storage.delete([])
    storage.delete(["a/2"])
    assert storage.names() == ["b"]
    storage.put("a/2", Bytes(b"again"))
    assert storage.read("a/2") == b"again"


def test_a_reader_reads_any_range(storage):
    data = noise(10_000)
    storage.put("file", Bytes(data))
    with storage.open("file") as reader:
        assert reader.size == len(data)
        for offset, size in ((0, 10_000), (0, 1), (9_999, 1), (5_000, 2_500), (0, 0), (10_000, 0)):
            buffer = bytearray(size)
            reader.read_into(memoryview(buffer), offset)
            assert buffer == data[offset : offset + size]
        for offset, size in ((0, 10_001), (9_999, 2), (10_000, 1), (20_000, 5)):
            with pytest.raises(EOFError):
                reader.read_into(memoryview(bytearray(size)), offset)


def test_a_reader_of_an_empty_file(storage):
    storage.put("file", Bytes(b""))
    with storage.open("file") as reader:
        assert reader.size == 0
        reader.read_into(memoryview(bytearray()), 0)
        with pytest.raises(EOFError):
            reader.read_into(memoryview(bytearray(1)), 0)


def test_a_readers_path_can_be_mapped(storage):
    data = noise(10_000)
    storage.put("file", Bytes(data))
    with storage.open("file") as reader:
        if reader.path is None:
            return
        with open(reader.path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[:] == data


def test_threads_read_one_file_at_once(storage):
    size = 100_000
    data = noise(8 * size)
    storage.put("file", Bytes(data))
    whole = bytearray(len(data))
    with storage.open("file") as reader:
        run_at_once(
            [
                lambda at=at: reader.read_into(memoryview(whole)[at : at + size], at)
                for at in range(0, len(data), size)
            ]
        )
    assert whole == data


def test_a_reader_never_mixes_a_file_with_what_replaces_it(storage):
    old, new = noise(10_000, 1), noise(10_000, 2)
    storage.put("file", Bytes(old))
    with storage.open("file") as reader:
        buffer = bytearray(10_000)
        reader.read_into(memoryview(buffer)[:5_000], 0)
        storage.put("file", Bytes(new))
        try:
            reader.read_into(memoryview(buffer)[5_000:], 5_000)
        except OSError:
            return
        assert buffer == old


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_are_none_are_refused(storage, name):
    storage.put("b", Bytes(b"1"))
    asked = [
        lambda: storage.put(name, Bytes(b"2")),
        lambda: storage.update(name, lambda before: b"2"),
        lambda: storage.read(name),
        lambda: storage.open(name),
        lambda: storage.rename("b", name),
        lambda: storage.rename(name, "b"),
        lambda: storage.delete(["b", name]),
        lambda: storage.files(name) if name else storage.read(name),
    ]
    for ask in asked:
        with pytest.raises(StorageError, match="is no name below"):
            ask()
    assert contents(storage) == {"b": b"1"}


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_may_be_odd(storage, name):
    storage.put(name, Bytes(b"1"))
    storage.update(f"dir {name}/{name}", lambda before: b"2")
    assert contents(storage) == {name: b"1", f"dir {name}/{name}": b"2"}
    top = name.split("/")[0]
    assert sorted(storage.names()) == sorted({top, f"dir {top}"})
    assert [entry.name for entry in storage.files(f"dir {name}")] == [f"dir {name}/{name}"]
    with storage.open(name) as reader:
        assert reader.size == 1
    storage.rename(name, f"{name} renamed")
    storage.delete([f"dir {name}/{name}"])
    assert contents(storage) == {f"{name} renamed": b"1"}


def test_closing_twice_is_closing_once(place):
    storage = place.open("job-1")
    storage.put("file", Bytes(b"1"))
    storage.close()
    storage.close()
    assert place.open("job-1").read("file") == b"1"
