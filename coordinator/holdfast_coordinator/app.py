"""The coordinator put together: store, engine, services, one server."""

import asyncio
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from holdfast.v1 import agent_pb2, agent_pb2_grpc, job_pb2, job_pb2_grpc, node_pb2, node_pb2_grpc
from holdfast.wire import server_options
from holdfast_coordinator.clock import Clock
from holdfast_coordinator.core.state import Settings
from holdfast_coordinator.engine import Engine
from holdfast_coordinator.recorder import Recorder
from holdfast_coordinator.rpc.agents import AgentService
from holdfast_coordinator.rpc.jobs import JobService
from holdfast_coordinator.rpc.logs import LogRelay, pass_as_they_are
from holdfast_coordinator.rpc.nodes import NodeService
from holdfast_coordinator.rpc.symbols import symbols
from holdfast_coordinator.rpc.tasks import first_of
from holdfast_coordinator.store.api import StoreError
from holdfast_coordinator.store.sqlite import SqliteStore, hold
from holdfast_coordinator.store.sqlite_points import SqlitePoints

if TYPE_CHECKING:
    from holdfast.exposition import MetricsServer
    from holdfast_coordinator.lease import Lease
    from holdfast_coordinator.store.postgres import PostgresStore
    from holdfast_coordinator.store.url import StoreUrl

STOP_GRACE_S = 1.0
ENDS_WITHIN_S = 2.0
"""Of the engine: it may wait for a database that does not answer."""
ALIVE = "alive"
"""In gRPC health, of a coordinator that may be a standby: it is well."""

SERVICES = tuple(
    file.services_by_name[name].full_name
    for file, name in (
        (job_pb2.DESCRIPTOR, "JobService"),
        (node_pb2.DESCRIPTOR, "NodeService"),
        (agent_pb2.DESCRIPTOR, "AgentService"),
    )
)

log = structlog.get_logger(__name__)


class ListenError(Exception):
    """The address can't be listened on; the message is one sentence with the remedy."""


@dataclass(frozen=True, slots=True)
class CoordinatorConfig:
    """What the operator decides.

    `listen` is host:port (port 0: any free one) or unix:/path; beyond loopback it takes `insecure`. `lost_after_ms` and
    `gone_after_ms` are as in Settings. `metrics` is where Prometheus finds its numbers, host:port or a port of
    loopback; empty: nowhere. With `store`, a database that several coordinators share, this one serves while it has
    the lease of it, which lasts `lease_ms` unless it is renewed; the curves of jobs stay in `state_dir`.
    `forget_after_ms` 0: no lost node is forgotten before a user says so.
    """

    listen: str
    state_dir: Path
    insecure: bool = False
    lost_after_ms: int = 10_000
    gone_after_ms: int = 2_000
    forget_after_ms: int = 86_400_000
    metrics: str = ""
    store: "StoreUrl | None" = None
    lease_ms: int = 6_000


class Coordinator:
    """A coordinator in this process."""

    def __init__(self, config: CoordinatorConfig) -> None:
        self._config = config
        self._engine: Engine | None = None
        self._server: grpc.aio.Server | None = None
        self._loop: asyncio.Task[None] | None = None
        self._health: asyncio.Task[None] | None = None
        self._store: SqliteStore | PostgresStore | None = None
        self._shared: PostgresStore | None = None
        self._lease: Lease | None = None
        self._held: int | None = None
        self._recorder: Recorder | None = None
        self._metrics: MetricsServer | None = None

    async def start(self) -> str:
        """Open the store and listen; lead first, unless others may lead. Return the address that clients use.

        Raises ListenError, AddressError, StoreError.
        """
        config = self._config
        check_address(config.listen, insecure=config.insecure)
        if config.metrics:
            from holdfast import exposition

            exposition.read_address(config.metrics)
        engine = self._engine = await self._open()
        recorder = self._recorder = Recorder(engine, SqlitePoints(config.state_dir))
        self._server, health_servicer = _server(engine, recorder)
        target = self._bind(self._server)
        if self._lease is None:
            self._loop = asyncio.create_task(engine.run())
            await self._leading(engine, self._loop)
            recorder.start()
            await _set_health(health_servicer, health_pb2.HealthCheckResponse.SERVING)
        else:
            engine.stand_by("it is starting")
            self._loop = asyncio.create_task(self._lead(engine, self._lease, recorder))
            await _set_health(health_servicer, health_pb2.HealthCheckResponse.NOT_SERVING)
        await health_servicer.set(ALIVE, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()
        if config.metrics:
            await self._serve_metrics(engine, recorder)
        self._health = asyncio.create_task(_keep_health(engine, health_servicer))
        log.info("listening", address=target, state_dir=str(config.state_dir))
        return target

    async def wait(self) -> None:
        """Wait until the engine fails, or is deposed: it never ends by itself."""
        assert self._loop is not None
        await self._loop

    async def stop(self) -> None:
        """Stop serving. Workers and agents go on; everything acknowledged is in the store."""
        if self._metrics is not None:
            await self._metrics.stop()
        if self._recorder is not None:
            await self._recorder.close()
        await self._end_loop()
        if self._lease is not None:
            await self._lease.close()
        if self._server is not None:
            await self._server.stop(STOP_GRACE_S)
        if self._store is not None:
            await asyncio.to_thread(self._store.close)
        if self._held is not None:
            os.close(self._held)
            self._held = None

    async def _open(self) -> Engine:
        config = self._config
        settings = Settings(
            config.lost_after_ms, config.lost_after_ms // 2, config.gone_after_ms, config.forget_after_ms
        )
        if config.store is None:
            self._store = await asyncio.to_thread(SqliteStore, config.state_dir)
            return Engine(self._store, settings, Clock())
        from holdfast_coordinator.lease import Lease, new_holder
        from holdfast_coordinator.store.postgres import PostgresStore

        self._held = hold(config.state_dir)
        self._store = self._shared = PostgresStore(config.store, new_holder())
        self._lease = Lease(self._shared, config.lease_ms)
        return Engine(self._store, settings, Clock(), self._lease.why_not)

    async def _leading(self, engine: Engine, loop: asyncio.Task[None]) -> None:
        leading = asyncio.create_task(engine.wait_leading())
        await asyncio.wait({leading, loop}, return_when=asyncio.FIRST_COMPLETED)
        if loop.done():
            leading.cancel()
            await loop

    async def _lead(self, engine: Engine, lease: "Lease", recorder: Recorder) -> None:
        """Stand by, then lead. Raises StoreError when it leads no longer."""
        await lease.take(lambda why: engine.stand_by(f"it is a standby: {why}"))
        engine.stand_by("it is taking over")
        recorder.start()

        async def keep() -> None:
            try:
                await lease.keep()
            except StoreError as error:
                engine.stand_by(str(error))
                raise

        await first_of(engine.run(), keep())

    async def _end_loop(self) -> None:
        tasks = {task for task in (self._health, self._loop) if task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=ENDS_WITHIN_S if self._shared is not None else None)
            if late and self._shared is not None:
                self._shared.abandon()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve_metrics(self, engine: Engine, recorder: Recorder) -> None:
        from holdfast.exposition import MetricsServer
        from holdfast_coordinator.metrics import Exporter

        self._metrics = MetricsServer(Exporter(engine, recorder).collect)
        log.info("metrics", address=await self._metrics.start(self._config.metrics))

    def _bind(self, server: grpc.aio.Server) -> str:
        listen = self._config.listen
        try:
            port = server.add_insecure_port(listen)
        except RuntimeError as error:
            raise ListenError(
                f"can't listen on {listen}: is another coordinator running there? Choose another with --listen"
            ) from error
        if listen.startswith("unix:"):
            path = Path(listen.removeprefix("unix:"))
            path.chmod(stat.S_IRUSR | stat.S_IWUSR)
            return listen
        host, _, _ = listen.rpartition(":")
        return f"{host}:{port}"


def check_address(listen: str, *, insecure: bool) -> None:
    """Raise ListenError when an address is malformed, or open to others without saying so."""
    if listen.startswith("unix:"):
        return
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65_535:
        raise ListenError(f'"{listen}" is no address; write host:port, for instance 127.0.0.1:7070')
    if host in ("127.0.0.1", "localhost", "[::1]"):
        return
    if not insecure:
        raise ListenError(
            f"{listen} can be reached from other machines, and whoever reaches it can run commands on every node; "
            "listen on 127.0.0.1, or add --insecure on a network that you trust"
        )
    log.warning("anyone who reaches this address can run commands on every node", address=listen)


def _server(engine: Engine, recorder: Recorder) -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
    server = grpc.aio.server(options=server_options())
    logs = LogRelay(engine)
    jobs, agents = JobService(engine, logs, recorder), AgentService(engine, logs)
    job_pb2_grpc.add_JobServiceServicer_to_server(jobs, server)
    node_pb2_grpc.add_NodeServiceServicer_to_server(NodeService(engine), server)
    agent_pb2_grpc.add_AgentServiceServicer_to_server(agents, server)
    pass_as_they_are(server, agents.PushLogs, jobs.StreamLogs)
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server, pool=symbols())
    return server, health_servicer


async def _keep_health(engine: Engine, servicer: health.aio.HealthServicer) -> None:
    """Have whoever balances load over coordinators pass over one that can't serve."""
    while True:
        await engine.wait_interrupted()
        await _set_health(servicer, health_pb2.HealthCheckResponse.NOT_SERVING)
        await engine.wait_leading()
        await _set_health(servicer, health_pb2.HealthCheckResponse.SERVING)


async def _set_health(servicer: health.aio.HealthServicer, status: Any) -> None:
    for service in ("", *SERVICES):
        await servicer.set(service, status)
