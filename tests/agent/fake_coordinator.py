"""A coordinator that does what a test says, on a real gRPC server: it greets agents, and remembers what they say."""

import asyncio
from collections import defaultdict

import grpc

from holdfast.v1 import agent_pb2, agent_pb2_grpc, job_pb2
from holdfast.wire import server_options

PATIENCE_S = 60.0
BEAT_MS = 50


async def soon(awaitable):
    """What it gives, or a failure when it takes too long."""
    async with asyncio.timeout(PATIENCE_S):
        return await awaitable


class FakeCoordinator(agent_pb2_grpc.AgentServiceServicer):
    def __init__(self, target, epoch=1):
        self.target = target
        self.epoch = epoch
        self.greets = True
        self._sessions = asyncio.Queue()
        self._pushes = defaultdict(asyncio.Queue)
        self._server = None

    async def start(self):
        self._server = grpc.aio.server(options=server_options())
        agent_pb2_grpc.add_AgentServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(self.target)
        await self._server.start()

    async def stop(self):
        """Be gone at once, as after SIGKILL."""
        await self._server.stop(0)

    async def session(self):
        """The next session that an agent opens."""
        return await soon(self._sessions.get())

    async def push(self, request_id):
        """The PushLogs stream that answers an OpenLog."""
        return await soon(self._pushes[request_id].get())

    async def Connect(self, requests, context):
        first = await anext(aiter(requests))
        session = FakeSession(first.hello, self.epoch)
        if self.greets:
            session.greet()
        reader = asyncio.create_task(session.read(requests))
        self._sessions.put_nowait(session)
        try:
            while (message := await session.outbox.get()) is not None:
                yield message
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            session.over.set()

    async def PushLogs(self, requests, context):
        first = await anext(aiter(requests))
        push = FakePush()
        self._pushes[first.request_id].put_nowait(push)
        reader = asyncio.create_task(push.read(requests))
        unwanted = asyncio.create_task(push.unwanted.wait())
        await asyncio.wait({reader, unwanted}, return_when=asyncio.FIRST_COMPLETED)
        for task in (reader, unwanted):
            task.cancel()
        await asyncio.gather(reader, unwanted, return_exceptions=True)
        return agent_pb2.PushLogsResponse()


class FakeSession:
    def __init__(self, hello, epoch):
        self.hello = hello
        self.epoch = epoch
        self.outbox = asyncio.Queue()
        self.messages = []
        self.over = asyncio.Event()
        self._unread = []
        self._came = asyncio.Condition()
        self._fences = 0

    @property
    def inventory(self):
        """(rank, attempt) -> record"""
        return {(r.key.rank, r.key.attempt): r for r in self.hello.inventory}

    def greet(self):
        welcome = agent_pb2.Welcome()
        welcome.pace.heartbeat_interval.FromMilliseconds(BEAT_MS)
        self.say(welcome=welcome)

    def say(self, *, epoch=None, **message):
        self.outbox.put_nowait(agent_pb2.CoordinatorMessage(epoch=epoch or self.epoch, **message))

    def end(self):
        self.outbox.put_nowait(None)

    async def heard(self, kind, where=lambda _: True):
        """The next message of a kind; each is given once."""

        def take():
            for index, (is_kind, message) in enumerate(self._unread):
                if is_kind == kind and where(message):
                    del self._unread[index]
                    return message
            return None

        async with self._came:
            return await soon(self._came.wait_for(take))

    async def beat(self):
        """The next heartbeat, whatever was heard before."""
        self._unread = [(kind, message) for kind, message in self._unread if kind != "heartbeat"]
        return await self.heard("heartbeat")

    async def settled(self):
        """Wait until all that was said so far has had its effect: a worker that is started after it has ended."""
        self._fences += 1
        fence = f"fence{self._fences}"
        self.say(start_workers=start("true", job_id=fence))
        await self.heard("worker_started", lambda m: m.key.job_id == fence)
        ended = await self.heard("worker_exited", lambda m: m.key.job_id == fence)
        self.say(release_workers=release(ended.key))

    def kinds(self):
        """All that was heard, heartbeats aside, in order."""
        return [m.WhichOneof("message") for m in self.messages if not m.HasField("heartbeat")]

    def count(self, kind, job_id="job1"):
        """How many messages of a kind were about a job."""
        of_kind = [getattr(m, kind) for m in self.messages if m.HasField(kind)]
        return sum(m.key.job_id == job_id for m in of_kind)

    async def read(self, requests):
        async for message in requests:
            assert message.epoch == self.epoch
            self.messages.append(message)
            kind = message.WhichOneof("message")
            async with self._came:
                self._unread.append((kind, getattr(message, kind)))
                self._came.notify_all()


class FakePush:
    def __init__(self):
        self.chunks = asyncio.Queue()
        self.unwanted = asyncio.Event()

    async def read(self, requests):
        async for message in requests:
            self.chunks.put_nowait(message.chunk)
        self.chunks.put_nowait(None)

    async def chunk(self):
        return await soon(self.chunks.get())

    async def all(self):
        """Everything from here on until the agent ends it: (attempt, stream) -> bytes."""
        found, offsets = defaultdict(bytes), {}
        while (chunk := await self.chunk()) is not None:
            place = chunk.cursor.attempt, chunk.cursor.stream
            assert chunk.cursor.offset == offsets.get(place, chunk.cursor.offset)
            offsets[place] = chunk.cursor.offset + len(chunk.data)
            found[place] += chunk.data
        return dict(found)


def key(rank=0, attempt=1, job_id="job1"):
    return agent_pb2.WorkerKey(job_id=job_id, rank=rank, attempt=attempt)


def start(*command, ranks=(0,), attempt=1, job_id="job1", world_size=0, grace_ms=10_000, resume=(), **more):
    """StartWorkers of a gang."""
    master_port = more.pop("master_port", 0)
    restart_grace_ms = more.pop("restart_grace_ms", None)
    spec = job_pb2.JobSpec(name="test", command=command, world_size=world_size or len(ranks), **more)
    spec.restart.scope = job_pb2.RESTART_SCOPE_GANG
    if restart_grace_ms is not None:
        spec.restart.grace.FromMilliseconds(restart_grace_ms)
    spec.stop_grace.FromMilliseconds(grace_ms)
    return agent_pb2.StartWorkers(
        job_id=job_id,
        spec=spec,
        master_addr="127.0.0.1",
        master_port=master_port,
        resume=resume,
        assignments=[
            agent_pb2.Assignment(
                rank=rank,
                attempt=attempt,
                local_rank=index,
                local_world_size=len(ranks),
                restart_count=attempt - 1,
            )
            for index, rank in enumerate(ranks)
        ],
    )


def stop(*keys, force=False, restart=False):
    return agent_pb2.StopWorkers(keys=keys, force=force, reason="the test says so", restart=restart)


def release(*keys):
    return agent_pb2.ReleaseWorkers(keys=keys)
