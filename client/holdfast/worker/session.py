"""The link to the local agent: shards that are prepared and reports go out, commits and refusals come back.

One daemon thread blocks in recv and reconnects for ever: agents are restarted while their workers train. Every
connection opens with WorkerHello, the shard and the reports that have not been answered yet, so that nothing is lost
with a connection; an agent that hears a thing twice knows it by its step. A rank has one shard under way at a time,
here as in the agent: a newer one takes the place of an older one that got no answer. The coordinator keeps some more.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator

from google.protobuf.message import DecodeError

from holdfast import framing
from holdfast.v1 import worker_pb2
from holdfast.worker.manifest import Commit, Shard
from holdfast.worker.report import say
from holdfast.worker.stopping import Stop

_FIRST_BACKOFF = 0.02
_LAST_BACKOFF = 1.0
_RECEIVE_BYTES = 65536
_MOST_REPORTS = 64
_MOST_CHARACTERS = 1000


class Link:
    """What one worker has to say to its agent. Used by the training thread; `publish` is called from the link's own."""

    def __init__(
        self,
        path: str,
        job_id: str,
        rank: int,
        attempt: int,
        publish: Callable[[Commit, tuple[int, ...]], None] | None = None,
        stop: Stop | None = None,
    ) -> None:
        """Connects to the unix socket at `path` behind the caller's back.

        `publish` writes the manifest of a commit, and sees to it that the files of the steps go that are no longer
        kept; the OSError it may raise is reported and does no harm: whoever
        resumes from this commit writes it. It may be set later, but before the first `submit`. `stop` hears of
        requests to stop, and says what to answer.
        """
        self._path = path
        self._hello = worker_pb2.WorkerMessage(
            hello=worker_pb2.WorkerHello(job_id=job_id, rank=rank, attempt=attempt, pid=os.getpid())
        )
        self.publish = publish
        self._stop = stop
        self._changed = threading.Condition()
        self._socket: socket.socket | None = None
        self._closed = False
        self._welcome: worker_pb2.WorkerWelcome | None = None
        self._unanswered: tuple[int, Shard] | None = None
        self._reports: dict[tuple[int, int], worker_pb2.WorkerMessage] = {}
        self._committed = -1
        threading.Thread(target=self._run, name="holdfast-link", daemon=True).start()

    def submit(self, step: int, shard: Shard) -> None:
        """Say that the shard of `step` is durable; returns at once."""
        with self._changed:
            self._unanswered = (step, shard)
            if self._socket is not None:
                # The thread sees a broken connection too, and sends again when it has another.
                with contextlib.suppress(OSError):
                    self._send(self._socket, _prepare(step, shard))

    def wait(self, step: int, timeout: float | None = None) -> bool:
        """Wait until the shard of `step` is answered. False when `timeout` seconds have gone by first."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._awaits(step), timeout)

    def committed(self, step: int) -> bool:
        """The checkpoint of `step`, or of a later one, is committed."""
        return step <= self._committed

    def resume(self, timeout: float | None = None) -> Commit | None:
        """The commit to resume from, as the agent knows it. Raises TimeoutError when it does not answer in time."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._welcome is not None, timeout):
                raise TimeoutError(f"the agent at {self._path} has not answered for {timeout:g} s")
            welcome = self._welcome
        return _commit(welcome.resume) if welcome and welcome.HasField("resume") else None

    def save_failed(self, step: int, message: str) -> None:
        """Tell that the shard of `step` could not be written; returns at once."""
        self._report(worker_pb2.Report.KIND_SAVE_FAILED, step, message)

    def corrupt(self, step: int, message: str) -> None:
        """Tell that the commit of `step` failed verification; returns when nobody will resume from it any more."""
        key = self._report(worker_pb2.Report.KIND_CORRUPT, step, message)
        with self._changed:
            self._changed.wait_for(lambda: key not in self._reports)

    def drained(self, step: int, timeout: float) -> bool:
        """Tell that the shard of `step`, which was held on this machine, is in the storage.

        False when that is not known after `timeout` seconds to be durable; it is told again then.
        """
        key = self._report(worker_pb2.Report.KIND_DRAINED, step, "")
        with self._changed:
            return self._changed.wait_for(lambda: self._closed or key not in self._reports, timeout)

    def dropped(self, step: int) -> None:
        """Tell that the files of `step` are gone; returns at once."""
        self._report(worker_pb2.Report.KIND_DROPPED, step, "")

    def close(self) -> None:
        """Hang up."""
        with self._changed:
            self._closed = True
            self._hang_up()
            self._changed.notify_all()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's connection without a word on it."""
        if self._socket is not None:
            self._socket.close()

    def _report(self, kind: worker_pb2.Report.Kind.ValueType, step: int, message: str) -> tuple[int, int]:
        """Send a report now and, until it is noted, on every connection. The oldest go when there are too many."""
        report = worker_pb2.Report(kind=kind, step=step, message=message[:_MOST_CHARACTERS])
        sent = worker_pb2.WorkerMessage(report=report)
        with self._changed:
            while len(self._reports) >= _MOST_REPORTS:
                del self._reports[next(iter(self._reports))]
            self._reports[kind, step] = sent
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._send(self._socket, sent)
        return kind, step

    def _run(self) -> None:
        backoff = _FIRST_BACKOFF
        while not self._closed:
            heard = False
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                    connection.connect(self._path)
                    self._open(connection)
                    for message in _messages(connection):
                        heard = True
                        self._handle(message)
            except (OSError, framing.FramingError, DecodeError):
                pass  # an agent that is away, or not the one we know; it is tried again
            with self._changed:
                self._socket = None
                backoff = _FIRST_BACKOFF if heard else min(2 * backoff, _LAST_BACKOFF)
                self._changed.wait_for(lambda: self._closed, backoff)

    def _open(self, connection: socket.socket) -> None:
        with self._changed:
            self._send(connection, self._hello)
            if self._unanswered is not None:
                self._send(connection, _prepare(*self._unanswered))
            for report in self._reports.values():
                self._send(connection, report)
            self._socket = connection
            if self._closed:
                self._hang_up()

    def _handle(self, message: bytes) -> None:
        reply = worker_pb2.WorkerReply.FromString(message)
        kind = reply.WhichOneof("message")
        if kind == "committed":
            self._on_committed(reply.committed)
        elif kind == "refused":
            self._on_refused(reply.refused)
        elif kind == "noted":
            with self._changed:
                self._reports.pop((reply.noted.kind, reply.noted.step), None)
                self._changed.notify_all()
        elif kind == "stop":
            self._on_stop(reply.stop)
        elif kind == "welcome":
            with self._changed:
                self._welcome = self._welcome or reply.welcome
                self._changed.notify_all()

    def _on_committed(self, committed: worker_pb2.Committed) -> None:
        if committed.HasField("publish") and self.publish is not None:
            try:
                self.publish(_commit(committed.publish), tuple(committed.drop))
            except Exception as error:  # noqa: BLE001  whoever waits for an answer waits for this thread
                say(f"the manifest of step {committed.step} could not be written: {error}")
        with self._changed:
            self._committed = max(self._committed, committed.step)
            if self._unanswered is not None and self._unanswered[0] <= committed.step:
                self._unanswered = None
            self._changed.notify_all()

    def _on_refused(self, refused: worker_pb2.Refused) -> None:
        with self._changed:
            expected = self._awaits(refused.step)
            if expected:
                self._unanswered = None
            self._changed.notify_all()
        if expected:
            say(f"the checkpoint of step {refused.step} was refused: {refused.reason}")

    def _on_stop(self, notice: worker_pb2.StopNotice) -> None:
        if self._stop is None:
            return
        at_step = notice.at_step if notice.HasField("at_step") else None
        answer = self._stop.hear(notice.reason, notice.within_ms / 1000, at_step)
        if answer is not None:
            said = worker_pb2.StopAnswer(step=answer.step, leaves=answer.leaves)
            with self._changed:
                if self._socket is not None:
                    with contextlib.suppress(OSError):  # it is asked again on the next connection
                        self._send(self._socket, worker_pb2.WorkerMessage(stop_answer=said))

    def _awaits(self, step: int) -> bool:
        return self._unanswered is not None and self._unanswered[0] == step

    def _send(self, connection: socket.socket, message: worker_pb2.WorkerMessage) -> None:
        connection.sendall(framing.encode(message.SerializeToString()))

    def _hang_up(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread, which closes it


def _messages(connection: socket.socket) -> Iterator[bytes]:
    decoder = framing.Decoder()
    while data := connection.recv(_RECEIVE_BYTES):
        yield from decoder.feed(data)


def _prepare(step: int, shard: Shard) -> worker_pb2.WorkerMessage:
    return worker_pb2.WorkerMessage(
        prepare=worker_pb2.Prepare(step=step, shard=worker_pb2.Shard(**shard._asdict()))
    )


def _commit(record: worker_pb2.CommitRecord) -> Commit:
    return Commit(
        job_id=record.job_id,
        step=record.step,
        attempt=record.attempt,
        rank=record.rank if record.HasField("rank") else None,
        world_size=record.world_size,
        committed_at_ms=record.committed_at_ms,
        shards=tuple(
            Shard(
                shard.rank,
                shard.file,
                shard.size_bytes,
                shard.digest,
                shard.cursor,
                dict(shard.metrics),
                local_only=shard.local_only,
            )
            for shard in record.shards
        ),
    )
