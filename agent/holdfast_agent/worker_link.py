"""The workers' unix socket: prepared shards and reports come in, the answers to them go out. See worker.proto."""

import asyncio
import hashlib
import os
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import structlog
from google.protobuf.message import DecodeError

from holdfast import framing
from holdfast.v1 import worker_pb2
from holdfast_agent.core import Key
from holdfast_agent.workdir import StateDirError

READ_BYTES = 64 * 1024
UNREAD_BYTES = 4 * framing.MAX_FRAME_BYTES
"""A worker that leaves more than this unread is hung up on; it connects again."""
LONGEST_PATH = 100
"""Of a unix socket: the kernel takes 107 bytes."""

log = structlog.get_logger(__name__)


class WorkerLink:
    """Serves the workers of one agent.

    `welcome` says what a worker resumes from, or None when it is not one of ours; `prepared` hears of shards,
    `reported` of what became of checkpoints otherwise, `connected` of workers that may be told something from here on,
    `answered` of the steps at which they can stop.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        welcome: Callable[[Key], worker_pb2.WorkerWelcome | None],
        prepared: Callable[[Key, worker_pb2.Prepare], None],
        reported: Callable[[Key, worker_pb2.Report], None],
        connected: Callable[[Key], None],
        answered: Callable[[Key, worker_pb2.StopAnswer], None],
    ) -> None:
        self.path = socket_path(state_dir)
        self._welcome = welcome
        self._prepared = prepared
        self._reported = reported
        self._connected = connected
        self._answered = answered
        self._server: asyncio.Server | None = None
        self._writers: dict[Key, asyncio.StreamWriter] = {}
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        """Every connection, and who serves it."""

    async def start(self) -> None:
        """Listen. Raises StateDirError."""
        self.path.unlink(
            missing_ok=True
        )  # left by an agent that was killed; the state directory's lock is ours
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        self.path.chmod(stat.S_IRUSR | stat.S_IWUSR)

    async def stop(self) -> None:
        """Hang up on everybody; workers wait for the next agent."""
        if self._server is not None:
            self._server.close()
            self.path.unlink(missing_ok=True)
            for writer in self._open.values():
                writer.transport.abort()  # what a worker has not read yet the next agent says again
            await asyncio.gather(*self._open, return_exceptions=True)

    def answer(self, key: Key, reply: worker_pb2.WorkerReply) -> None:
        """Tell a worker; one that is not connected asks again when it is."""
        writer = self._writers.get(key)
        if writer is None:
            return
        writer.write(framing.encode(reply.SerializeToString()))
        if writer.transport.get_write_buffer_size() > UNREAD_BYTES:
            writer.transport.abort()

    def is_connected(self, key: Key) -> bool:
        """Tell whether a worker is there to be told something."""
        return key in self._writers

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = asyncio.current_task()
        assert serving is not None
        self._open[serving] = writer
        serving.add_done_callback(self._open.pop)
        await self._hear(reader, writer)

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        key: Key | None = None
        decoder = framing.Decoder()
        try:
            if not _same_user(writer):
                return
            while data := await reader.read(READ_BYTES):
                for frame in decoder.feed(data):
                    message = worker_pb2.WorkerMessage.FromString(frame)
                    if message.HasField("hello"):
                        key = self._greet(message.hello, writer)
                    if key is None:
                        return
                    if message.HasField("prepare"):
                        self._prepared(key, message.prepare)
                    if message.HasField("report"):
                        self._reported(key, message.report)
                    if message.HasField("stop_answer"):
                        self._answered(key, message.stop_answer)
        except (framing.FramingError, DecodeError) as error:
            log.warning("a worker does not speak the protocol", worker=key, error=str(error))
        except ConnectionError:
            pass  # it died; its shim tells
        finally:
            if key is not None and self._writers.get(key) is writer:
                del self._writers[key]
            writer.close()

    def _greet(self, hello: worker_pb2.WorkerHello, writer: asyncio.StreamWriter) -> Key | None:
        key = Key(hello.job_id, hello.rank, hello.attempt)
        welcome = self._welcome(key)
        if welcome is None:
            log.warning("a process says that it is a worker which is not here", worker=key)
            return None
        self._writers[key] = writer
        self.answer(key, worker_pb2.WorkerReply(welcome=welcome))
        self._connected(key)
        return key


def socket_path(state_dir: Path) -> Path:
    """Where the socket is: in the state directory, or where its path is too long for a socket, in one of ours in /tmp.

    The same for every agent on this state directory, because workers outlive agents. Raises StateDirError.
    """
    path = state_dir / "worker.sock"
    if len(os.fsencode(path)) <= LONGEST_PATH:
        return path
    ours = Path(f"/tmp/holdfast-{os.getuid()}")  # noqa: S108  its owner and mode are checked below
    ours.mkdir(mode=0o700, exist_ok=True)
    there = ours.lstat()
    if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.getuid() or there.st_mode & 0o077:
        raise StateDirError(
            f"{ours} is not a directory of ours alone; remove it, or use a shorter --state-dir"
        )
    return ours / f"{hashlib.sha256(os.fsencode(state_dir)).hexdigest()[:16]}.sock"


def _same_user(writer: asyncio.StreamWriter) -> bool:
    connection = writer.get_extra_info("socket")
    _, uid, _ = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return uid in (os.getuid(), 0)
