"""How a worker ended, in one word and in words; and which rules' logs are in its output."""

import errno
import os

import pytest

from holdfast.v1 import job_pb2
from holdfast_agent import kernel_log, log_rules, verdict

OOM, FULL = job_pb2.EXIT_KIND_OUT_OF_MEMORY, job_pb2.EXIT_KIND_DISK_FULL
EXITED, SIGNALLED = job_pb2.EXIT_KIND_EXITED, job_pb2.EXIT_KIND_SIGNALLED
ABANDONED = job_pb2.EXIT_KIND_ABANDONED
GIB = 2**30


def found(code=-1, signal=0, **more):
    return {"code": code, "signal": signal, **more}


def counted(kills, *, before=0, own=True, limit=2 * GIB):
    return {"kills_before": before, "kills": kills, "own": own, "limit": limit, "group": "/g"}


def judge(exit_json, line="", *, kernel="", **more):
    return tuple(verdict.judge(exit_json, line, kernel=lambda: kernel, **more))


@pytest.mark.parametrize(
    ("exit_json", "line", "kind", "message"),
    [
        (found(0), "", EXITED, "exit code 0"),
        (found(1), "ValueError: no", EXITED, "exit code 1"),
        (found(signal=9), "MemoryError", SIGNALLED, "killed by SIGKILL"),
        (found(signal=11), "x", SIGNALLED, "killed by SIGSEGV"),
        (found(signal=62), "", SIGNALLED, "killed by signal 62"),
        (found(1), "MemoryError", OOM, "exit code 1, out of memory"),
        (
            found(1),
            "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 7 TiB",
            OOM,
            "exit code 1, out of memory",
        ),
        (found(1), "torch.OutOfMemoryError: CUDA out of memory. Tried to", OOM, "exit code 1, out of memory"),
        (
            found(signal=6),
            "terminate called after throwing an instance of 'std::bad_alloc'",
            OOM,
            "killed by SIGABRT, out of memory",
        ),
        (found(0), "MemoryError", EXITED, "exit code 0"),
        (found(1), "OSError: [Errno 28] No space left on device", FULL, "exit code 1, disk full"),
        (found(1, disk_full=True), "", FULL, "exit code 1, and the disk that its output goes to was full"),
        (found(0, disk_full=True), "", EXITED, "exit code 0"),
        (found(signal=9, disk_full=True), "", SIGNALLED, "killed by SIGKILL"),
        (
            found(alone_s=90, signal=15),
            "",
            ABANDONED,
            "stopped (killed by SIGTERM): there was no agent for 90 s",
        ),
        (
            found(failed={"errno": 2, "what": "x", "cwd": False}),
            "",
            job_pb2.EXIT_KIND_NEVER_RAN,
            "command not found: x",
        ),
        (
            found(failed={"errno": 2, "what": "./x", "cwd": False, "interpreter": "/bin/bash\r"}),
            "",
            job_pb2.EXIT_KIND_NEVER_RAN,
            "command ./x can't be run: its first line names '/bin/bash\\r', which is not there",
        ),
    ],
)
def test_from_exit_status_and_line(exit_json, line, kind, message):
    assert judge(exit_json, line) == (kind, message)


def test_what_could_not_be_started_for_a_full_disk_says_which():
    full = verdict.not_started(OSError(errno.ENOSPC, "No space left on device"), "/var/lib/agent")
    assert full == (
        FULL,
        "its agent could not start it: the disk of its state directory /var/lib/agent is full",
    )
    other = verdict.not_started(OSError(errno.EMFILE, "Too many open files"), "/var/lib/agent")
    assert other == (EXITED, "its agent could not start it: [Errno 24] Too many open files")


class TestKernel:
    """What the kernel killed for memory is told as such, and nothing else is."""

    def test_counted_in_its_own_group(self):
        message = "killed by the kernel's out-of-memory killer (limit 2 GiB of the cgroup)"
        assert judge(found(signal=9, memory=counted(1))) == (OOM, message)

    def test_in_the_kernels_log(self):
        kind, message = judge(found(signal=9), kernel="Out of memory, says the kernel's log")
        assert (kind, message) == (
            OOM,
            "killed by the kernel's out-of-memory killer (Out of memory, says the kernel's log)",
        )

    @pytest.mark.parametrize(
        "exit_json",
        [
            found(signal=9, memory=counted(0)),
            found(signal=9, memory=counted(3, before=3)),
            found(signal=9, killed=True, memory=counted(1, own=False)),
            found(signal=15, memory=counted(1, own=False)),
            found(1, memory=counted(1, own=False)),
            found(0, memory=counted(1)),
        ],
    )
    def test_not_proven_not_claimed(self, exit_json):
        kind, message = judge(exit_json)
        assert kind in (EXITED, SIGNALLED)
        assert "memory" not in message

    def test_in_a_group_that_it_shares_what_is_known_is_said_and_no_more(self):
        kind, message = judge(found(signal=9, memory=counted(1, own=False)))
        assert kind == OOM
        assert message.startswith(
            "killed by SIGKILL, and the kernel's out-of-memory killer has struck in its"
        )

    def test_a_victim_is_told_of_once(self):
        memory = counted(5, before=3, own=False)
        assert judge(found(signal=9, memory=memory), counted=5) == (SIGNALLED, "killed by SIGKILL")

    def test_a_process_that_the_worker_had_started(self):
        kind, message = judge(found(1, memory=counted(1, limit=0)))
        assert kind == OOM
        assert message == "exit code 1, after the kernel's out-of-memory killer had killed a process of it"


def test_sizes():
    assert [verdict.size(n) for n in (100, 2**10, 3 * 2**19, 2 * GIB)] == [
        "100 bytes",
        "1 KiB",
        "1.5 MiB",
        "2 GiB",
    ]


class TestKernelLog:
    LINES = (
        "6,339,5140900,-;something else about Killed process 42\n",
        "3,340,5140901,-;Out of memory: Killed process 41 (python) total-vm:1kB\n",
        "3,341,5140902,-;Memory cgroup out of memory: Killed process 42 (python) total-vm:1kB\n",
    )

    @pytest.fixture
    def search(self):
        """A device gives one record a read; a pipe of packets does too."""
        readable, self.writable = os.pipe2(os.O_DIRECT | os.O_NONBLOCK)
        log = kernel_log.KernelLog("/no/where")
        log._fd = readable
        self.say(*self.LINES)
        yield lambda pid, since_ns=0: log.killed_for_memory(pid, since_ns)
        log.close()
        os.close(self.writable)

    def say(self, *lines):
        for line in lines:
            os.write(self.writable, line.encode())

    def test_the_worker_by_its_pid(self, search):
        assert search(42) == "Memory cgroup out of memory, says the kernel's log"
        assert search(41) == "Out of memory, says the kernel's log"
        assert search(43) == ""

    def test_what_was_before_it_lived_was_another_of_its_pid(self, search):
        assert search(42, 5_140_902_000 + 3_000_000_000) == ""

    def test_what_comes_later_is_read_on(self, search):
        assert search(43) == ""
        self.say("3,342,5140999,-;Out of memory: Killed process 43 (python) total-vm:1kB\n")
        assert search(43)
        assert search(42)

    def test_where_there_is_none(self):
        assert kernel_log.KernelLog("/no/where").killed_for_memory(42, 0) == ""


class TestLogRules:
    LINES = ("epoch 3", "CUDA error: uncorrectable ECC error", "a" * 900 + "b")

    def test_texts_and_expressions(self):
        patterns = [(0, "uncorrectable ECC"), (2, r"CUDA error: \w+ ECC$"), (3, r"^CUDA .*ECC"), (5, "^ECC")]
        assert log_rules.matching(patterns, self.LINES) == ([0, 3], [])

    def test_one_that_never_ends_is_passed_over_and_named(self, monkeypatch):
        monkeypatch.setattr(log_rules, "WITHIN_S", 1.0)
        patterns = [(0, "^epoch"), (1, "(a+)+$"), (2, "epoch"), (3, "^CUDA")]
        assert log_rules.matching(patterns, self.LINES) == ([0, 2], [1, 3])

    def test_one_that_this_python_does_not_know_matches_nothing(self):
        assert log_rules.matching([(0, "(?"), (1, "3$")], self.LINES) == ([1], [])

    def test_without_output_there_is_nothing_to_ask(self, monkeypatch):
        monkeypatch.setattr(log_rules, "_ask", None)
        assert log_rules.matching([(0, ".*")], ()) == ([], [])
        assert log_rules.matching([], self.LINES) == ([], [])
