"""Events in any order, true or not: whatever agents say, the rows never contradict each other.

The checks are in `Cluster.do`. What an honest fleet does is tests/sim's to play; here agents may err: they find workers
that nobody sent them, forget others, and report exits of attempts that are long over or yet to come.
"""

from dataclasses import replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from holdfast_coordinator.core.events import StepsCompared
from holdfast_coordinator.core.jobspec import HangAction, HangPolicy, Resources, RetentionPolicy, Scope
from holdfast_coordinator.core.model import LIVE, TERMINAL, ReportKind, WorkerState
from tests.core.builders import Key, ended, found, hang, leading, spec

NODES = ("a", "b", "c")
JOBS = {
    "gang": spec(3, backoff_ms=100, budget=4, hang=HangPolicy(HangAction.RESTART)),
    "rank": spec(
        3,
        Scope.RANK,
        backoff_ms=100,
        budget=4,
        resources=Resources(cpus=1.5, gpus=1),
        retention=RetentionPolicy(keep_last=2),
    ),
    "big": spec(
        7,
        backoff_ms=0,
        budget=4,
        no_progress_limit=0,
        retention=RetentionPolicy(keep_last=1, keep_every=4, best=1, metric="x"),
    ),
}

nodes = st.sampled_from(NODES)
jobs = st.sampled_from(sorted(JOBS))
keys = st.builds(Key, jobs, st.integers(0, 2), st.integers(1, 4))
current = st.tuples(jobs, st.integers(0, 6))
"""A rank, in whatever attempt it is now."""
kinds = st.sampled_from(ReportKind)
metric = st.sampled_from([0.5, 1.5, float("inf")])

EVENTS = st.one_of(
    st.tuples(st.just("submit"), jobs),
    st.tuples(st.just("stop"), jobs, st.booleans()),
    st.tuples(st.just("again"), jobs, st.booleans()),
    st.tuples(st.just("delete"), jobs),
    st.tuples(st.just("tick"), st.sampled_from([0, 50, 100, 5_000, 10_000, 86_400_000]), st.sets(nodes)),
    st.tuples(st.just("lose"), nodes),
    st.tuples(st.just("join"), nodes, st.lists(st.tuples(keys, st.booleans()), max_size=3), st.booleans()),
    st.tuples(st.just("rejoin"), nodes, st.integers(0, 255), st.integers(0, 255), st.booleans()),
    st.tuples(st.just("started"), nodes, keys),
    st.tuples(st.just("exited"), nodes, keys, st.integers(0, 1)),
    st.tuples(st.just("prepare"), nodes, keys, st.integers(0, 4)),
    st.tuples(st.just("report"), nodes, keys, kinds, st.integers(0, 9)),
    st.tuples(st.just("all commit"), jobs, st.integers(0, 9), st.sets(st.integers(0, 6)), metric),
    st.tuples(st.just("say"), current, kinds, st.integers(0, 9)),
    st.tuples(st.just("corrupt"), current),
    st.tuples(st.just("pin"), current, st.integers(0, 9), st.sampled_from(["", "a", "b"])),
    st.tuples(st.just("drop"), current, st.integers(0, 9)),
    st.tuples(st.just("up"), current),
    st.tuples(st.just("down"), current, st.integers(0, 1), st.integers(0, 9)),
    st.tuples(st.just("commit"), current, st.integers(0, 9)),
    st.tuples(st.sampled_from(["cordon", "uncordon", "forget"]), nodes),
    st.tuples(st.sampled_from(["drain", "notice"]), nodes, st.sampled_from([0, 100, 60_000])),
    st.tuples(st.just("answer"), current, st.one_of(st.none(), st.integers(0, 9)), st.booleans()),
    st.tuples(st.just("claim to stop"), nodes, keys, st.integers(0, 9)),
    st.tuples(st.just("all answer"), jobs, st.integers(0, 9)),
    st.tuples(st.just("offer"), nodes, st.lists(st.integers(7001, 7004), unique=True, max_size=3)),
    st.tuples(st.just("hung"), nodes, keys, st.integers(1, 2), st.booleans()),
    st.tuples(st.just("hangs"), current, st.integers(1, 2), st.booleans()),
    st.tuples(st.just("compare"), jobs, st.lists(st.tuples(keys, st.floats(1, 900)), max_size=7)),
    st.tuples(st.sampled_from(["restart", "back up", "restore"])),
)


def play(cluster, what, *given):
    match what, given:
        case "submit", (job,):
            # An id is never given twice, also not when its job was deleted.
            if all((e.kind, e.job_id) != ("JobDeleted", job) for e in cluster.timeline):
                cluster.submit(JOBS[job], job)
        case "stop", (job, force):
            cluster.stop(job, force=force)
        case "again", (job, force):
            cluster.again(job, force=force)
        case "delete", (job,):
            cluster.delete(job)
        case "tick", (after_ms, silent):
            cluster.tick(after_ms, *silent)
        case "lose", (node,) if connected(cluster, node):
            cluster.lose_stream(node)
        case "join", (node, inventory, boots):
            cluster.join(node, claimed(inventory), boot_id=f"boot-{boots}")
        case "rejoin", (node, kept, over, boots):
            here = cluster.state.live_on(node)
            inventory = [
                found(worker.key, ended() if over >> number & 1 else None)
                for number, worker in enumerate(here)
                if kept >> number & 1
            ]
            cluster.join(node, tuple(inventory), boot_id=f"boot-{boots}")
        case "restart", ():
            cluster.restart_coordinator()
        case "back up", ():
            cluster.back_up()
        case "restore", ():
            cluster.restore()
        case "all commit", (job, at_step, local, x) if all_connected(cluster, job):
            cluster.commit(at_step, job, local=tuple(local), x=x)
        case "pin", ((job, rank), at_step, name):
            cluster.pin(at_step, name, rank if job == "rank" else None, job)
        case "drop", ((job, rank), at_step):
            cluster.drop_checkpoint(at_step, rank if job == "rank" else None, job)
        case "compare", (job, step_ms):
            found_ms = {replace(which, job_id=job): ms for which, ms in step_ms}
            cluster.do(StepsCompared(cluster.now, job, found_ms))
        case (("cordon" | "uncordon" | "forget"), (node,)):
            getattr(cluster, what)(node)
        case "drain", (node, within_ms):
            cluster.drain(node, within_ms)
        case "notice", (node, within_ms) if connected(cluster, node):
            cluster.notice(node, within_ms=within_ms)
        case "all answer", (job, at_step) if all_connected(cluster, job):
            for worker in cluster.state.workers_of(cluster.job(job)):
                cluster.answer(worker.key, at_step)
        case (("up" | "down" | "commit" | "say" | "corrupt" | "answer" | "hangs"), ((job, rank), *_)):
            worker = cluster.state.workers.get((job, rank))
            if worker is not None and worker.state in LIVE and connected(cluster, worker.node):
                play_worker(cluster, what, worker.key, *given[1:])
        case (
            ("started" | "exited" | "prepare" | "offer" | "report" | "claim to stop" | "hung"),
            (node, *rest),
        ) if connected(cluster, node):
            play_claim(cluster, what, node, *rest)


def connected(cluster, node):
    """Whether there is a session that the node could say something on."""
    return node in cluster.state.nodes and bool(cluster.node(node).session)


def all_connected(cluster, job):
    """Whether every rank of a job runs where it can be heard."""
    workers = cluster.state.workers_of(cluster.job(job)) if job in cluster.state.jobs else []
    return bool(workers) and all(w.state in LIVE and connected(cluster, w.node) for w in workers)


def claimed(inventory):
    by_key = {which: found(which, ended() if over else None) for which, over in inventory}
    return tuple(by_key.values())


def play_worker(cluster, what, which, *given):
    """What a worker that is there does."""
    match what, given:
        case "up", ():
            cluster.started(which)
        case "down", (code, at_step):
            cluster.exited(which, code, at_step=at_step)
        case "commit", (at_step,):
            cluster.prepare(which, at_step)
        case "say", (kind, at_step):
            cluster.report(which, kind, at_step)
        case "hangs", (since, over):
            cluster.hung(which, hang(since_ns=since), over=over)
        case "answer", (at_step, leaves):
            cluster.answer(which, at_step, leaves=leaves)
        case "corrupt", ():
            gang = cluster.gang(cluster.worker(which.rank, which.job_id).gang, which.job_id)
            if gang.commit is not None:
                cluster.corrupt(which, gang.commit.step)


def play_claim(cluster, what, node, *given):
    """What a node says, of whatever worker."""
    match what, given:
        case "started", (which,):
            cluster.started(which, node)
        case "exited", (which, code):
            cluster.exited(which, code, node=node)
        case "prepare", (which, at_step):
            cluster.prepare(which, at_step, node)
        case "report", (which, kind, at_step):
            cluster.report(which, kind, at_step, node=node)
        case "hung", (which, since, over):
            cluster.hung(which, hang(since_ns=since), over=over, node=node)
        case "claim to stop", (which, at_step):
            cluster.answer(which, at_step, node=node)
        case "offer", (ports,):
            cluster.offer(node, *ports)


@settings(max_examples=150)
@given(st.lists(EVENTS, max_size=40))
def test_whatever_agents_say_the_rows_agree(events):
    cluster = leading("a", "b")
    for job in ("gang", "rank"):
        cluster.submit(JOBS[job], job)
    cluster.back_up()
    for event in events:
        play(cluster, *event)


@settings(max_examples=100)
@given(st.lists(EVENTS, max_size=30))
@example([("stop", "big", False), ("delete", "big"), ("submit", "big")])
def test_whatever_happened_honest_agents_bring_every_job_to_an_end(events):
    """Nothing is stuck: once every agent says the truth and every program does well, all that there is ends."""
    cluster = leading("a", "b")
    for job, job_spec in JOBS.items():
        cluster.submit(job_spec, job)
    cluster.back_up()
    for event in events:
        play(cluster, *event)
    for node in list(cluster.state.nodes):
        cluster.uncordon(node)
    for _ in range(12):
        for node in NODES:
            here = cluster.state.live_on(node)
            alive = [found(worker.key) for worker in here if worker.state is not WorkerState.STARTING]
            cluster.join(node, tuple(alive), ports=tuple(range(7010, 7020)))
        for worker in list(cluster.state.workers.values()):
            if cluster.worker(worker.rank, worker.job_id).key == worker.key and worker.state in LIVE:
                cluster.started(worker.key)
                cluster.exited(worker.key, 0)
        cluster.tick(30_000)
    assert {job.state for job in cluster.state.jobs.values()} <= TERMINAL
