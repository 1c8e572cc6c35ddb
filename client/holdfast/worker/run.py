"""What a training program holds: `run = holdfast.init()`.

The order of a program:

    run = holdfast.init()
    data = run.dataset(source, batch_size=64)     # before or after restore
    state = run.restore(default=make_state())     # arrays, step and cursors of the committed step
    for batch in data:                            # goes on where the checkpoint was taken
        loss = train(state, batch)
        run.step(loss=loss)                       # this batch is done
        run.checkpoint(state, every=100)          # after the step, so that the cursor and the arrays agree

This module is imported at every start and so imports next to nothing; what checkpoints need comes with the first.
"""

import atexit
import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from holdfast.heartbeat import STEP_AT, Writer, now_ns, pack_step
from holdfast.worker.errors import CheckpointError
from holdfast.worker.identity import Identity, current
from holdfast.worker.report import say

if TYPE_CHECKING:
    from holdfast.worker.dataset import Dataset
    from holdfast.worker.saver import Load, Resumed, Saver

EXIT_PATIENCE = 30.0
"""How many seconds a worker that is done waits for the answer to its last checkpoint."""


class Run:
    """One worker of a job, from inside. Not thread-safe: the training loop uses it.

    `rank`, `world_size`, `local_rank`, `attempt` and `job_id` say who this is; `independent`, that it commits its
    checkpoints by itself (restart scope "rank"). `resume_step` is the committed step
    that this attempt resumes from, or None; outside holdfast it is known once `restore` was called.
    """

    def __init__(self, identity: Identity) -> None:
        self.rank = identity.rank
        self.world_size = identity.world_size
        self.local_rank = identity.local_rank
        self.attempt = identity.attempt
        self.job_id = identity.job_id
        self.resume_step = identity.resume_step
        self.independent = identity.independent
        self._identity = identity
        self._heartbeat = _heartbeat(identity.heartbeat_file)
        self._step = 0
        self._metrics: dict[str, Any] = {}
        self._total_steps: int | None = None
        self._datasets: list[Dataset] = []
        self._cursors: list[dict[str, Any]] = []
        self._saver: Saver | None = None
        self._told = False
        self._forked = False
        os.register_at_fork(after_in_child=self._let_go)

    def step(self, step: int | None = None, **metrics: float) -> int:
        """Report that a step is done: a heartbeat, progress, and metrics. Returns its number.

        Steps are counted from 1, or on from the restored one, unless `step` gives the number. A metric is anything
        that float() takes. Costs microseconds, and no system call.
        """
        if step is None:
            step = self._step + 1
        self._step = step
        beat = self._heartbeat
        # Writer.step, written out: a call less in what is called most.
        beat.steps_done = done = beat.steps_done + 1
        pack_step(beat.page, STEP_AT, step, done, beat.first_ns or beat.begin(), now_ns())
        if metrics:
            self._metrics = metrics
            for name, value in metrics.items():
                beat.metric(name, float(value))
        return step

    @property
    def total_steps(self) -> int | None:
        """How many steps there will be in all, which gives the job an ETA; None: not known.

        Known from a data set with an end, if there is one data set; a program may set it otherwise.
        """
        if self._total_steps is None and len(self._datasets) == 1 and self._datasets[0].done is not None:
            return len(self._datasets[0])
        return self._total_steps

    @total_steps.setter
    def total_steps(self, steps: int) -> None:
        self._total_steps = steps
        self._heartbeat.expect(steps)

    @contextlib.contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Say what the program does inside a `with` block when that is not stepping, for instance "eval"."""
        before = self._heartbeat.section(name)
        try:
            yield
        finally:
            stepping = before == "setup" and self._heartbeat.steps_done > 0
            self._heartbeat.section("step" if stepping else before)

    def dataset(
        self,
        source: Any,
        batch_size: int,
        *,
        seed: int = 0,
        epochs: int | None = 1,
        partition: bool | None = None,
        window: int | None = None,
    ) -> "Dataset":
        """This rank's share of a data set, as an iterable of batches that goes on where a checkpoint was taken.

        `source` is a number of samples (batches are int64 arrays of indices), an array, or a tuple or dict of arrays
        of one length (batches are the same of them); or shards: a directory, a prefix such as s3://bucket/train/, a
        glob, a list of files, or the name of a data set of the job. Their formats are those of
        `holdfast.data.formats`, and they are shuffled `window` samples at a time. The order of an epoch depends on
        the number of samples (for shards: on the list of them, and `window`), `seed` and the epoch alone. `epochs`
        counts all of them, also those before a restart; None goes on for ever.

        Ranks that work together (scope "gang") share each batch: `batch_size` is that of all of them and must divide
        by the world size. Independent ranks (scope "rank") have each a fixed partition of the samples and batches of
        `batch_size` of their own. `partition` overrides what the scope says. The last batch of an epoch holds what
        is left: every sample is taken once an epoch.

        A program with several data sets makes them in the same order in every attempt.
        Raises ValueError, TypeError, DataError, and CheckpointMismatch when the restored cursor is of another data
        set. A shard that is not what was counted raises ShardChanged in the loop.
        """
        from holdfast.worker.dataset import make_dataset

        dataset = make_dataset(
            source, self._identity, batch_size, seed=seed, epochs=epochs, partition=partition, window=window
        )
        self._datasets.append(dataset)
        self._heartbeat.expect(self.total_steps or 0)
        if len(self._cursors) >= len(self._datasets):
            dataset.restore(self._cursors[len(self._datasets) - 1])
        return dataset

    def restore(self, default: Any = None) -> Any:
        """The state of the checkpoint to resume from, verified; `default` itself when there is none.

        Also sets the step counter and the cursors of all data sets. What comes back has the structure that was saved;
        see `holdfast.worker.state` for what a state may hold and how `default` is compared with it. Raises
        CheckpointCorrupt, CheckpointMismatch, and CheckpointError when checkpoints are impossible here.
        A checkpoint that fails verification is set aside, and the one before it is used.
        """
        resumed = self.restore_with(lambda where, commit, rank: where.load(commit, rank, default))
        return default if resumed is None else resumed.state

    def restore_with(self, load: "Load") -> "Resumed | None":
        """`restore` for states that are read in another way, by `load`; None when there is no checkpoint."""
        identity = self._identity
        if identity.supervised and identity.resume_step is None and not identity.resume_from:
            return None
        import json

        resumed = self._checkpoints().restore(load)
        if resumed is None:
            return None
        self._step = self.resume_step = resumed.step
        self._cursors = json.loads(resumed.cursor) if resumed.cursor else []
        for dataset, saved in zip(self._datasets, self._cursors, strict=False):
            dataset.restore(saved)
        if not identity.supervised:
            say(f"resumed {self.job_id} from step {resumed.step} in {identity.checkpoint_uri}")
        return resumed

    def checkpoint(self, state: Any, every: int | None = None, *, wait: bool = False) -> None:
        """Take a checkpoint of `state`, if the step is a multiple of `every`. Call it after `step`.

        `state` may be a function that returns it, called only when it is needed. Copies the state aside and
        returns; it is written, and committed together with those of the other ranks, while training goes on. One
        checkpoint is under way at a time: this waits when the one before it is still being written. `wait` stays
        until this one is committed. A step that was already saved is not saved again. What cannot be written is
        reported on stderr and in the job's events and tried again, and does no harm to training, unless `wait` is
        set: then OSError is raised. Raises TypeError when the state holds what a checkpoint cannot.
        """
        step = self._step
        if every is not None and step % every:
            return
        saver = self._checkpoints()
        with self.section("checkpoint"):
            if step > saver.last_step:
                value = state() if callable(state) else state
                saver.save(step, value, self._cursor(), self._metrics_now(), wait=wait)
            elif step < saver.last_step:
                self._tell_behind(step, saver.last_step)
            if wait:
                saver.settle()

    def gather(self, step: int | None = None, *, timeout: float | None = None) -> list[Any]:
        """The states that every rank committed, by rank: for combining models that were trained independently.

        Waits until each rank has committed `step`, or, without it, its final checkpoint: the one at the end of its
        data sets; for a program without data sets, of the step this rank is at. This rank's own must be saved
        already. All ranks must see the same checkpoint directory. Raises TimeoutError after `timeout` seconds,
        naming the ranks that are missing, and CheckpointError when this rank itself is behind.
        """
        from holdfast.worker.gather import gather

        saver = self._checkpoints()
        with self.section("gather"):
            if not saver.settle(timeout):
                raise TimeoutError(f"this rank's own checkpoint was not committed within {timeout:g} s")
            want = self._step if step is None else step
            if not saver.committed(want) or (
                step is None and any(data.done is False for data in self._datasets)
            ):
                raise CheckpointError(
                    f"gather at step {want}: this rank's own checkpoint is not committed or not its last; "
                    "call run.checkpoint(state, wait=True) after the loop and before gather"
                )
            return gather(saver.places(), step, self._step, timeout)

    def close(self) -> None:
        """Wait for the answer to the last checkpoint, at most EXIT_PATIENCE seconds. Called at exit."""
        if self._saver is not None and not self._forked:
            self._saver.close(EXIT_PATIENCE)
            self._saver = None

    def _checkpoints(self) -> "Saver":
        if self._forked:
            raise CheckpointError(
                "this process was forked from the worker; only the worker itself takes checkpoints"
            )
        if self._saver is None:
            from holdfast.worker.saver import Saver

            self._saver = Saver(self._identity)
        return self._saver

    def _cursor(self) -> str:
        import json

        return json.dumps([dataset.save() for dataset in self._datasets], separators=(",", ":"))

    def _metrics_now(self) -> dict[str, float]:
        """What the last step reported."""
        return {name: float(value) for name, value in self._metrics.items()}

    def _tell_behind(self, step: int, last: int) -> None:
        if not self._told:
            self._told = True
            say(
                f"no checkpoint is taken at step {step}: there is one of step {last} already; "
                "call run.restore() first, or remove the checkpoints to start anew"
            )

    def _let_go(self) -> None:
        self._forked = True
        self._heartbeat.detach()
        if self._saver is not None:
            self._saver.abandon()


def _heartbeat(path: str | None) -> Writer:
    try:
        return Writer(path)
    except OSError as error:
        say(f"no heartbeat: {error}")
        return Writer(None)


_run: Run | None = None


def init() -> Run:
    """Who this worker is, and what it resumes from: the same Run at every call.

    Outside holdfast it is a world of one, with nothing to set up. Raises ValueError when a variable of the
    environment is no number.
    """
    global _run  # noqa: PLW0603  a process is one worker
    if _run is None:
        _run = Run(current())
        atexit.register(_run.close)
    return _run
