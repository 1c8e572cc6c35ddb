"""The language of the traces: a line an event, and below it what came of it.

Events begin in the first column; `#` begins a comment. What comes of an event is indented:

    put     a row that was written, with what changed of it that matters here
    delete  a row that was removed
    -> s1   a command to a session
    !       a line of the timeline
    dropped, refused   and why

`j1/0.2` is rank 0 of job j1 in attempt 2.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from holdfast_coordinator.core.effects import (
    AckCommit,
    Append,
    AskStop,
    CloseSession,
    Command,
    Delete,
    DropCommit,
    DropHistory,
    Effects,
    ForgetJob,
    JobOver,
    MarkDrained,
    NoteHang,
    NoteReport,
    Put,
    RefuseShard,
    ReleaseWorkers,
    Row,
    SetEpoch,
    StartWorkers,
    StopWorkers,
    Write,
)
from holdfast_coordinator.core.events import Notice
from holdfast_coordinator.core.jobspec import (
    Action,
    CodeRange,
    ExitKind,
    HangAction,
    HangPolicy,
    RetentionPolicy,
    Rule,
    Scope,
)
from holdfast_coordinator.core.model import (
    Commit,
    Cordon,
    Entry,
    Gang,
    Hang,
    Job,
    Kept,
    Key,
    Node,
    Output,
    Pin,
    Prepared,
    ReportKind,
    Stopping,
    Worker,
)
from tests.core.builders import T0, Cluster, ended, found, hang, shard, spec


@dataclass
class Interpreter:
    """Runs the events of one trace, and says what came of each."""

    cluster: Cluster = field(default_factory=Cluster)

    def run(self, text: str) -> str:
        """Return the trace with what happens now below every event."""
        said: list[str] = []
        for line in text.splitlines():
            if line.startswith("    "):
                continue
            said.append(line.rstrip())
            if line.strip() and not line.startswith("#"):
                said += ["    " + out for out in self._event(line)]
        return "\n".join(said) + "\n"

    def _event(self, line: str) -> list[str]:
        verb, *words = shlex.split(line)
        given = dict(word.split("=", 1) for word in words if "=" in word)
        names = [word for word in words if "=" not in word]
        before = dict(_by_name(self.cluster))
        effects = getattr(self, f"_{verb}")(*names, **given)
        said = [_write(write, before) for write in effects.writes]
        said += [f"-> {send.session} {_command(send.command)}" for send in effects.commands]
        if effects.reason:
            said.append(f"dropped: {effects.reason}")
        if effects.refusal is not None:
            said.append(f"refused: {effects.refusal.message}; {effects.refusal.remedy}")
        return said or ["nothing"]

    # Events by their first word

    def _elect(self) -> Effects:
        return self.cluster.elect()

    def _restart(self, what: str) -> Effects:
        assert what == "coordinator"
        return self.cluster.restart_coordinator()

    def _join(
        self, node: str, inventory: str = "", instance: str = "", boot: str = "boot-1", notice: str = ""
    ) -> Effects:
        items = tuple(_found(item) for item in inventory.split(",") if item)
        named: dict[str, object] = {"instance_id": instance} if instance else {}
        if notice:
            named["notice"] = Notice(notice, 120_000)
        return self.cluster.join(node, items, boot_id=boot, **named)

    def _submit(
        self, job: str, world: str = "2", scope: str = "gang", request: str = "", **policy: str
    ) -> Effects:
        rules = tuple(_rule(word) for word in policy.pop("rules", "").split())
        on_hang = HangPolicy(HangAction(policy.pop("hang", "notify")))
        numbers: dict[str, object] = {name: int(value) for name, value in policy.items()}
        keep = {name: numbers.pop(name) for name in list(numbers) if name.startswith("keep_")}
        if keep:
            numbers["retention"] = RetentionPolicy(**keep)
        numbers |= {"hang": on_hang, "rules": rules}
        return self.cluster.submit(spec(int(world), Scope(scope), **numbers), job, request)

    def _stop(self, job: str, how: str = "") -> Effects:
        return self.cluster.stop(job, force=how == "force")

    def _again(self, job: str, how: str = "", request: str = "") -> Effects:
        """Its user wants it restarted."""
        return self.cluster.again(job, request, force=how == "force")

    def _cordon(self, node: str, reason: str = "") -> Effects:
        return self.cluster.cordon(node, reason)

    def _uncordon(self, node: str) -> Effects:
        return self.cluster.uncordon(node)

    def _drain(self, node: str, reason: str = "", within: str = "120000") -> Effects:
        return self.cluster.drain(node, int(within), reason)

    def _forget(self, node: str) -> Effects:
        return self.cluster.forget(node)

    def _notice(self, node: str, reason: str, within: str = "120000") -> Effects:
        return self.cluster.notice(node, reason, int(within))

    def _answer(self, which: str, how: str = "", step: str = "") -> Effects:
        return self.cluster.answer(_key(which), int(step) if step else None, leaves=how != "stays")

    def _delete(self, job: str) -> Effects:
        return self.cluster.delete(job)

    def _started(self, which: str) -> Effects:
        return self.cluster.started(_key(which))

    def _exited(self, which: str, how: str = "", **given: str) -> Effects:
        return self.cluster.exited(
            _key(which),
            int(given.get("code", "-1")),
            int(given.get("signal", "0")),
            at_step=int(given["step"]) if "step" in given else None,
            never_ran=how == "never_ran",
            node=given.get("node", ""),
            line=given.get("line", ""),
            kind=ExitKind(given.get("kind", "exited")),
            output=Output(matched=tuple(map(int, given.get("matched", "").split()))),
        )

    def _prepare(self, which: str, where: str = "", *, step: str, node: str = "") -> Effects:
        key = _key(which)
        what = shard(key.rank, key.attempt, local_only=where == "local_only")
        return self.cluster.prepare(key, int(step), node, what)

    def _report(self, which: str, kind: str, step: str, message: str = "", node: str = "") -> Effects:
        return self.cluster.report(_key(which), ReportKind(kind), int(step), message, node)

    def _hung(
        self, which: str, over: str = "", *, section: str = "step", since: str = "7", **given: str
    ) -> Effects:
        """`hung j1/0.1 step=14 for_ms=73000`, and with `over`, that it moves again."""
        step = int(given["step"]) if "step" in given else None
        silent, where = int(given.get("for_ms", "61000")), given.get("where", "")
        how = hang(section, silent, since_ns=int(since), step=step, where=where)
        return self.cluster.hung(_key(which), how, over=over == "over", node=given.get("node", ""))

    def _pin(self, job: str, step: str, name: str = "") -> Effects:
        return self.cluster.pin(int(step), name, job=job)

    def _drop(self, job: str, step: str) -> Effects:
        return self.cluster.drop_checkpoint(int(step), job=job)

    def _offer(self, node: str, *ports: str) -> Effects:
        return self.cluster.offer(node, *map(int, ports))

    def _lose(self, node: str) -> Effects:
        return self.cluster.lose_stream(node)

    def _tick(self, after_ms: str, silent: str = "") -> Effects:
        return self.cluster.tick(int(after_ms), *silent.split(","))


def _rule(word: str) -> Rule:
    """`3:fail`, `sig11:retry`, `out_of_memory:fail`, `log:ignore`: what is matched, and the action."""
    what, _, action = word.partition(":")
    if what.isdecimal():
        return Rule(Action(action), exit_codes=(CodeRange(int(what), int(what)),))
    if what.startswith("sig"):
        return Rule(Action(action), signals=(int(what[3:]),))
    if what == "log":
        return Rule(Action(action), log="said")
    return Rule(Action(action), kinds=(ExitKind(what),))


def _key(word: str) -> Key:
    job, _, rest = word.partition("/")
    rank, _, attempt = rest.partition(".")
    return Key(job, int(rank), int(attempt))


def _found(word: str):
    """`j1/0.1` runs; `j1/0.1:exit=0` has ended."""
    name, _, exit_ = word.partition(":exit=")
    return found(_key(name), ended(int(exit_), at=T0) if exit_ else None)


def _by_name(cluster: Cluster):
    for row in cluster.state.rows():
        yield _name(row), row


def _name(row: Row) -> str:
    match row:
        case Job():
            return f"job {row.id}"
        case Gang():
            return f"gang {row.job_id}:{row.index}"
        case Worker():
            return f"worker {row.job_id}/{row.rank}"
        case Node():
            return f"node {row.name}"
        case Prepared():
            return f"prepared {row.job_id}/{row.rank}.{row.attempt} step {row.step}"


_SHOWN = {
    "Job": ("state", "reason", "desired", "ending"),
    "Gang": (
        "attempt",
        "restarts",
        "not_before_ms",
        "short_since_ms",
        "best_step",
        "master_port",
        "commit",
        "kept",
        "pins",
        "dropping",
        "failed_step",
        "excluded",
        "stopping",
    ),
    "Worker": ("state", "attempt", "node", "pid", "resume_step", "stop_at", "hang"),
    "Node": ("state", "reason", "session", "ports", "strays", "cordon"),
    "Prepared": (),
}


def _write(write: Write, before: dict[str, Row]) -> str:
    match write:
        case Put(row):
            old = before.get(_name(row))
            before[_name(row)] = row
            return f"put {_name(row)}{_changes(old, row)}"
        case Delete(row):
            return f"delete {_name(row)}"
        case Append(Entry() as entry):
            about = [f"rank {entry.rank}"] if entry.rank is not None else []
            outcome = f"; {entry.outcome}" if entry.outcome else ""
            return f"! {' '.join([entry.kind, *about])}: {entry.message}{outcome}"
        case Append(Commit() as made):
            return f"append commit of {made.job_id} step {made.step} attempt {made.attempt}"
        case SetEpoch(epoch):
            return f"put epoch {epoch}"
        case DropCommit(job_id, _, step):
            return f"drop commit of {job_id} step {step}"
        case MarkDrained(job_id, _, step, rank):
            return f"drained: rank {rank} of {job_id} step {step}"
        case DropHistory(job_id):
            return f"delete history of {job_id}"
    raise AssertionError(write)


def _changes(old: Row | None, row: Row) -> str:
    said = []
    for name in _SHOWN[type(row).__name__]:
        value = getattr(row, name)
        begins = old is None and (not value or name == "failed_step")
        if not begins and value != (getattr(old, name) if old is not None else None):
            said.append(f"{name.removesuffix('_ms')}={_value(name, value)}")
    return "".join(f" {part}" for part in said)


def _value(name: str, value: object) -> str:
    match value:
        case Commit():
            local = [str(each.rank) for each in value.shards if each.local_only]
            return f"step {value.step}" + (f" (rank {' '.join(local)} on its node alone)" if local else "")
        case Kept():
            return str(value.step)
        case Hang():
            return f'"in {value.section}{" acted upon" if value.acted else ""}"'
        case Pin():
            return f"{value.step}={value.name}"
        case Key():
            return _short(value)
        case Mapping():
            return "[" + " ".join(f"{each}: {why}" for each, why in value.items()) + "]"
        case Stopping():
            told = (
                "signalled" if value.signalled else "agreed" if value.agreed else f"{value.answers} answers"
            )
            return f"step {value.step} ({told}), SIGTERM +{value.term_ms - T0}, SIGKILL +{value.kill_ms - T0}"
        case Cordon():
            by = f", by +{value.drain_by_ms - T0}" if value.drain_by_ms else ""
            return f"({value.reason or 'no reason'}{by}{', drained' if value.drained else ''})"
        case tuple():
            return "[" + " ".join(_value(name, each) for each in value) + "]"
        case int() if name in ("not_before_ms", "short_since_ms") and value:
            return f"+{value - T0}"
        case str() if " " in value:
            return f'"{value}"'
    return "none" if value is None else str(value)


def _short(key: Key) -> str:
    return f"{key.job_id}/{key.rank}.{key.attempt}"


def _command(command: Command) -> str:
    match command:
        case StartWorkers():
            ranks = " ".join(f"{command.job_id}/{a.rank}.{a.attempt}" for a in command.assignments)
            resume = ", ".join(f"step {made.step}" for made in command.resume) or "the beginning"
            meet = f" meet at {command.master_addr}:{command.master_port}" if command.master_port else ""
            return f"StartWorkers {ranks} from {resume}{meet}"
        case StopWorkers(keys, force, reason):
            return f"StopWorkers {' '.join(map(_short, keys))}{' by force' if force else ''}: {reason}"
        case AskStop(keys, reason, within_ms, step):
            where = "" if step is None else f" at step {step}"
            return f"AskStop {' '.join(map(_short, keys))}{where} within {within_ms} ms: {reason}"
        case ReleaseWorkers(keys):
            return f"ReleaseWorkers {' '.join(map(_short, keys))}"
        case AckCommit(job_id, attempt, step, ranks, publish, drop):
            named = " ".join(f"{job_id}/{rank}.{attempt}" for rank in ranks)
            steps = f" and drop {' '.join(map(str, drop))}" if drop else ""
            return f"AckCommit step {step} to {named}{' and publish' if publish else ''}{steps}"
        case RefuseShard(key, step, reason):
            return f"RefuseShard {_short(key)} step {step}: {reason}"
        case NoteReport(key, kind, step):
            return f"NoteReport {_short(key)} {kind} step {step}"
        case NoteHang(key, since_ns, over):
            return f"NoteHang {_short(key)} since {since_ns}{' over' if over else ''}"
        case ForgetJob(job_id):
            return f"ForgetJob {job_id}"
        case JobOver(job_id):
            return f"JobOver {job_id}"
        case CloseSession(reason):
            return f"CloseSession: {reason}"
    return type(command).__name__
