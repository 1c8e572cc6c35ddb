"""The tables. Keys, states, times and numbers are columns; what is nested is JSON.

A column has the name of the field it keeps; `rows.py` relies on that. What a commit holds is kept once, as rows of
its shards: its own row has none, and a gang's row has the step of the commit.
"""

from sqlalchemy import BigInteger, Boolean, Column, Double, Index, MetaData, Table

from holdfast_coordinator.store.columns import Json, JsonOrNull, Text

metadata = MetaData()

leader = Table(
    "leader",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),  # always 1: there is one leader
    Column("epoch", BigInteger, nullable=False),
    # Where several coordinators share the database: who leads, and until when by the database's clock.
    Column("holder", Text),
    Column("until_ms", BigInteger),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("request_id", Text, nullable=False),
    Column("spec", Json, nullable=False),
    Column("desired", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("started_ms", BigInteger, nullable=False),
    Column("finished_ms", BigInteger, nullable=False),
    Column("ending", Text),
    Column("force", Boolean, nullable=False),
    Column("restarts_asked", Json, nullable=False),
    Column("over_ms", BigInteger, nullable=False),
)

gangs = Table(
    "gangs",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("index", BigInteger, primary_key=True),
    Column("attempt", BigInteger, nullable=False),
    Column("restarts", BigInteger, nullable=False),
    Column("streak", Json, nullable=False),
    Column("best_step", BigInteger, nullable=False),
    Column("not_before_ms", BigInteger, nullable=False),
    Column("cause", Text, nullable=False),
    Column("master_addr", Text, nullable=False),
    Column("master_port", BigInteger, nullable=False),
    Column("commit", BigInteger),  # the step of it
    Column("kept", Json, nullable=False),
    Column("pins", Json, nullable=False),
    Column("dropping", Json, nullable=False),
    Column("failed_step", BigInteger, nullable=False),
    Column("degraded_commits", BigInteger, nullable=False),
    Column("repeat", Json, nullable=False),
    Column("excluded", Json, nullable=False),
    Column("short_since_ms", BigInteger, nullable=False),
    Column("broke_ms", BigInteger, nullable=False),
    Column("redone", BigInteger, nullable=False),
    Column("stopping", JsonOrNull),
)

workers = Table(
    "workers",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("rank", BigInteger, primary_key=True),
    Column("gang", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempt", BigInteger, nullable=False),
    Column("node", Text, nullable=False),
    Column("homes", Json, nullable=False),
    Column("local_rank", BigInteger, nullable=False),
    Column("group_rank", BigInteger, nullable=False),
    Column("local_world_size", BigInteger, nullable=False),
    Column("gpus", Json, nullable=False),
    Column("pid", BigInteger, nullable=False),
    Column("pid_start", BigInteger, nullable=False),
    Column("started_ms", BigInteger, nullable=False),
    Column("resume_step", BigInteger),
    Column("exit", JsonOrNull),
    Column("progress", Json, nullable=False),
    Column("account", Json, nullable=False),
    Column("hang", JsonOrNull),
    Column("straggler", Json, nullable=False),
    Column("stop_at", BigInteger),
)

nodes = Table(
    "nodes",
    metadata,
    Column("name", Text, primary_key=True),
    Column("instance_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("capacity", Json, nullable=False),
    Column("joined_ms", BigInteger, nullable=False),
    Column("session", Text, nullable=False),
    Column("boot_id", Text, nullable=False),
    Column("labels", Json, nullable=False),
    Column("agent_version", Text, nullable=False),
    Column("ports", Json, nullable=False),
    Column("strays", Json, nullable=False),
    Column("clock_offset_ns", BigInteger, nullable=False),
    Column("gone_after_ms", BigInteger, nullable=False),
    Column("cordon", JsonOrNull),
    Column("lost_ms", BigInteger, nullable=False),
)

# Those that are prepared, and those of the commits: with the row of a commit all of its step become its own.
shards = Table(
    "shards",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("gang", BigInteger, primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("rank", BigInteger, primary_key=True),
    Column("attempt", BigInteger, nullable=False),
    Column("shard", Json, nullable=False),
    sqlite_with_rowid=False,  # those of a step lie side by side, and once
)

entries = Table(
    "entries",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("job_id", Text, nullable=False),
    Column("node", Text, nullable=False),
    Column("rank", BigInteger),
    Column("attempt", BigInteger, nullable=False),
    Column("evidence", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Index("entries_by_job", "job_id", "seq"),
)

commits = Table(
    "commits",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("gang", BigInteger, primary_key=True),
    Column("attempt", BigInteger, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("rank", BigInteger),
    Column("world_size", BigInteger, nullable=False),
)

# In a file of their own: see sqlite_points.
curves = MetaData()

points = Table(
    "points",
    curves,
    Column("job_id", Text, primary_key=True),
    Column("series", Text, primary_key=True),
    Column("at_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("step", BigInteger, nullable=False),
    Column("value", Double, nullable=False),
    sqlite_with_rowid=False,  # those of a series lie side by side, and once
)
