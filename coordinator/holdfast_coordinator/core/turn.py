"""One event's turn: reads the state, advances it, and keeps what has to be written and said."""

from holdfast_coordinator.core import edges
from holdfast_coordinator.core.effects import (
    Append,
    Command,
    Delete,
    DropCommit,
    DropHistory,
    Effects,
    MarkDrained,
    Problem,
    Put,
    Refusal,
    ReleaseWorkers,
    Row,
    Send,
    SetEpoch,
    Write,
)
from holdfast_coordinator.core.jobspec import Scope
from holdfast_coordinator.core.model import LIVE, Commit, Entry, Gang, Job, Node, Worker
from holdfast_coordinator.core.state import State


class Turn:
    """Collects what `step` does with one event. Every change of the state goes through here."""

    def __init__(self, state: State, at: int) -> None:
        self.state = state
        self.at = at
        self._writes: list[Write] = []
        self._commands: list[Send] = []
        self._refusal: Refusal | None = None
        self.touched: dict[str, dict[int, None]] = {}
        """Jobs that changed, each with those of its gangs that did."""
        self.room_changed = False
        """What waits may fit now, or there is more that waits."""
        self._reason = ""

    def put(self, row: Row) -> None:
        """Insert or replace a row. Raises IllegalEdgeError for a change of state that the tables do not allow."""
        match row:
            case Job():
                old_job = self.state.jobs.get(row.id)
                if old_job == row:
                    return
                if old_job is not None:
                    edges.check(edges.JOB_EDGES, f"job {row.id}", old_job.state, row.state)
                self.touched.setdefault(row.id, {})
            case Worker():
                old_worker = self.state.workers.get((row.job_id, row.rank))
                if old_worker == row:
                    return
                if old_worker is not None:
                    what = f"rank {row.rank} of job {row.job_id}"
                    edges.check(edges.WORKER_EDGES, what, old_worker.state, row.state)
                self.touched.setdefault(row.job_id, {})[row.gang] = None
                self.room_changed |= row.state not in LIVE
            case Node():
                old_node = self.state.nodes.get(row.name)
                if old_node == row:
                    return
                if old_node is not None:
                    edges.check(edges.NODE_EDGES, f"node {row.name}", old_node.state, row.state)
                self.room_changed = True
            case Gang():
                self.touched.setdefault(row.job_id, {})[row.index] = None
            case _:
                pass
        self.state.put(row)
        self._writes.append(Put(row))

    def delete(self, row: Row) -> None:
        """Remove a row."""
        self.state.delete(row)
        self._writes.append(Delete(row))

    def record(self, commit: Commit) -> None:
        """Add a commit to the job's history, in the place of what is prepared of its step."""
        self.state.settle_prepared(commit)
        self._writes.append(Append(commit))

    def drop_history(self, job_id: str) -> None:
        """Remove the job's commits."""
        self._writes.append(DropHistory(job_id))

    def drop_commit(self, gang: Gang, step: int) -> None:
        """Remove one commit of a gang from the history."""
        self._writes.append(DropCommit(gang.job_id, gang.index, step))

    def mark_drained(self, gang: Gang, step: int, rank: int) -> None:
        """Note in the history that a rank's file is in the storage."""
        self._writes.append(MarkDrained(gang.job_id, gang.index, step, rank))

    def set_epoch(self, epoch: int) -> None:
        """Take over as the leader of this epoch."""
        self.state.epoch = epoch
        self._writes.append(SetEpoch(epoch))

    def tell(
        self,
        kind: str,
        message: str,
        *,
        job_id: str = "",
        node: str = "",
        rank: int | None = None,
        attempt: int = 0,
        evidence: str = "",
        outcome: str = "",
    ) -> None:
        """Add a line to the timeline."""
        entry = Entry(
            self.state.next_seq, self.at, kind, message, job_id, node, rank, attempt, evidence, outcome
        )
        self.state.next_seq += 1
        self._writes.append(Append(entry))

    def tell_worker(
        self, kind: str, message: str, worker: Worker, *, evidence: str = "", outcome: str = ""
    ) -> None:
        """Add a line about a worker to the timeline."""
        self.tell(
            kind,
            message,
            job_id=worker.job_id,
            node=worker.node,
            rank=worker.rank,
            attempt=worker.attempt,
            evidence=evidence,
            outcome=outcome,
        )

    def tell_gang(self, kind: str, message: str, gang: Gang, outcome: str = "") -> None:
        """Add a line about a gang to the timeline."""
        self.tell(
            kind,
            message,
            job_id=gang.job_id,
            rank=self.rank_of(gang),
            attempt=gang.attempt,
            outcome=outcome,
        )

    def rank_of(self, gang: Gang) -> int | None:
        """The rank of a gang of one by scope; None for a gang of all ranks."""
        scope = self.state.jobs[gang.job_id].spec.restart.scope
        return gang.index if scope is Scope.RANK else None

    def send(self, node: str, command: Command) -> None:
        """Send to the session that speaks for the node; without one, its next AgentJoined makes up for it."""
        there = self.state.nodes.get(node)
        if there is not None and there.session:
            self._commands.append(Send(there.session, command))

    def send_session(self, session: str, command: Command) -> None:
        """Send to a session, whether or not it speaks for a node."""
        self._commands.append(Send(session, command))

    def drop(self, reason: str) -> None:
        """Say why the event changed nothing."""
        self._reason = reason

    def refuse(self, problem: Problem, message: str, remedy: str) -> None:
        """Answer a request with a refusal."""
        self._refusal = Refusal(problem, message, remedy)

    def find_job(self, job_id: str) -> Job | None:
        """The job that a request is about; None when it was refused."""
        job = self.state.jobs.get(job_id)
        if job is None:
            self.refuse(Problem.NOT_FOUND, f"there is no job {job_id}", "list the jobs to see their ids")
        return job

    def find_node(self, name: str) -> Node | None:
        """The node that a request is about; None when it was refused."""
        node = self.state.nodes.get(name)
        if node is None:
            self.refuse(Problem.NOT_FOUND, f"there is no node {name}", "list the nodes to see their names")
        return node

    def effects(self) -> Effects:
        """All of it. Receipts go last: what starts again is not to wait for them."""
        commands = sorted(self._commands, key=lambda send: isinstance(send.command, ReleaseWorkers))
        return Effects(tuple(self._writes), tuple(commands), self._reason, self._refusal)
