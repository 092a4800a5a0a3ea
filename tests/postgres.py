"""A PostgreSQL server of the tests' own, in a temporary folder."""

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

USER = "kdtable"


def binaries() -> Path | None:
    """The folder of PostgreSQL's programs, the newest where there are several."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    found = debian[-1] if debian else shutil.which("initdb")
    return Path(found).resolve().parent if found else None


@dataclass(frozen=True)
class Server:
    """A running server, reached through a socket in ``folder``."""

    folder: Path
    programs: Path
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        """Start it, also again, and wait until it answers."""
        settings = ("-c", "listen_addresses=", "-c", "fsync=off", "-c", f"unix_socket_directories={self.folder}")
        with (self.folder / "log").open("a") as log:
            words = [self.programs / "postgres", "-D", self.folder / "data", *settings]
            self._running.append(subprocess.Popen(words, stderr=log, **_unprivileged(self.folder)))
        while not self.answers():
            assert self._running[-1].poll() is None, (self.folder / "log").read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        """End it at once, as a crash would: it recovers when it is started again."""
        while self._running:
            process = self._running.pop()
            process.send_signal(signal.SIGQUIT)
            process.wait()

    def processor_seconds(self) -> float:
        """Processor time of all its processes that live."""
        main = psutil.Process(self._running[-1].pid)
        return sum(sum(one.cpu_times()[:2]) for one in (main, *main.children()))

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"test{next(self._numbers)}"
        with psycopg.connect(self._connection("postgres"), autocommit=True) as db:
            db.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://{USER}@/{name}?host={self.folder}"

    def answers(self) -> bool:
        try:
            psycopg.connect(self._connection("postgres")).close()
        except psycopg.OperationalError:
            return False
        return True

    def _connection(self, database: str) -> str:
        return f"host={self.folder} user={USER} dbname={database}"


@contextmanager
def serve() -> Iterator[Server]:
    """A server that lives as long as the block; skips the test where PostgreSQL is not installed."""
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    with tempfile.TemporaryDirectory(prefix="kdtable-postgres-", dir="/tmp") as name:  # a socket's path is short
        folder = Path(name)
        data = folder / "data"
        made = subprocess.run(
            [programs / "initdb", "-D", data, "-U", USER, "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"],
            capture_output=True,
            text=True,
            check=False,
            **_unprivileged(folder),
        )
        assert made.returncode == 0, made.stderr
        server = Server(folder, programs)
        try:
            server.start()
            yield server
        finally:
            server.stop()


def _unprivileged(folder: Path) -> dict[str, Any]:
    """How to start the server's programs: they refuse to work for root."""
    if os.geteuid() != 0:
        return {"cwd": folder}
    names = {entry.pw_name for entry in pwd.getpwall()}
    user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
    os.chown(folder, user.pw_uid, user.pw_gid)
    return {"cwd": folder, "user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
