"""The tables. Keys, states, times and numbers are columns; what is nested is JSON.

A column has the name of the field it keeps; `rows.py` relies on that. What a commit holds is kept once, as rows of
its shards: its own row has none, and a gang's row has the step of the commit.
"""

from sqlalchemy import JSON, BigInteger, Boolean, Column, Double, Index, Integer, MetaData, String, Table

metadata = MetaData()

leader = Table(
    "leader",
    metadata,
    Column("id", Integer, primary_key=True),  # always 1: there is one leader
    Column("epoch", BigInteger, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String, primary_key=True),
    Column("request_id", String, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("desired", String, nullable=False),
    Column("state", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("started_ms", BigInteger, nullable=False),
    Column("finished_ms", BigInteger, nullable=False),
    Column("ending", String),
    Column("force", Boolean, nullable=False),
    Column("restarts_asked", JSON, nullable=False),
    Column("over_ms", BigInteger, nullable=False),
)

gangs = Table(
    "gangs",
    metadata,
    Column("job_id", String, primary_key=True),
    Column("index", Integer, primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("restarts", Integer, nullable=False),
    Column("streak", JSON, nullable=False),
    Column("best_step", BigInteger, nullable=False),
    Column("not_before_ms", BigInteger, nullable=False),
    Column("cause", String, nullable=False),
    Column("master_addr", String, nullable=False),
    Column("master_port", Integer, nullable=False),
    Column("commit", BigInteger),  # the step of it
    Column("kept", JSON, nullable=False),
    Column("pins", JSON, nullable=False),
    Column("dropping", JSON, nullable=False),
    Column("failed_step", BigInteger, nullable=False),
    Column("degraded_commits", Integer, nullable=False),
    Column("repeat", JSON, nullable=False),
    Column("excluded", JSON, nullable=False),
    Column("short_since_ms", BigInteger, nullable=False),
    Column("broke_ms", BigInteger, nullable=False),
    Column("redone", BigInteger, nullable=False),
    Column("stopping", JSON(none_as_null=True)),
)

workers = Table(
    "workers",
    metadata,
    Column("job_id", String, primary_key=True),
    Column("rank", Integer, primary_key=True),
    Column("gang", Integer, nullable=False),
    Column("state", String, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("node", String, nullable=False),
    Column("homes", JSON, nullable=False),
    Column("local_rank", Integer, nullable=False),
    Column("group_rank", Integer, nullable=False),
    Column("local_world_size", Integer, nullable=False),
    Column("gpus", JSON, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("pid_start", BigInteger, nullable=False),
    Column("started_ms", BigInteger, nullable=False),
    Column("resume_step", BigInteger),
    Column("exit", JSON(none_as_null=True)),
    Column("progress", JSON, nullable=False),
    Column("account", JSON, nullable=False),
    Column("hang", JSON(none_as_null=True)),
    Column("straggler", JSON, nullable=False),
    Column("stop_at", BigInteger),
)

nodes = Table(
    "nodes",
    metadata,
    Column("name", String, primary_key=True),
    Column("instance_id", String, nullable=False),
    Column("state", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("address", String, nullable=False),
    Column("capacity", JSON, nullable=False),
    Column("joined_ms", BigInteger, nullable=False),
    Column("session", String, nullable=False),
    Column("boot_id", String, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("agent_version", String, nullable=False),
    Column("ports", JSON, nullable=False),
    Column("strays", JSON, nullable=False),
    Column("clock_offset_ns", BigInteger, nullable=False),
    Column("gone_after_ms", BigInteger, nullable=False),
    Column("cordon", JSON(none_as_null=True)),
)

# Those that are prepared, and those of the commits: with the row of a commit all of its step become its own.
shards = Table(
    "shards",
    metadata,
    Column("job_id", String, primary_key=True),
    Column("gang", Integer, primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("rank", Integer, primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("shard", JSON, nullable=False),
    sqlite_with_rowid=False,  # those of a step lie side by side, and once
)

entries = Table(
    "entries",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("kind", String, nullable=False),
    Column("message", String, nullable=False),
    Column("job_id", String, nullable=False),
    Column("node", String, nullable=False),
    Column("rank", Integer),
    Column("attempt", Integer, nullable=False),
    Column("evidence", String, nullable=False),
    Column("outcome", String, nullable=False),
    Index("entries_by_job", "job_id", "seq"),
)

commits = Table(
    "commits",
    metadata,
    Column("job_id", String, primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("gang", Integer, primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("rank", Integer),
    Column("world_size", Integer, nullable=False),
)

# In a file of their own: see sqlite_points.
curves = MetaData()

points = Table(
    "points",
    curves,
    Column("job_id", String, primary_key=True),
    Column("series", String, primary_key=True),
    Column("at_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("step", BigInteger, nullable=False),
    Column("value", Double, nullable=False),
    sqlite_with_rowid=False,  # those of a series lie side by side, and once
)
