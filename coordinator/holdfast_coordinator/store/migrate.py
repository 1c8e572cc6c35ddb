"""Brings a database to the newest schema.

A new database gets all tables at once, and one that is at the newest revision is left alone, both without importing
Alembic, which takes longer than all the rest of opening it. Tests hold the migrations to the tables.
"""

from pathlib import Path

from sqlalchemy import Column, Connection, MetaData, PrimaryKeyConstraint, String, Table, inspect, select

from holdfast_coordinator.store import tables
from holdfast_coordinator.store.api import StoreError, StoreTooNewError

NEWEST = "0001"
SCRIPTS = Path(__file__).parent

# Alembic's own table, as Alembic makes it.
_version = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)


def to_newest(connection: Connection, where: str, instead: str) -> None:
    """Migrate the database at `where`, in the transaction that the connection is in. Raises StoreTooNewError.

    `instead` is what else could be used.
    """
    found = _revision(connection)
    if found == NEWEST:
        return
    if found is None:
        tables.metadata.create_all(connection, checkfirst=False)
        _version.create(connection)
        connection.execute(_version.insert(), {"version_num": NEWEST})
    elif any(SCRIPTS.glob(f"versions/{found}_*.py")):
        upgrade(connection)
    else:
        raise StoreTooNewError(
            f"{where} was written by a newer version of holdfast (revision {found}): use that version, "
            f"or {instead}"
        )


def must_be_newest(connection: Connection, where: str) -> None:
    """Raises StoreError for a database without our tables, or with those of another version."""
    found = _revision(connection)
    if found is None:
        raise StoreError(f"{where} holds no state of a coordinator")
    if found != NEWEST:
        raise StoreError(
            f"{where} has the tables of another version of holdfast (revision {found}): use that one"
        )


def is_new(connection: Connection) -> bool:
    """Whether nothing was ever made in a database."""
    return _revision(connection) is None


def upgrade(connection: Connection) -> None:
    """Run the migrations that are missing."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _revision(connection: Connection) -> str | None:
    """The revision of a database; None for a new one."""
    if not inspect(connection).has_table(_version.name):
        return None
    return connection.scalar(select(_version.c.version_num))
