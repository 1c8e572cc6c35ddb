"""The cache of shards: processes share it, die in the middle of anything, and it stays within its limit."""

import multiprocessing
import os
import signal
import threading

import pytest
import xxhash

from holdfast.data.cache import LIMIT, ShardCache, cache_dir, cache_limit
from holdfast.data.errors import DataError
from holdfast.data.shards import ShardInfo

SIZE = 10_000


def shard(number, size=SIZE):
    return ShardInfo(f"{number}.npy", 1, size, "")


def content(number, size=SIZE):
    return bytes([number % 256]) * size


def filling(number, size=SIZE):
    return lambda fd: os.pwrite(fd, content(number, size), 0)


def get(cache, number, size=SIZE):
    return cache.get("s3://b", shard(number, size), filling(number, size))


def there(directory):
    return sorted(path.name.partition(".")[2] for path in (directory / "shards").iterdir())


def read(path):
    with open(path, "rb") as file:
        return file.read()


def test_what_is_there_is_not_filled_again(tmp_path):
    cache = ShardCache(str(tmp_path))
    path = get(cache, 1)
    assert cache.get("s3://b", shard(1), lambda _: pytest.fail("filled")) == path
    assert read(path) == content(1)


def test_another_place_size_or_digest_is_another_shard(tmp_path):
    cache = ShardCache(str(tmp_path))
    same = shard(1)
    others = [("s3://c", same), ("s3://b", shard(1, 5)), ("s3://b", same._replace(digest="etag:x"))]
    paths = {get(cache, 1), *(cache.get(base, info, lambda _fd: None) for base, info in others)}
    assert len(paths) == 4


def test_the_least_recently_used_make_room(tmp_path):
    cache = ShardCache(str(tmp_path), 3 * SIZE)
    paths = [get(cache, number) for number in range(3)]
    for age, path in enumerate(reversed(paths)):
        os.utime(path, (age, age))  # 2 is the oldest now
    with open(paths[2], "rb") as used:
        get(cache, 3)
        assert there(tmp_path) == ["0.npy", "1.npy", "3.npy"]
        assert used.read() == content(2)
    os.utime(paths[0], (0, 0))
    get(cache, 0)
    get(cache, 4)
    assert there(tmp_path) == ["0.npy", "3.npy", "4.npy"]


def test_a_shard_that_is_larger_than_the_limit_is_the_only_one(tmp_path):
    cache = ShardCache(str(tmp_path), SIZE)
    get(cache, 1)
    assert read(get(cache, 2, 5 * SIZE)) == content(2, 5 * SIZE)
    assert there(tmp_path) == ["2.npy"]


def test_what_fails_leaves_nothing(tmp_path):
    cache = ShardCache(str(tmp_path))

    def fail(_fd):
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        cache.get("s3://b", shard(1), fail)
    assert there(tmp_path) == []
    assert read(get(cache, 1)) == content(1)


def test_no_room_is_a_sentence(tmp_path):
    with pytest.raises(DataError, match=r"no room for the shard 1\.npy in .*HOLDFAST_CACHE_DIR") as wrong:
        ShardCache(str(tmp_path)).get("s3://b", shard(1, 1 << 60), lambda _fd: None)
    assert isinstance(wrong.value.__cause__, OSError)
    assert there(tmp_path) == []


def test_threads_fill_a_shard_once(tmp_path):
    cache = ShardCache(str(tmp_path))
    filled = []
    begin = threading.Barrier(8)

    def fill(fd):
        filled.append(1)
        filling(1)(fd)

    def work():
        begin.wait()
        cache.get("s3://b", shard(1), fill)

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert filled == [1]


SPAWN = multiprocessing.get_context("spawn")


def hang_while_filling(directory, hangs):
    def fill(fd):
        os.pwrite(fd, b"torn", 0)
        hangs.set()
        signal.pause()

    ShardCache(directory).get("s3://b", shard(1), fill)


def test_what_a_killed_process_left_half_done_is_filled_anew(tmp_path):
    hangs = SPAWN.Event()
    process = SPAWN.Process(target=hang_while_filling, args=(str(tmp_path), hangs))
    process.start()
    assert hangs.wait(30)
    found = []
    waiting = threading.Thread(target=lambda: found.append(get(ShardCache(str(tmp_path)), 1)))
    waiting.start()
    process.kill()
    process.join()
    waiting.join(30)
    assert read(found[0]) == content(1)
    assert there(tmp_path) == ["1.npy"]


def test_what_is_being_filled_is_no_room_and_what_was_left_behind_is(tmp_path):
    hangs = SPAWN.Event()
    process = SPAWN.Process(target=hang_while_filling, args=(str(tmp_path), hangs))
    process.start()
    try:
        assert hangs.wait(30)
        cache = ShardCache(str(tmp_path), SIZE)
        get(cache, 2)
        assert there(tmp_path) == ["1.npy.part", "2.npy"]
    finally:
        process.kill()
        process.join()
    get(cache, 3)
    assert there(tmp_path) == ["3.npy"]


def churn(directory, seed, rounds):
    """Use shards in an order of one's own, in a cache that does not hold them all."""
    cache = ShardCache(directory, 5 * SIZE)
    for turn in range(rounds):
        number = int.from_bytes(xxhash.xxh3_64_digest(bytes([seed, turn % 256, turn // 256])), "little") % 12
        try:
            found = read(get(cache, number))
        except FileNotFoundError:
            continue  # another process made room of it: whoever opens it asks again
        if found != content(number):
            os._exit(3)
    os._exit(0)


def test_processes_that_are_killed_never_leave_a_torn_shard(tmp_path):
    killed = [SPAWN.Process(target=churn, args=(str(tmp_path), seed, 10**6)) for seed in range(2)]
    lasting = [SPAWN.Process(target=churn, args=(str(tmp_path), seed, 150)) for seed in (2, 3)]
    for process in killed + lasting:
        process.start()
    lasting[0].join(60)
    for process in killed:
        process.kill()
        process.join()
    lasting[1].join(60)
    assert [process.exitcode for process in lasting] == [0, 0]
    cache = ShardCache(str(tmp_path), 5 * SIZE)
    for number in range(12):
        assert read(get(cache, number)) == content(number)
    assert len(there(tmp_path)) <= 5


def test_what_the_environment_says():
    assert cache_dir({"HOLDFAST_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}) == "/a"
    assert cache_dir({"XDG_CACHE_HOME": "/b", "HOME": "/c"}) == "/b/holdfast"
    assert cache_dir({"HOME": "/c"}) == "/c/.cache/holdfast"
    assert cache_dir({}) == f"/tmp/holdfast-{os.getuid()}"
    assert cache_limit({}) == LIMIT
    assert cache_limit({"HOLDFAST_CACHE_BYTES": "2GiB"}) == 2 << 30
    assert cache_limit({"HOLDFAST_CACHE_BYTES": "1024"}) == 1024
    with pytest.raises(ValueError, match='HOLDFAST_CACHE_BYTES: "2GB" is no size'):
        cache_limit({"HOLDFAST_CACHE_BYTES": "2GB"})
