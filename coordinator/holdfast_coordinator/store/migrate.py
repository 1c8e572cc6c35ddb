"""Brings a database to the newest schema.

A new database gets all tables at once, and one that is at the newest revision is left alone, both without importing
Alembic, which takes longer than all the rest of opening it. A test holds the migrations to the tables.
"""

from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

from holdfast_coordinator.store import tables
from holdfast_coordinator.store.api import StoreTooNewError

NEWEST = "0001"
VERSIONS = Path(__file__).parent / "versions"


def to_newest(engine: Engine, path: Path) -> None:
    """Migrate. Raises StoreTooNewError."""
    with engine.begin() as connection:
        found = revision(connection)
        if found == NEWEST:
            return
        if found is None:
            tables.metadata.create_all(connection)
            _stamp(connection)
            return
    if not any(VERSIONS.glob(f"{found}_*.py")):
        raise StoreTooNewError(
            f"{path} was written by a newer version of holdfast (revision {found}): install that version"
        )
    upgrade(engine)


def revision(connection: Connection) -> str | None:
    """The revision of a database; None for a new one."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return found


def upgrade(engine: Engine) -> None:
    """Run the migrations that are missing."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(VERSIONS.parent))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _stamp(connection: Connection) -> None:
    connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
    connection.execute(text("INSERT INTO alembic_version VALUES (:newest)"), {"newest": NEWEST})
