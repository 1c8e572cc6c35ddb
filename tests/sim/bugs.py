"""Bugs to plant, each a small lie in an otherwise honest cluster: the simulation has to find every one.

A function plants its bug through a pytest.MonkeyPatch, or sets a switch of the simulated engine.
"""

from dataclasses import dataclass, replace
from typing import Any

import pytest

from holdfast_agent import core as agent_core
from holdfast_agent import hang_reports
from holdfast_agent import hangs as agent_hangs
from holdfast_coordinator.core import checkpoints, commit, drain, forgetting, placement, reconcile, stopping
from holdfast_coordinator.core import step as step_module
from holdfast_coordinator.core.effects import Delete, Put
from holdfast_coordinator.core.model import Gang, NodeState
from holdfast_coordinator.core.turn import Turn
from tests.sim.coordinator import Bugs
from tests.sim.disk import Checkpoints


@dataclass(frozen=True)
class Plant:
    """A bug, what a seed says that hits it, the faults that bring it out, and where to begin to look.

    `first` is a seed that hit a bug that few hit when this was written; whichever hits it today is as good.
    """

    plant: Any
    found: str
    faults: str = ""
    first: int = 0


def answer_before_commit(_patch: pytest.MonkeyPatch, bugs: Bugs) -> None:
    """A client hears that its job exists while it is only in memory."""
    bugs.answer_before_commit = True


def release_before_commit(_patch: pytest.MonkeyPatch, bugs: Bugs) -> None:
    """An agent may forget an exit that is only in memory."""
    bugs.release_before_commit = True


def no_fresh_lease(_patch: pytest.MonkeyPatch, bugs: Bugs) -> None:
    """A new leader takes everybody for silent since ever, and kills the fleet."""
    bugs.no_fresh_lease = True


def pause_is_silence(_patch: pytest.MonkeyPatch, bugs: Bugs) -> None:
    """A coordinator that was stopped for a while takes everybody for silent when it goes on."""
    bugs.pause_is_silence = True


def lost_fence(patch: pytest.MonkeyPatch, _bugs: Bugs) -> None:
    """A commit takes shards of a superseded attempt."""
    honest = commit.decide

    def decide(gang, ranks, held, new):
        gang = replace(gang, attempt=new.attempt)
        held = {rank: replace(prepared, attempt=new.attempt) for rank, prepared in held.items()}
        return honest(gang, ranks, held, new)

    patch.setattr(commit, "decide", decide)


def commit_without_a_shard(patch: pytest.MonkeyPatch, _bugs: Bugs) -> None:
    """A commit does not wait for the last rank."""
    honest = commit.decide
    patch.setattr(
        commit, "decide", lambda gang, ranks, held, new: honest(gang, ranks[:-1] or ranks, held, new)
    )


def commit_goes_back(patch: pytest.MonkeyPatch, _bugs: Bugs) -> None:
    """A commit may be older than the newest."""
    honest = commit.decide

    def decide(gang: Gang, ranks, held, new):
        old = gang.commit is not None and new.step < gang.commit.step
        return honest(replace(gang, commit=None) if old else gang, ranks, held, new)

    patch.setattr(commit, "decide", decide)


def latest_goes_back(patch: pytest.MonkeyPatch, _bugs: Bugs) -> None:
    """LATEST is what was written last."""
    patch.setattr(Checkpoints, "write_latest", lambda self, place, made: self.put_latest(place, made.step))


def start_twice(patch: pytest.MonkeyPatch, _bugs: Bugs) -> None:
    """The agent does not say what it is about to start, and starts it again when it is told again."""
    honest_inventory, honest_start = agent_core.inventory, agent_core._start

    def inventory(state):
        return [worker for worker in honest_inventory(state) if worker.phase is not agent_core.Phase.STARTING]

    def start(state, wanted):
        state.fences.pop((wanted.key.job_id, wanted.key.rank), None)
        state.workers.pop(wanted.key, None)
        return honest_start(state, wanted)

    patch.setattr(agent_core, "inventory", inventory)
    patch.setattr(agent_core, "_start", start)


def exits_not_in_inventory(patch: pytest.MonkeyPatch, _bugs: Bugs) -> None:
    """The agent's inventory holds only what runs."""
    honest = agent_core.inventory

    def inventory(state):
        return [worker for worker in honest(state) if worker.ended is None]

    patch.setattr(agent_core, "inventory", inventory)


def prepared_not_resent(patch: pytest.MonkeyPatch, _bugs: Bugs) -> None:
    """A prepared shard is said once; when that is lost, its rank waits for ever."""
    honest = agent_core._welcomed

    def welcomed(state, epoch):
        return [a for a in honest(state, epoch) if not isinstance(a, agent_core.TellPrepared)]

    patch.setattr(agent_core, "_welcomed", welcomed)


def any_epoch(patch: pytest.MonkeyPatch, _bugs: Bugs) -> None:
    """The agent obeys a leader that was deposed."""
    patch.setattr(agent_core, "handle", _forged_epoch(agent_core.handle))


def _forged_epoch(honest):
    def handle(state, event):
        if hasattr(event, "epoch") and not isinstance(event, agent_core.Welcomed):
            event = replace(event, epoch=max(event.epoch, state.epoch))
        return honest(state, event)

    return handle


def any_session(patch: pytest.MonkeyPatch, _bugs: Bugs) -> None:
    """The coordinator takes a late message of an old session for one of today's."""
    honest = step_module._from_agent

    def from_agent(turn: Turn, event):
        node = turn.state.nodes.get(event.node)
        return honest(turn, replace(event, session=node.session) if node and node.session else event)

    patch.setattr(step_module, "_from_agent", from_agent)


def loss_without_restart(patch: pytest.MonkeyPatch, _bugs: Bugs) -> None:
    """What was lost with a node is not superseded."""
    honest = step_module.supersede

    def supersede(turn, gang, decision, cause):
        if "was lost" not in cause:
            honest(turn, gang, decision, cause)

    patch.setattr(step_module, "supersede", supersede)


def suspects_are_lost(patch: pytest.MonkeyPatch, _bugs: Bugs) -> None:
    """A broken stream is taken for a dead node."""
    honest = step_module.liveness.judge

    def judge(silent_ms, **given):
        verdict, reason = honest(silent_ms, **given)
        return (NodeState.LOST if verdict is NodeState.SUSPECT else verdict), reason

    patch.setattr(step_module.liveness, "judge", judge)


def delete_not_written(patch: pytest.MonkeyPatch, _bugs: Bugs) -> None:
    """A row is deleted in memory alone."""
    honest = Turn.effects

    def effects(self):
        made = honest(self)
        return replace(made, writes=tuple(w for w in made.writes if not isinstance(w, Delete)))

    patch.setattr(Turn, "effects", effects)


def attempt_not_written(patch: pytest.MonkeyPatch, _bugs: Bugs) -> None:
    """The fence is raised in memory alone: a crash lowers it again."""
    honest = Turn.effects

    def effects(self):
        made = honest(self)
        gangs = [w for w in made.writes if isinstance(w, Put) and isinstance(w.row, Gang) and w.row.restarts]
        return replace(made, writes=tuple(w for w in made.writes if w not in gangs))

    patch.setattr(Turn, "effects", effects)


def backoff_never_over(patch: pytest.MonkeyPatch, _bugs: Bugs) -> None:
    """A backoff that is over while there is no room wakes the engine up for ever."""
    patch.setattr(reconcile, "_end_backoff", lambda turn, gang: None)
    patch.setattr(
        reconcile,
        "_ready",
        lambda turn, gang: (
            gang.not_before_ms <= turn.at
            and all(worker.state == "waiting" for worker in turn.state.members(gang))
        ),
    )


def resume_from_what_was_prepared(patch: pytest.MonkeyPatch, _bugs: Bugs) -> None:
    """A commit is handed out one step further than it was made."""
    honest = reconcile.start_command

    def start_command(turn, job, workers):
        made = honest(turn, job, workers)
        return replace(made, resume=tuple(replace(c, step=c.step + 1) for c in made.resume))

    patch.setattr(reconcile, "start_command", start_command)


def note_before_commit(_patch: pytest.MonkeyPatch, bugs: Bugs) -> None:
    """A worker hears that a corrupt checkpoint is set aside while that is only in memory."""
    bugs.note_before_commit = True


def reports_not_resent(patch: pytest.MonkeyPatch, _bugs: Bugs) -> None:
    """A report is said once; when that is lost, its worker waits for ever."""
    honest = agent_core._welcomed

    def welcomed(state, epoch):
        return [a for a in honest(state, epoch) if not isinstance(a, agent_core.TellReported)]

    patch.setattr(agent_core, "_welcomed", welcomed)


def any_attempt_reports(patch: pytest.MonkeyPatch, _bugs: Bugs) -> None:
    """A superseded attempt sets aside what was committed anew."""

    def gang_of(state, event):
        worker = state.workers.get((event.key.job_id, event.key.rank))
        return state.gangs[worker.job_id, worker.gang] if worker is not None else None

    patch.setattr(checkpoints, "_gang_of_live", gang_of)


def quarantine_without_restart(patch: pytest.MonkeyPatch, _bugs: Bugs) -> None:
    """The other ranks train on from a checkpoint that nobody resumes from any more."""
    patch.setattr(checkpoints, "supersede", lambda *_: None)


def quarantine_goes_too_far_back(patch: pytest.MonkeyPatch, _bugs: Bugs) -> None:
    """The commit before the corrupt one is passed over."""
    honest = checkpoints.lookup

    def lookup(state, event):
        asked = honest(state, event)
        return asked and replace(asked, upto=asked.upto - 5)

    patch.setattr(checkpoints, "lookup", lookup)


def drop_what_is_resumed_from(patch: pytest.MonkeyPatch, _bugs: Bugs) -> None:
    """Retention does not ask who still reads."""
    patch.setattr(checkpoints, "_resumed", lambda state, gang: set())


def drop_too_many(patch: pytest.MonkeyPatch, _bugs: Bugs) -> None:
    """Retention keeps one less than it should."""
    honest = checkpoints.retention.plan

    def plan(policy, kept, **held):
        return honest(replace(policy, keep_last=policy.keep_last - 1), kept, **held)

    patch.setattr(checkpoints.retention, "plan", plan)


def delete_what_is_kept(patch: pytest.MonkeyPatch, _bugs: Bugs) -> None:
    """A worker is asked to delete what retention decides about."""
    patch.setattr(checkpoints, "_asked_to_drop", lambda gang: tuple(each.step for each in gang.kept))


def hangs_not_resent(patch: pytest.MonkeyPatch, _bugs: Bugs) -> None:
    """A hang is said once; when that is lost, its worker hangs for ever."""
    patch.setattr(hang_reports.Reports, "welcomed", lambda self, state: [])


def a_pause_is_a_hang(patch: pytest.MonkeyPatch, _bugs: Bugs) -> None:
    """The agent takes the time in which its machine stood still for silence of its workers."""
    patch.setattr(agent_hangs, "PAUSE_NS", 10**18)


def hang_without_restart(patch: pytest.MonkeyPatch, _bugs: Bugs) -> None:
    """What hangs is stopped, and its gang is not superseded."""
    patch.setattr(step_module.hangs, "supersede", lambda *_: None)


def stop_where_somebody_has_been(patch: pytest.MonkeyPatch, _bugs: Bugs) -> None:
    """The gang is to stop at a step that a rank has not promised to wait at."""
    honest = stopping._count

    def count(turn, gang, stop):
        honest(turn, gang, replace(stop, step=stop.step - 2))

    patch.setattr(stopping, "_count", count)


def stop_agreed_by_some(patch: pytest.MonkeyPatch, _bugs: Bugs) -> None:
    """The last rank is not waited for."""
    honest = stopping._count

    def count(turn, gang, stop):
        world = turn.state.gang_tallies[gang.job_id, gang.index].total()
        honest(turn, gang, replace(stop, answers=max(stop.answers, world - 1) + (stop.answers < world)))

    patch.setattr(stopping, "_count", count)


def drain_without_asking(patch: pytest.MonkeyPatch, _bugs: Bugs) -> None:
    """What runs on a drained node is moved as if it had died."""
    patch.setattr(drain.stopping, "ask", lambda turn, gangs, *_: list(gangs))


def place_on_cordoned(patch: pytest.MonkeyPatch, _bugs: Bugs) -> None:
    """A node that is drained takes new work."""
    honest = placement.usable
    patch.setattr(placement, "usable", lambda node: honest(replace(node, cordon=None)))


def forget_suspects(patch: pytest.MonkeyPatch, _bugs: Bugs) -> None:
    """A node whose stream broke is forgotten, with all that runs there."""
    honest = step_module._ticked

    def ticked(turn, event):
        honest(turn, event)
        for node in list(turn.state.nodes.values()):
            if node.state is NodeState.SUSPECT:
                forgetting._forget(turn, node, "no patience")

    patch.setattr(step_module, "_ticked", ticked)


def end_before_the_commit(patch: pytest.MonkeyPatch, _bugs: Bugs) -> None:
    """A gang that has answered is signalled before its last checkpoint is committed."""
    patch.setattr(stopping, "_is_committed", lambda gang, stop: stop.agreed)
    honest = stopping.follow

    def follow(turn, job, gang):
        honest(turn, job, gang)
        gang = turn.state.gangs[gang.job_id, gang.index]
        if stopping.is_asked(gang) and gang.stopping.agreed:
            stopping.signal(turn, gang, "no patience")

    patch.setattr(stopping, "follow", follow)


LOST_ACKS = "kill_agent,break_stream,kill_coordinator_as_it_speaks"
ROT = "rot_a_file,kill_agent,break_stream,kill_coordinator_as_it_speaks"
HANGS = "hang_worker,kill_agent,break_stream,kill_coordinator_as_it_speaks"
OLD_LEADERS = "kill_coordinator_as_it_speaks,crash_worker,freeze_agent"

PLANTS: dict[str, Plant] = {
    "answer before commit": Plant(answer_before_commit, "P3: request-"),
    "release before commit": Plant(release_before_commit, "P3: .* is released before its exit is durable"),
    "no fresh lease": Plant(no_fresh_lease, "P4: node . is lost after"),
    "pause is silence": Plant(pause_is_silence, "P4: node . is lost after"),
    "lost fence": Plant(lost_fence, "P2|superseded attempt"),
    "commit without a shard": Plant(
        commit_without_a_shard, "its shards were never prepared|a commit of some of its ranks"
    ),
    "commit goes back": Plant(commit_goes_back, "went back|is older than the commit", LOST_ACKS),
    "LATEST goes back": Plant(latest_goes_back, "P1: LATEST .* went back"),
    "start twice": Plant(
        start_twice, "P6: .* is spawned twice|P2: .* starts beside|P4: .* is lost, and node"
    ),
    "exits not in the inventory": Plant(
        exits_not_in_inventory, "P4: .* is lost, and node|things unacknowledged|liveness: .* is restarting"
    ),
    "prepared not resent": Plant(prepared_not_resent, "liveness: ", first=211),
    "any epoch": Plant(
        any_epoch, "spawned twice|has processes left|comes back to life", OLD_LEADERS, first=79
    ),
    "any session": Plant(any_session, "liveness: "),
    "loss without restart": Plant(loss_without_restart, "is not superseded"),
    "suspects are lost": Plant(suspects_are_lost, "P4: node . is lost after"),
    "forget suspects": Plant(forget_suspects, "P4: node . is forgotten, and was not lost"),
    "delete not written": Plant(delete_not_written, "delete what it prepared before|is not the state"),
    "attempt not written": Plant(attempt_not_written, "load.store. is not the state"),
    "backoff never over": Plant(backoff_never_over, "it would spin"),
    "resume from what was never committed": Plant(resume_from_what_was_prepared, "P1: .* resumes from"),
    "note before commit": Plant(note_before_commit, "P3: .* is told that step", ROT),
    "reports not resent": Plant(reports_not_resent, "liveness: ", first=17),
    "any attempt reports": Plant(
        any_attempt_reports,
        "went back to|set aside and is sound|restarts though nothing died|dropped, and .* resumed",
        ROT,
        first=123,
    ),
    "quarantine without restart": Plant(quarantine_without_restart, "and its attempt goes on", ROT),
    "quarantine goes too far back": Plant(
        quarantine_goes_too_far_back, "the newest sound commit is|is what was never committed", ROT
    ),
    "drop what is resumed from": Plant(drop_what_is_resumed_from, "P1: step .* is dropped, and .* resumed"),
    "drop too many": Plant(drop_too_many, "P1: step .* is dropped, and only"),
    "stop where somebody has been": Plant(
        stop_where_somebody_has_been, "is told to stop at step|is not Stopping"
    ),
    "stop agreed by some": Plant(stop_agreed_by_some, "is not Stopping|agreed without all"),
    "drain without asking": Plant(drain_without_asking, "was drained, and does steps again|P1: rank . of j3"),
    "place on cordoned": Plant(place_on_cordoned, "is drained, and lets be", "drain_node,crash_worker"),
    "end before the commit": Plant(
        end_before_the_commit, "P1: rank . of j3|is to stop, and nothing of it runs"
    ),
    "delete what is kept": Plant(delete_what_is_kept, "P1: the files of .* which are kept, are to go"),
    "hangs not resent": Plant(hangs_not_resent, "liveness: ", HANGS, first=122),
    "a pause is a hang": Plant(a_pause_is_a_hang, "P4: .* is said to hang", "freeze_machine"),
    "hang without restart": Plant(hang_without_restart, "P4: .* is told to stop", "hang_worker"),
}
