"""The tables of a new database and those that the migrations make are the same."""

import sqlite3
import subprocess
import sys

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from holdfast_coordinator.core.state import Settings, State
from holdfast_coordinator.store import migrate, tables
from holdfast_coordinator.store.sqlite import FILE, SqliteStore


@pytest.fixture
def migrated(tmp_path):
    """A database that Alembic made, from nothing to the newest revision."""
    engine = create_engine(f"sqlite:///{tmp_path / 'migrated.db'}")
    with engine.connect() as connection:
        with connection.begin():
            migrate.upgrade(connection)
        yield connection
    engine.dispose()


def schema(execute):
    return {(kind, name): sql for kind, name, sql in execute("SELECT type, name, sql FROM sqlite_master")}


def test_the_migrations_make_the_tables(migrated):
    assert compare_metadata(MigrationContext.configure(migrated), tables.metadata) == []


def test_a_new_database_is_what_the_migrations_make(migrated, tmp_path):
    SqliteStore(tmp_path / "new").close()
    new = sqlite3.connect(tmp_path / "new" / FILE)
    try:
        assert schema(new.execute) == schema(migrated.exec_driver_sql)
        assert new.execute("SELECT version_num FROM alembic_version").fetchall() == [(migrate.NEWEST,)]
    finally:
        new.close()


def test_the_newest_revision_is_the_newest():
    config = Config()
    config.set_main_option("script_location", str(migrate.SCRIPTS))
    assert ScriptDirectory.from_config(config).get_heads() == [migrate.NEWEST]


def test_an_older_database_is_migrated_when_it_is_opened(tmp_path, monkeypatch):
    """To the store of a later version, a database of today is an older one."""
    SqliteStore(tmp_path).close()
    monkeypatch.setattr(migrate, "NEWEST", "9999")
    upgraded = []
    monkeypatch.setattr(migrate, "upgrade", upgraded.append)
    SqliteStore(tmp_path).close()
    assert len(upgraded) == 1


def test_a_database_is_made_whole_or_not_at_all(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(migrate._version, "create", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            SqliteStore(tmp_path)
    left = sqlite3.connect(tmp_path / FILE)
    assert schema(left.execute) == {}
    left.close()
    store = SqliteStore(tmp_path)
    assert store.load(Settings()) == State()
    store.close()


def test_opening_waits_neither_for_alembic_nor_for_another_database(tmp_path):
    script = (
        "import sys; from pathlib import Path; from holdfast_coordinator.store.sqlite import SqliteStore\n"
        "import holdfast_coordinator.app\n"
        "for _ in range(2): SqliteStore(Path(sys.argv[1])).close()\n"
        "sys.exit(bool({'alembic', 'psycopg'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path], check=True, timeout=60)
