"""An agent and a coordinator in one thread, as far as a worker can tell: the real protocol on a real unix socket.

It commits by the rules (all ranks of a gang together, or each rank by itself, and steps only grow), and does on
command what agents do when they die: drop connections, keep silent, say things twice.
"""

import contextlib
import selectors
import socket
import threading

from holdfast import framing
from holdfast.v1 import worker_pb2

PATIENCE = 60.0


class FakeAgent:
    def __init__(self, path, *, world_size=1, scope="gang", job_id="job-1"):
        self.path = str(path)
        self.world_size = world_size
        self.scope = scope
        self.job_id = job_id
        self.hellos = []  # (rank, attempt)
        self.prepares = []  # (rank, attempt, step), every time it is heard
        self.commits = {}  # (rank or None) -> the newest CommitRecord
        self.reports = []  # (rank, attempt, kind, step), every time it is heard
        self.silent = False  # hears prepares, answers nothing
        self.refuse = None  # a reason to refuse every prepare with
        self.withhold_publish = False  # acks, but nobody is told to publish
        self._prepared = {}  # (rank or None, attempt, step) -> {rank: Shard}
        self._answers = []  # (rank, attempt, reply) that were held back
        self._changed = threading.Condition()
        self._workers = {}  # connection -> (rank, attempt)
        self._selector = selectors.DefaultSelector()
        self._wake_out, self._wake_in = socket.socketpair()
        self._selector.register(self._wake_out, selectors.EVENT_READ)
        self._listener = None
        self._stopping = False
        self.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    # What a test tells it.

    def listen(self):
        """Be there."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(16)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._wake_in.send(b"x")

    def drop(self):
        """Hang up on every worker; they may come back at once."""
        with self._changed:
            for connection in list(self._workers):
                connection.shutdown(socket.SHUT_RDWR)

    def speak(self):
        """End the silence: answer what was prepared in it."""
        with self._changed:
            self.silent = False
            for rank, attempt, reply in self._answers:
                self._send(rank, attempt, reply)
            self._answers.clear()

    def forget(self):
        """Begin anew, as if nothing had ever been prepared."""
        with self._changed:
            for memory in (
                self.hellos,
                self.prepares,
                self.reports,
                self.commits,
                self._prepared,
                self._answers,
            ):
                memory.clear()

    def stop_listening(self):
        """Be gone for new connections."""
        with self._changed:
            self._selector.unregister(self._listener)
            self._listener.close()

    def say_raw(self, data):
        """Send bytes that are no message, to every worker."""
        with self._changed:
            for connection in self._workers:
                connection.sendall(data)

    def say(self, rank, attempt, reply):
        """Send a reply of the test's own making."""
        with self._changed:
            self._send(rank, attempt, reply)

    def wait_for(self, predicate):
        """Wait until something is so; fails when it never is."""
        with self._changed:
            assert self._changed.wait_for(predicate, PATIENCE), "the worker never did it"

    def stop(self):
        self._stopping = True
        self._wake_in.send(b"x")
        self._thread.join(PATIENCE)
        for connection in list(self._workers):
            connection.close()
        for end in (self._listener, self._wake_out, self._wake_in, self._selector):
            end.close()

    # The thread.

    def _serve(self):
        decoders = {}
        while not self._stopping:
            for key, _ in self._selector.select():
                if key.fileobj is self._wake_out:
                    self._wake_out.recv(64)
                elif key.fileobj is self._listener:
                    connection, _ = self._listener.accept()
                    decoders[connection] = framing.Decoder()
                    with self._changed:
                        self._workers[connection] = None
                    self._selector.register(connection, selectors.EVENT_READ)
                else:
                    self._read(key.fileobj, decoders)

    def _read(self, connection, decoders):
        data = b""
        with contextlib.suppress(ConnectionError):
            data = connection.recv(65536)
        with self._changed:
            if data:
                for message in decoders[connection].feed(data):
                    self._handle(connection, worker_pb2.WorkerMessage.FromString(message))
            else:
                self._selector.unregister(connection)
                connection.close()
                del self._workers[connection], decoders[connection]
            self._changed.notify_all()

    def _handle(self, connection, message):
        if message.HasField("hello"):
            hello = message.hello
            self._workers[connection] = (hello.rank, hello.attempt)
            self.hellos.append((hello.rank, hello.attempt))
            welcome = worker_pb2.WorkerWelcome(resume=self.commits.get(self._scope_of(hello.rank)))
            self._send(hello.rank, hello.attempt, worker_pb2.WorkerReply(welcome=welcome))
        elif message.HasField("prepare"):
            rank, attempt = self._workers[connection]
            self._prepare(rank, attempt, message.prepare)
        elif message.HasField("report"):
            rank, attempt = self._workers[connection]
            self._report(rank, attempt, message.report)

    def _report(self, rank, attempt, report):
        self.reports.append((rank, attempt, worker_pb2.Report.Kind.Name(report.kind), report.step))
        if report.kind == worker_pb2.Report.KIND_CORRUPT:
            self.commits.pop(self._scope_of(rank), None)
        noted = worker_pb2.Noted(kind=report.kind, step=report.step)
        self._answer(rank, attempt, worker_pb2.WorkerReply(noted=noted))

    def _scope_of(self, rank):
        return rank if self.scope == "rank" else None

    def _prepare(self, rank, attempt, prepare):
        self.prepares.append((rank, attempt, prepare.step))
        if self.refuse:
            refused = worker_pb2.Refused(step=prepare.step, reason=self.refuse)
            self._answer(rank, attempt, worker_pb2.WorkerReply(refused=refused))
            return
        scope = self._scope_of(rank)
        newest = self.commits.get(scope)
        if newest and (newest.attempt, newest.step) == (attempt, prepare.step):
            self._ack(newest, [rank])
            return
        shards = self._prepared.setdefault((scope, attempt, prepare.step), {})
        shards[rank] = worker_pb2.Shard()
        shards[rank].CopyFrom(prepare.shard)
        if len(shards) == (self.world_size if scope is None else 1):
            record = worker_pb2.CommitRecord(
                job_id=self.job_id,
                step=prepare.step,
                attempt=attempt,
                rank=scope,
                world_size=self.world_size,
                committed_at_ms=1_700_000_000_000 + prepare.step,
                shards=[shards[key] for key in sorted(shards)],
            )
            self.commits[scope] = record
            self._ack(record, sorted(shards))

    def _ack(self, record, ranks):
        for rank in ranks:
            committed = worker_pb2.Committed(step=record.step)
            if rank == record.shards[0].rank and not self.withhold_publish:
                committed.publish.CopyFrom(record)
            self._answer(rank, record.attempt, worker_pb2.WorkerReply(committed=committed))

    def _answer(self, rank, attempt, reply):
        if self.silent:
            self._answers.append((rank, attempt, reply))
        else:
            self._send(rank, attempt, reply)

    def _send(self, rank, attempt, reply):
        for connection, worker in self._workers.items():
            if worker == (rank, attempt):
                with contextlib.suppress(OSError):
                    connection.sendall(framing.encode(reply.SerializeToString()))
