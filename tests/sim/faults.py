"""What goes wrong, and when. Every seed draws its own mix: some kinds of faults often, others never."""

from collections.abc import Callable

from holdfast_coordinator.core.effects import (
    AckCommit,
    NoteHang,
    NoteReport,
    ReleaseWorkers,
    StartWorkers,
    StopWorkers,
    Welcome,
)
from holdfast_coordinator.core.model import HangAction
from tests.sim.agent import Agent
from tests.sim.checks import Checks
from tests.sim.coordinator import Coordinator
from tests.sim.link import DOWN, UP, Network
from tests.sim.worker import Process
from tests.sim.world import World

LONGER_THAN_THE_LEASE_MS = 9_000


class Faults:
    """Breaks things until told to stop."""

    def __init__(
        self,
        world: World,
        network: Network,
        coordinator: Coordinator,
        agents: dict[str, Agent],
        checks: Checks,
        *,
        only: str = "",
    ) -> None:
        self._world = world
        self._network = network
        self._coordinator = coordinator
        self._agents = list(agents.values())
        self._checks = checks
        self._on = True
        coordinator.command_lost = self._command_lost
        self._mean_ms = world.between(400, 4_000)
        kinds: list[Callable[[], None]] = [
            self.crash_worker,
            self.kill_shim,
            self.kill_agent,
            self.kill_agent_between_actions,
            self.freeze_agent,
            self.reboot_node,
            self.kill_coordinator,
            self.kill_coordinator_as_it_speaks,
            self.freeze_coordinator,
            self.kill_both,
            self.fill_store,
            self.break_stream,
            self.partition,
            self.slow_network,
            self.rot_a_file,
            self.lose_storage,
            self.hang_worker,
            self.freeze_machine,
        ]
        # Several at a time, so that faults of different kinds meet; not all, so that each has room to show.
        wanted = [kind for kind in kinds if world.chance(0.4)] or [world.rng.choice(kinds)]
        self.kinds = [kind for kind in kinds if kind.__name__ in only.split(",")] if only else wanted

    def begin(self) -> None:
        self._world.at(self._world.between(0, 2 * self._mean_ms), self._next)

    def end(self) -> None:
        """Nothing breaks any more, and all that is broken is mended."""
        self._on = False
        self._world.note("faults", "end")
        for agent in self._agents:
            self._mend(agent)
        for process in self._processes():
            if process.order.spec.hang.action is not HangAction.RESTART:
                process.go_on()
        self._network.slowest_ms = 5
        self._coordinator.fill_disk(0)
        self._coordinator.die_after = ()
        self._checks.checkpoints.away = False
        self._coordinator.thaw()
        self._coordinator.start()

    def _next(self) -> None:
        if self._on:
            self._world.rng.choice(self.kinds)()
            self._world.at(self._world.between(0, 2 * self._mean_ms), self._next)

    def _mend(self, agent: Agent) -> None:
        self._network.heal(agent.name)
        agent.die_in = -1
        agent.thaw()
        agent.start()

    def _while_on(self, delay_ms: int, what: Callable[[], None]) -> None:
        self._world.at(delay_ms, lambda: what() if self._on else None)

    def _processes(self) -> list[Process]:
        return [process for agent in self._agents for process in agent.processes.values()]

    # Kinds

    def crash_worker(self) -> None:
        self._crash(lambda _: True)

    def _crash(self, wanted: Callable[[Process], bool]) -> None:
        live = [process for process in self._processes() if wanted(process)]
        if live:
            process = self._world.rng.choice(live)
            code = self._world.rng.choice([1, 1, 0])
            process.end(code or -1, 0 if code else 9)

    def kill_shim(self) -> None:
        live = self._processes()
        if live:
            self._world.rng.choice(live).lose_shim()

    def kill_agent(self) -> None:
        agent = self._world.rng.choice(self._agents)
        agent.kill()
        longest = self._world.rng.choice([50, 1_000, LONGER_THAN_THE_LEASE_MS])
        self._while_on(self._world.between(10, longest), agent.start)

    def kill_agent_between_actions(self) -> None:
        agent = self._world.rng.choice(self._agents)
        agent.die_in = self._world.between(0, 3)

        def restart() -> None:
            agent.die_in = -1
            agent.start()

        self._while_on(self._world.between(500, 3_000), restart)

    def freeze_agent(self) -> None:
        agent = self._world.rng.choice(self._agents)
        agent.freeze()
        self._while_on(self._world.between(100, LONGER_THAN_THE_LEASE_MS), agent.thaw)

    def reboot_node(self) -> None:
        agent = self._world.rng.choice(self._agents)
        agent.reboot()
        self._while_on(self._world.between(100, LONGER_THAN_THE_LEASE_MS), agent.start)

    def kill_coordinator(self) -> None:
        self._coordinator.kill()
        longest = self._world.rng.choice([10, 1_000, LONGER_THAN_THE_LEASE_MS])
        self._while_on(self._world.between(1, longest), self._coordinator.start)

    def kill_coordinator_as_it_speaks(self) -> None:
        said = self._world.rng.choice(
            [StartWorkers, StopWorkers, ReleaseWorkers, AckCommit, NoteReport, NoteHang, Welcome]
        )
        self._coordinator.die_after = (said,)

        def restart() -> None:
            self._coordinator.die_after = ()
            self._coordinator.start()

        self._while_on(self._world.between(500, 5_000), restart)

    def _command_lost(self, node: str, message: object) -> None:
        """Now and then what a dead leader said turns up much later."""
        if self._world.chance(0.8):
            agent = next(agent for agent in self._agents if agent.name == node)
            self._world.at(self._world.between(1_000, 60_000), agent.late, message)

    def freeze_coordinator(self) -> None:
        self._coordinator.freeze()
        self._while_on(self._world.between(100, LONGER_THAN_THE_LEASE_MS), self._coordinator.thaw)

    def kill_both(self) -> None:
        self.kill_coordinator()
        self.kill_agent()

    def fill_store(self) -> None:
        self._coordinator.fill_disk(self._world.between(1, 3_000))

    def break_stream(self) -> None:
        open_ = [stream for stream in self._network.streams if not stream.over]
        if open_:
            self._world.rng.choice(open_).snap()

    def partition(self) -> None:
        agent = self._world.rng.choice(self._agents)
        ways = self._world.rng.choice([(UP,), (DOWN,), (UP, DOWN)])
        self._network.partition(agent.name, ways)
        self._while_on(
            self._world.between(100, 2 * LONGER_THAN_THE_LEASE_MS), lambda: self._network.heal(agent.name)
        )

    def slow_network(self) -> None:
        self._network.slowest_ms = self._world.rng.choice([0, 5, 50, 800])

    def rot_a_file(self) -> None:
        """A file of a newest checkpoint is no longer what was written; its rank will find out, or never look."""
        newest = [
            (place, steps[max(steps)]) for place, steps in sorted(self._checks.commits.items()) if steps
        ]
        if newest:
            place, commit = self._world.rng.choice(newest)
            shard = self._world.rng.choice(commit.shards)
            self._world.note("faults", f"{shard.file} of step {commit.step} of {place} rots")
            self._checks.checkpoints.rotten.add((place, commit.step, shard.file))
            if self._world.chance(0.7):
                self._crash(lambda process: (process.key.job_id, process.key.rank) == (place[0], shard.rank))

    def lose_storage(self) -> None:
        self._world.note("faults", "the storage is away")
        self._checks.checkpoints.away = True

        def back() -> None:
            self._checks.checkpoints.away = False

        self._while_on(self._world.between(100, LONGER_THAN_THE_LEASE_MS), back)

    def hang_worker(self) -> None:
        """A worker waits for a lock, or is stopped; for a while, or for ever."""
        live = self._processes()
        if live:
            process = self._world.rng.choice(live)
            process.stall()
            if self._world.chance(0.4):
                self._while_on(self._world.between(100, LONGER_THAN_THE_LEASE_MS), process.go_on)

    def freeze_machine(self) -> None:
        agent = self._world.rng.choice(self._agents)
        agent.freeze_machine()
        self._while_on(self._world.between(100, 2 * LONGER_THAN_THE_LEASE_MS), agent.thaw_machine)
