"""One simulation: a cluster, its jobs, its faults; first safety, then liveness."""

import traceback
from dataclasses import dataclass, field

from holdfast_coordinator.core.events import (
    JobDeleteRequested,
    JobRestartRequested,
    JobStopRequested,
    JobSubmitted,
    NodeDrainRequested,
    NodeUncordonRequested,
)
from holdfast_coordinator.core.jobspec import (
    Action,
    CodeRange,
    HangAction,
    HangPolicy,
    JobSpec,
    Mode,
    RestartPolicy,
    RetentionPolicy,
    Rule,
    Scope,
)
from holdfast_coordinator.core.model import TERMINAL, JobState, NodeState
from holdfast_coordinator.store.memory import MemoryStore
from tests.sim.agent import Agent
from tests.sim.checks import Checks
from tests.sim.coordinator import SETTINGS, Bugs, Coordinator, Request
from tests.sim.faults import Faults
from tests.sim.link import Network
from tests.sim.worker import trained
from tests.sim.world import T0, Violation, World

FAULTS_MS = 40_000
HEALED_WITHIN_MS = 240_000
QUIET_MS = 10_000


class Client:
    """Asks for one thing until it is acknowledged."""

    def __init__(self, world: World, coordinator: Coordinator) -> None:
        self._world = world
        self._coordinator = coordinator
        self.acknowledged: dict[str, bool] = {}

    def ask(self, what: str, event) -> None:
        """Ask now, and again until there is an answer."""
        self.acknowledged[what] = False
        self._try(what, event)

    def _try(self, what: str, event) -> None:
        if self.acknowledged[what]:
            return

        def answer(_refusal) -> None:
            self.acknowledged[what] = True

        self._coordinator.request(Request(event, answer, lambda: None))
        self._world.at(self._world.between(200, 1_500), self._try, what, event)


@dataclass
class Result:
    """How a seed went."""

    seed: int
    failure: str = ""
    happened: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    trace: list[str] = field(default_factory=list)


@dataclass
class Simulation:
    """Everything of one seed."""

    seed: int
    trace: bool = False
    bugs: Bugs = field(default_factory=Bugs)
    only: str = ""
    """Kinds of faults by name, comma-separated; empty: the seed draws them."""

    def run(self) -> Result:
        self.world = World(self.seed, trace=self.trace)
        self._build()
        failure = ""
        try:
            self._faulty()
            self._healed()
            if self.world.chance(0.3):
                self._stopped_in_peace()
            self._forgotten()
        except Violation as violation:
            failure = str(violation)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            failure = f"{type(error).__name__} in {where.name}: {error}"
        world = self.world
        return Result(self.seed, failure, world.happened, self.checks.counts, world.trace or [])

    def _build(self) -> None:
        world = self.world
        self.store = MemoryStore()
        self.checks = Checks(world, SETTINGS.lost_after_ms, SETTINGS.gone_after_ms)
        self.network = Network(world)
        self.coordinator = Coordinator(world, self.store, self.checks, self.bugs)
        nodes = world.between(1, 3)
        ranks = world.between(1, 4)
        # Room for all even when a node is away, or just enough.
        slots = -(-ranks // max(1, nodes - 1)) if world.chance(0.6) else -(-ranks // nodes)
        pods = {"a"} if self.seed % 3 == 0 else set()
        self.agents = {
            name: Agent(
                name,
                world,
                self.network,
                self.coordinator,
                self.checks.checkpoints,
                self.checks,
                slots,
                in_pod=name in pods,
            )
            for name in ("a", "b", "c")[:nodes]
        }
        self.checks.agents = self.agents
        self.client = Client(world, self.coordinator)
        self.jobs: dict[str, JobSpec] = {"j1": self._spec(ranks)}
        if world.chance(0.3):
            self.jobs["j2"] = self._spec(world.between(1, ranks))
        self.faults = Faults(world, self.network, self.coordinator, self.agents, self.checks, only=self.only)

    def _spec(self, ranks: int) -> JobSpec:
        world = self.world
        policy = RestartPolicy(
            scope=Scope.GANG if world.chance(0.6) else Scope.RANK,
            backoff_ms=world.rng.choice([0, 50, 500]),
            backoff_cap_ms=2_000,
            budget=1_000,
            no_progress_limit=0,  # whatever its exits look like, they are faults from outside
        )
        env = {
            "STEPS": str(world.between(10, 60)),
            "EVERY": str(world.between(1, 9)),
            "PACE": str(world.rng.choice([50, 200, 600])),
            "MANNERS": "any",
        }
        retention = None
        if world.chance(0.5):
            retention = RetentionPolicy(
                world.between(1, 3), world.rng.choice([0, 5]), world.between(0, 1), "loss", Mode.MIN
            )
        grace = world.rng.choice([5, 300, 10_000])
        # What a fault may hold up without a hang of its own is given time.
        hang = HangPolicy(
            world.rng.choice([HangAction.RESTART, HangAction.RESTART, HangAction.NOTIFY]),
            {"setup": 20_000, "step": world.rng.choice([3_000, 8_000]), "checkpoint": 20_000},
        )
        rules = (Rule(Action.RESTART_GANG, exit_codes=(CodeRange(1, 1),)),) if world.chance(0.6) else ()
        return JobSpec(
            "train",
            ("train",),
            ranks,
            env,
            restart=policy,
            stop_grace_ms=grace,
            retention=retention,
            hang=hang,
            rules=rules,
        )

    def _faulty(self) -> None:
        """Things break; promises hold all the same."""
        world = self.world
        self.coordinator.start()
        for agent in self.agents.values():
            world.at(world.between(0, 500), agent.start)
        for job_id, spec in self.jobs.items():
            event = JobSubmitted(world.now, job_id, f"request-{job_id}", spec)
            world.at(world.between(0, 3_000), self.client.ask, f"submit {job_id}", event)
        if "j2" in self.jobs and world.chance(0.7):
            stop = JobStopRequested(world.now, "j2", world.chance(0.5))
            world.at(world.between(4_000, 20_000), self.client.ask, "stop j2", stop)
        for job_id in self.jobs:
            if not self.only and world.chance(0.5):
                again = JobRestartRequested(world.now, job_id, f"again-{job_id}", world.chance(0.5))
                world.at(world.between(4_000, 30_000), self.client.ask, f"restart {job_id}", again)
        self.faults.begin()
        world.run(T0 + FAULTS_MS)
        self.faults.end()
        for name in self.agents:
            self.client.ask(f"uncordon {name}", NodeUncordonRequested(world.now, name))

    def _healed(self) -> None:
        """Nothing breaks; everything comes to its end."""
        world = self.world
        for wait in (HEALED_WITHIN_MS, QUIET_MS):
            if not self._run_until(self._settled, wait):
                raise Violation(f"liveness: {self._unsettled()}")
            world.run(world.now + QUIET_MS)
        for job_id, spec in self.jobs.items():
            job = self.coordinator.state.jobs[job_id]
            if job.state is JobState.SUCCEEDED:
                self._check_result(job_id, spec)
            elif job.state is not JobState.STOPPED or "stop j2" not in self.client.acknowledged:
                raise Violation(f"P9: {job_id} is {job.state}: {job.reason}")
        open_ = [stream for stream in self.network.streams if not stream.over]
        if len(open_) > len(self.agents) or self.coordinator.backlog > 10:
            raise Violation(f"{len(open_)} streams are open, {self.coordinator.backlog} events wait")
        world.note("world", "settled")

    def _stopped_in_peace(self) -> None:
        """Nothing breaks, and every program has manners: a drain, a restart and a stop lose no step, of no rank."""
        world, room = self.world, sum(agent.slots for agent in self.agents.values())
        env = {"STEPS": "100000", "EVERY": str(world.between(1, 9)), "PACE": "50", "MANNERS": "leaves"}
        scope = world.rng.choice(list(Scope))
        most = room - max(agent.slots for agent in self.agents.values())
        drains = most > 0 and world.chance(0.5)
        ranks = world.between(1, min(4, most if drains else room))
        job = JobSpec("train", ("train",), ranks, env, restart=RestartPolicy(scope), stop_grace_ms=120_000)
        self.jobs["j3"] = job
        self.client.ask("submit j3", JobSubmitted(world.now, "j3", "request-j3", job))
        self._train_on(1)
        if drains:
            node = self.coordinator.state.workers["j3", 0].node
            self.client.ask("drain", NodeDrainRequested(world.now, node, 120_000))
            self._train_on(2)
            for worker in self.coordinator.state.workers_of(self.coordinator.state.jobs["j3"]):
                if (
                    worker.attempt == 2
                    and self.checks.last_step.get((worker.job_id, worker.rank, 1)) != worker.resume_step
                ):
                    raise Violation(f"P1: rank {worker.rank} of j3 was drained, and does steps again")
            self.client.ask("uncordon", NodeUncordonRequested(world.now, node))
        restarts = "" if self.only else world.rng.choice(["while it runs", "when it was stopped"])
        if restarts == "while it runs":
            self._restarted()
        self._stopped_whole()
        if restarts == "when it was stopped":
            self._restarted()
            self._stopped_whole()
        self.checks.count("stopped in peace")

    def _restarted(self) -> None:
        """Its user restarts j3, whether it runs or was stopped: every rank goes on from the step that it was at."""
        state = self.coordinator.state
        before = {worker.rank: worker.attempt for worker in state.workers_of(state.jobs["j3"])}
        request = f"again-j3-{before[0]}"
        self.client.ask("restart j3", JobRestartRequested(self.world.now, "j3", request))
        self._train_on(*(attempt + 1 for attempt in before.values()))
        state = self.coordinator.state
        for worker in state.workers_of(state.jobs["j3"]):
            last = self.checks.last_step.get((worker.job_id, worker.rank, before[worker.rank]))
            if worker.attempt != before[worker.rank] + 1 or worker.resume_step != last:
                raise Violation(f"P1: rank {worker.rank} of j3 was at {last}, and goes on as {worker}")
        self.checks.count("restarted in peace")

    def _stopped_whole(self) -> None:
        self.client.ask("stop j3", JobStopRequested(self.world.now, "j3"))
        if not self._run_until(self._settled, HEALED_WITHIN_MS):
            raise Violation(f"liveness: {self._unsettled()}")
        state = self.coordinator.state
        for gang in state.gangs_of(state.jobs["j3"]):
            for worker in state.members(gang):
                last = self.checks.last_step.get((worker.job_id, worker.rank, worker.attempt))
                if gang.commit is None or last != gang.commit.step or last != worker.progress.step:
                    raise Violation(
                        f"P1: rank {worker.rank} of j3 was stopped at {last}, committed is {gang.commit}"
                    )

    def _train_on(self, *attempts: int) -> None:
        """Let every rank of j3 do a few steps, the first ones in these attempts."""
        state = lambda: self.coordinator.state  # noqa: E731  a new leader has another

        def far_enough() -> bool:
            if "j3" not in state().jobs:
                return False
            workers = state().workers_of(state().jobs["j3"])
            processes = {key: p for agent in self.agents.values() for key, p in agent.processes.items()}
            mine = [processes.get((w.job_id, w.rank, w.attempt)) for w in workers]
            begun = all(w.attempt >= attempt for w, attempt in zip(workers, attempts, strict=False))
            return begun and all(p is not None and p.step > p._first + 3 for p in mine)

        if not self._run_until(far_enough, HEALED_WITHIN_MS):
            raise Violation(f"liveness: j3 does not get on: {self._unsettled()}")

    def _check_result(self, job_id: str, spec: JobSpec) -> None:
        steps = int(spec.env["STEPS"])
        for gang in self.coordinator.state.gangs_of(self.coordinator.state.jobs[job_id]):
            place, commit = (job_id, gang.index), gang.commit
            if commit is None or commit.step != steps:
                raise Violation(f"{place} succeeded with the commit {commit}, not that of step {steps}")
            for shard in commit.shards:
                value = self.checks.checkpoints.files[place, steps, shard.file]
                if value != trained(shard.rank, steps):
                    raise Violation(
                        f"rank {shard.rank} of {job_id} ended with other numbers than undisturbed"
                    )
            for shard in commit.shards:
                at = (steps, commit.attempt)
                held = [a for a in self.agents.values() if at in a.disk.spool.get((job_id, shard.rank), ())]
                if shard.local_only and not held:
                    raise Violation(f"P1: rank {shard.rank} of {place} is drained, and no commit knows of it")
            kept = [
                c for c in self.checks.commits[place].values() if not self.checks.checkpoints.whole(place, c)
            ]
            if kept:
                raise Violation(f"P1: files of {kept} of {place}, which is kept, are gone")
            if (place, steps) not in self.checks.checkpoints.manifests:
                raise Violation(
                    f"P1: the manifest of the committed step {steps} of {place} was never published"
                )

    def _forgotten(self) -> None:
        """The jobs are deleted; nothing of them is left but their checkpoints."""
        for job_id in self.jobs:
            self.client.ask(f"delete {job_id}", JobDeleteRequested(self.world.now, job_id))

        def gone() -> bool:
            disks = [agent.disk.attempts for agent in self.agents.values()]
            return not self.coordinator.state.jobs and not any(disks)

        if not self._run_until(gone, QUIET_MS):
            raise Violation("P8: a deleted job leaves something behind")
        self.world.run(self.world.now + QUIET_MS)
        left = [key for agent in self.agents.values() for key in agent.processes]
        if left or not gone():
            raise Violation(f"P8: a deleted job comes back to life: {left}")
        state = self.coordinator.state
        if state.gangs or state.workers or state.prepared or state.waiting or state.on_node:
            raise Violation("P8: a deleted job leaves rows behind")

    def _run_until(self, done, within_ms: int) -> bool:
        world = self.world
        until = world.now + within_ms
        while world.now < until and not done():
            world.run(world.now + 500)
        return bool(done())

    def _settled(self) -> bool:
        return not self._unsettled()

    def _unsettled(self) -> str:
        """What has not come to its end yet, in words."""
        state = self.coordinator.state
        if not self.coordinator.leading:
            return "nobody leads"
        open_ = [what for what, done in self.client.acknowledged.items() if not done]
        open_ += [
            f"submit {job_id}" for job_id in self.jobs if f"submit {job_id}" not in self.client.acknowledged
        ]
        if open_:
            return f"not acknowledged: {open_}"
        for job in state.jobs.values():
            if job.state not in TERMINAL:
                workers = [f"{w.rank}@{w.node} {w.attempt} {w.state}" for w in state.workers_of(job)]
                return f"{job.id} is {job.state}: {job.reason} ({', '.join(workers)})"
        for agent in self.agents.values():
            if not agent.connected:
                return f"agent {agent.name} is not connected"
            if agent.processes:
                return f"node {agent.name} has processes left: {list(agent.processes)}"
            held = {**agent.core.workers, **agent.core.prepared, **agent.core.reports, **agent.hangs_held}
            if held:
                return f"agent {agent.name} has things unacknowledged: {held}"
            node = state.nodes.get(agent.name)
            if node is None or node.state is not NodeState.READY or node.strays:
                return f"node {agent.name} is not back: {node}"
        return "prepared shards are left" if state.prepared else ""


def run(seed: int, **kwargs) -> Result:
    """Run one seed."""
    return Simulation(seed, **kwargs).run()
