"""What all tests share."""

import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

from kdtable import plugins
from tests import postgres
from tests.golden_session import (
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_runtest_makereport,
)

__all__ = ["pytest_addoption", "pytest_collection_modifyitems", "pytest_configure", "pytest_runtest_makereport"]

# One thread per process, as the engine computes: side by side, processes with more would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Machines are shared and noisy: no test fails for being slow.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


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
    programs = postgres.binaries()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    with postgres.serve(programs) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest) -> str | None:
    """Where a test's store is: in its folder, then in an empty PostgreSQL database."""
    if request.param == "sqlite":
        return None
    server: postgres.Server = request.getfixturevalue("postgres_server")
    return server.new_database()
