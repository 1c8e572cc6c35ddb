"""The first schema."""

import sqlalchemy as sa
from alembic import op

from holdfast_coordinator.store.columns import Json, JsonOrNull, Text

revision = "0001"
down_revision = None


def upgrade() -> None:
    _leader_and_nodes()
    _jobs()
    _checkpoints_and_history()


def _leader_and_nodes() -> None:
    op.create_table(
        "leader",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("holder", Text),
        sa.Column("until_ms", sa.BigInteger),
    )
    op.create_table(
        "nodes",
        sa.Column("name", Text, primary_key=True),
        sa.Column("instance_id", Text, nullable=False),
        sa.Column("state", Text, nullable=False),
        sa.Column("reason", Text, nullable=False),
        sa.Column("address", Text, nullable=False),
        sa.Column("capacity", Json, nullable=False),
        sa.Column("joined_ms", sa.BigInteger, nullable=False),
        sa.Column("session", Text, nullable=False),
        sa.Column("boot_id", Text, nullable=False),
        sa.Column("labels", Json, nullable=False),
        sa.Column("agent_version", Text, nullable=False),
        sa.Column("ports", Json, nullable=False),
        sa.Column("strays", Json, nullable=False),
        sa.Column("clock_offset_ns", sa.BigInteger, nullable=False),
        sa.Column("gone_after_ms", sa.BigInteger, nullable=False),
        sa.Column("cordon", JsonOrNull),
        sa.Column("lost_ms", sa.BigInteger, nullable=False),
    )


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", Text, primary_key=True),
        sa.Column("request_id", Text, nullable=False),
        sa.Column("spec", Json, nullable=False),
        sa.Column("desired", Text, nullable=False),
        sa.Column("state", Text, nullable=False),
        sa.Column("reason", Text, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("started_ms", sa.BigInteger, nullable=False),
        sa.Column("finished_ms", sa.BigInteger, nullable=False),
        sa.Column("ending", Text),
        sa.Column("force", sa.Boolean, nullable=False),
        sa.Column("restarts_asked", Json, nullable=False),
        sa.Column("over_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "gangs",
        sa.Column("job_id", Text, primary_key=True),
        sa.Column("index", sa.BigInteger, primary_key=True),
        sa.Column("attempt", sa.BigInteger, nullable=False),
        sa.Column("restarts", sa.BigInteger, nullable=False),
        sa.Column("streak", Json, nullable=False),
        sa.Column("best_step", sa.BigInteger, nullable=False),
        sa.Column("not_before_ms", sa.BigInteger, nullable=False),
        sa.Column("cause", Text, nullable=False),
        sa.Column("master_addr", Text, nullable=False),
        sa.Column("master_port", sa.BigInteger, nullable=False),
        sa.Column("commit", sa.BigInteger),
        sa.Column("kept", Json, nullable=False),
        sa.Column("pins", Json, nullable=False),
        sa.Column("dropping", Json, nullable=False),
        sa.Column("failed_step", sa.BigInteger, nullable=False),
        sa.Column("degraded_commits", sa.BigInteger, nullable=False),
        sa.Column("repeat", Json, nullable=False),
        sa.Column("excluded", Json, nullable=False),
        sa.Column("short_since_ms", sa.BigInteger, nullable=False),
        sa.Column("broke_ms", sa.BigInteger, nullable=False),
        sa.Column("redone", sa.BigInteger, nullable=False),
        sa.Column("stopping", JsonOrNull),
    )
    op.create_table(
        "workers",
        sa.Column("job_id", Text, primary_key=True),
        sa.Column("rank", sa.BigInteger, primary_key=True),
        sa.Column("gang", sa.BigInteger, nullable=False),
        sa.Column("state", Text, nullable=False),
        sa.Column("attempt", sa.BigInteger, nullable=False),
        sa.Column("node", Text, nullable=False),
        sa.Column("homes", Json, nullable=False),
        sa.Column("local_rank", sa.BigInteger, nullable=False),
        sa.Column("group_rank", sa.BigInteger, nullable=False),
        sa.Column("local_world_size", sa.BigInteger, nullable=False),
        sa.Column("gpus", Json, nullable=False),
        sa.Column("pid", sa.BigInteger, nullable=False),
        sa.Column("pid_start", sa.BigInteger, nullable=False),
        sa.Column("started_ms", sa.BigInteger, nullable=False),
        sa.Column("resume_step", sa.BigInteger),
        sa.Column("exit", JsonOrNull),
        sa.Column("progress", Json, nullable=False),
        sa.Column("account", Json, nullable=False),
        sa.Column("hang", JsonOrNull),
        sa.Column("straggler", Json, nullable=False),
        sa.Column("stop_at", sa.BigInteger),
    )


def _checkpoints_and_history() -> None:
    op.create_table(
        "shards",
        sa.Column("job_id", Text, primary_key=True),
        sa.Column("gang", sa.BigInteger, primary_key=True),
        sa.Column("step", sa.BigInteger, primary_key=True),
        sa.Column("rank", sa.BigInteger, primary_key=True),
        sa.Column("attempt", sa.BigInteger, nullable=False),
        sa.Column("shard", Json, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "commits",
        sa.Column("job_id", Text, primary_key=True),
        sa.Column("step", sa.BigInteger, primary_key=True),
        sa.Column("gang", sa.BigInteger, primary_key=True),
        sa.Column("attempt", sa.BigInteger, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("rank", sa.BigInteger),
        sa.Column("world_size", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "entries",
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("kind", Text, nullable=False),
        sa.Column("message", Text, nullable=False),
        sa.Column("job_id", Text, nullable=False),
        sa.Column("node", Text, nullable=False),
        sa.Column("rank", sa.BigInteger),
        sa.Column("attempt", sa.BigInteger, nullable=False),
        sa.Column("evidence", Text, nullable=False),
        sa.Column("outcome", Text, nullable=False),
    )
    op.create_index("entries_by_job", "entries", ["job_id", "seq"])
