"""What all tests share."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from kdtable import plugins
from tests import golden_session, postgres, slow
from tests.faults.forks import Forks, open_forks
from tests.golden_session import pytest_runtest_makereport

__all__ = ["pytest_runtest_makereport"]

# One thread per process, as the engine computes: side by side, processes with more would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Machines are shared and noisy: no test fails for being slow.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


def pytest_addoption(parser: pytest.Parser) -> None:
    golden_session.pytest_addoption(parser)
    parser.addoption("--cpu-times", metavar="FILE", type=Path, help="write CPU seconds of each test, for tests.slow")


def pytest_configure(config: pytest.Config) -> None:
    golden_session.pytest_configure(config)
    if file := config.getoption("cpu_times"):
        config.pluginmanager.register(slow.Times(config.invocation_params.dir / file))


@pytest.hookimpl(tryfirst=True)  # before tests are deselected
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    slow.mark(items)
    golden_session.pytest_collection_modifyitems(session, config, items)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what tests recorded as "told", from whichever process they ran in."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, text in getattr(report, "user_properties", ()):
                if name == "told" and report.when == "call":
                    terminalreporter.write_line(f"\n{text}")


@pytest.fixture(autouse=True)
def _plugins() -> Iterator[None]:
    """What a test's plug-ins register is gone after it, and so are the folders in which they look for modules."""
    before = list(sys.path)
    yield
    if plugins.loaded():
        plugins.unload()
        sys.path[:] = before


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Server]:
    """A real PostgreSQL server."""
    with postgres.serve() as server:
        yield server


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Starts commands as forks of one process: much quicker than processes that import torch."""
    with open_forks() as opened:
        yield opened


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest) -> str | None:
    """Where a test's store is: in its folder, then in an empty PostgreSQL database."""
    if request.param == "sqlite":
        return None
    server: postgres.Server = request.getfixturevalue("postgres_server")
    return server.new_database()
