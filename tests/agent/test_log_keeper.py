"""The logs of a job on a node stay below its limit: what is over goes first, and live workers keep theirs."""

import json

from hypothesis import given
from hypothesis import strategies as st

from holdfast_agent.log_file import STDERR, STDOUT, Log, measure
from holdfast_agent.log_keeper import Keeper, Kept, limit_of, plan

KEPT = st.builds(
    Kept,
    attempt=st.integers(1, 4),
    rank=st.integers(0, 2),
    name=st.sampled_from([STDOUT, STDERR]),
    size=st.integers(0, 100_000),
    live=st.booleans(),
)


@given(st.lists(KEPT, max_size=12, unique_by=lambda k: k[:3]), st.integers(0, 300_000))
def test_no_more_is_freed_than_must_be_and_never_of_the_live(logs, limit):
    freed = plan(logs, limit)
    total = sum(each.size for each in logs)
    over = sum(each.size for each in logs if not each.live)
    gone = sum(count for _, count in freed)
    assert not any(each.live for each, _ in freed)
    assert min(over, total - limit) <= gone <= max(0, min(over, total - limit + 4095))
    attempts = [each.attempt for each, _ in freed]
    assert attempts == sorted(attempts)
    for each, count in freed[:-1]:
        assert count == each.size


class Job:
    def __init__(self, path, limit):
        self.path, self.limit = path, limit
        self.keeper = Keeper(lambda _: path, lambda: ())

    def attempt(self, name, size, *, over=True):
        path = self.path / name
        path.mkdir()
        (path / "start.json").write_text(json.dumps({"job_log_bytes": self.limit}))
        for each in (STDOUT, STDERR):
            with Log(str(path), each, make=True) as log:
                log.append(b"x" * size if each is STDOUT else b"")
        if over:
            (path / "exit.json").touch()

    def held(self):
        return {path.name: measure(str(path), STDOUT).size for path in sorted(self.path.iterdir())}


def test_old_attempts_make_room(tmp_path):
    job = Job(tmp_path, 100_000)
    job.attempt("0-1", 40_960)
    job.attempt("1-1", 40_960)
    job.attempt("0-2", 40_960)
    job.keeper.trim("job")
    assert job.held() == {"0-1": 40_960 - 24_576, "0-2": 40_960, "1-1": 40_960}
    job.attempt("0-3", 81_920, over=False)
    job.keeper.trim("job")
    assert job.held() == {"0-1": 0, "1-1": 0, "0-2": 16_384, "0-3": 81_920}
    job.keeper.trim("job")
    assert sum(job.held().values()) <= 100_000


def test_a_job_that_was_deleted(tmp_path):
    Keeper(lambda job: tmp_path / job, lambda: ()).trim("gone")


def test_where_nobody_says_how_much(tmp_path):
    assert limit_of(tmp_path) == 2**30
    (tmp_path / "start.json").write_text("[]")
    assert limit_of(tmp_path) == 2**30
