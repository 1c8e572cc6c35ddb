"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    _leader_and_nodes()
    _jobs()
    _checkpoints_and_history()


def _leader_and_nodes() -> None:
    op.create_table(
        "leader",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("epoch", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "nodes",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("instance_id", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("address", sa.String, nullable=False),
        sa.Column("capacity", sa.JSON, nullable=False),
        sa.Column("joined_ms", sa.BigInteger, nullable=False),
        sa.Column("session", sa.String, nullable=False),
        sa.Column("boot_id", sa.String, nullable=False),
        sa.Column("labels", sa.JSON, nullable=False),
        sa.Column("agent_version", sa.String, nullable=False),
        sa.Column("ports", sa.JSON, nullable=False),
        sa.Column("strays", sa.JSON, nullable=False),
        sa.Column("clock_offset_ns", sa.BigInteger, nullable=False),
        sa.Column("gone_after_ms", sa.BigInteger, nullable=False),
        sa.Column("cordon", sa.JSON(none_as_null=True)),
    )


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("request_id", sa.String, nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("desired", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("started_ms", sa.BigInteger, nullable=False),
        sa.Column("finished_ms", sa.BigInteger, nullable=False),
        sa.Column("ending", sa.String),
        sa.Column("force", sa.Boolean, nullable=False),
        sa.Column("restarts_asked", sa.JSON, nullable=False),
        sa.Column("over_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "gangs",
        sa.Column("job_id", sa.String, primary_key=True),
        sa.Column("index", sa.Integer, primary_key=True),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("restarts", sa.Integer, nullable=False),
        sa.Column("streak", sa.JSON, nullable=False),
        sa.Column("best_step", sa.BigInteger, nullable=False),
        sa.Column("not_before_ms", sa.BigInteger, nullable=False),
        sa.Column("cause", sa.String, nullable=False),
        sa.Column("master_addr", sa.String, nullable=False),
        sa.Column("master_port", sa.Integer, nullable=False),
        sa.Column("commit", sa.BigInteger),
        sa.Column("kept", sa.JSON, nullable=False),
        sa.Column("pins", sa.JSON, nullable=False),
        sa.Column("dropping", sa.JSON, nullable=False),
        sa.Column("failed_step", sa.BigInteger, nullable=False),
        sa.Column("degraded_commits", sa.Integer, nullable=False),
        sa.Column("repeat", sa.JSON, nullable=False),
        sa.Column("excluded", sa.JSON, nullable=False),
        sa.Column("short_since_ms", sa.BigInteger, nullable=False),
        sa.Column("broke_ms", sa.BigInteger, nullable=False),
        sa.Column("redone", sa.BigInteger, nullable=False),
        sa.Column("stopping", sa.JSON(none_as_null=True)),
    )
    op.create_table(
        "workers",
        sa.Column("job_id", sa.String, primary_key=True),
        sa.Column("rank", sa.Integer, primary_key=True),
        sa.Column("gang", sa.Integer, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("node", sa.String, nullable=False),
        sa.Column("homes", sa.JSON, nullable=False),
        sa.Column("local_rank", sa.Integer, nullable=False),
        sa.Column("group_rank", sa.Integer, nullable=False),
        sa.Column("local_world_size", sa.Integer, nullable=False),
        sa.Column("gpus", sa.JSON, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("pid_start", sa.BigInteger, nullable=False),
        sa.Column("started_ms", sa.BigInteger, nullable=False),
        sa.Column("resume_step", sa.BigInteger),
        sa.Column("exit", sa.JSON(none_as_null=True)),
        sa.Column("progress", sa.JSON, nullable=False),
        sa.Column("account", sa.JSON, nullable=False),
        sa.Column("hang", sa.JSON(none_as_null=True)),
        sa.Column("straggler", sa.JSON, nullable=False),
        sa.Column("stop_at", sa.BigInteger),
    )


def _checkpoints_and_history() -> None:
    op.create_table(
        "shards",
        sa.Column("job_id", sa.String, primary_key=True),
        sa.Column("gang", sa.Integer, primary_key=True),
        sa.Column("step", sa.BigInteger, primary_key=True),
        sa.Column("rank", sa.Integer, primary_key=True),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("shard", sa.JSON, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "commits",
        sa.Column("job_id", sa.String, primary_key=True),
        sa.Column("step", sa.BigInteger, primary_key=True),
        sa.Column("gang", sa.Integer, primary_key=True),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("rank", sa.Integer),
        sa.Column("world_size", sa.Integer, nullable=False),
    )
    op.create_table(
        "entries",
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("message", sa.String, nullable=False),
        sa.Column("job_id", sa.String, nullable=False),
        sa.Column("node", sa.String, nullable=False),
        sa.Column("rank", sa.Integer),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("evidence", sa.String, nullable=False),
        sa.Column("outcome", sa.String, nullable=False),
    )
    op.create_index("entries_by_job", "entries", ["job_id", "seq"])
