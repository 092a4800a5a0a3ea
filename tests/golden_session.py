"""What ``--golden DIR`` does to a session: where golden sets are read, and that none of their cases is left out.

A case that no test runs is a failure, which is collected like a test, so that every process reports it alike; and so is
a case whose test is skipped. With ``--golden`` all golden tests are run, whatever files or folders of tests are named.
"""

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.golden_data import Entry, Root, entries, sets, unread_files

TESTS: Final = sorted(Path(__file__).parent.glob("*/**/test_golden*.py"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        metavar="DIR",
        help="run the golden tests on every set under DIR (DIR/crd, DIR/cd, ..) in place of tests/golden; "
        "a case that is not run is a failure",
    )


def pytest_configure(config: pytest.Config) -> None:
    given = config.getoption("golden")
    if given is None:
        return
    Root.path, Root.is_given = (config.invocation_params.dir / given).resolve(), True
    config.option.golden = str(Root.path)  # for processes that have another working folder
    if not sets():
        raise pytest.UsageError(f"--golden {given}: there is no set, which is a folder DIR/SET with a manifest.json")
    if not _names_single_tests(config):
        named = [(config.invocation_params.dir / arg).resolve() for arg in config.args]
        config.args.extend(str(test) for test in TESTS if not {test, *test.parents} & set(named))


def _names_single_tests(config: pytest.Config) -> bool:
    return any("::" in arg for arg in config.args)


class NotRun(pytest.Item):
    """Golden data that no test has read."""

    def __init__(self, *, reason: str, **node: Any) -> None:
        super().__init__(**node)
        self.reason = reason

    def runtest(self) -> None:
        pytest.fail(self.reason, pytrace=False)

    def reportinfo(self) -> tuple[Path, None, str]:
        return Root.path, None, self.name


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add what is left out, before tests are deselected. Of our own sets it is looked for where all tests are run."""
    everything = Root.is_given or set(TESTS) <= {item.path for item in items}
    if not everything or _names_single_tests(config):
        return
    run = {entry for item in items if (entry := golden_case(item)) is not None}
    items.extend(NotRun.from_parent(session, name=f"golden [{name}]", reason=reason) for name, reason in _left_out(run))


def golden_case(item: pytest.Item) -> Entry | None:
    """The golden case that a test runs."""
    callspec = getattr(item, "callspec", None)
    entry = None if callspec is None else callspec.params.get("entry")
    return entry if isinstance(entry, Entry) else None


def _left_out(run: set[Entry]) -> Iterator[tuple[str, str]]:
    """Names of what no test runs, with the reason."""
    for folder in sorted({path.parent for path in Root.path.glob("*/*.npz")} - set(sets())):
        yield folder.name, f"{folder.name} has arrays and no manifest.json, it was not read"
    for folder in sets():
        try:
            yield from _left_out_of(folder, run)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            yield folder.name, f"the set '{folder.name}' was not run, its manifest cannot be read: {error!r}"


def _left_out_of(folder: Path, run: set[Entry]) -> Iterator[tuple[str, str]]:
    cases = entries(folder)
    left = [entry for entry in cases if entry not in run]
    if len(left) == len(cases):
        names = ", ".join(entry.name for entry in cases) or "none"
        yield folder.name, f"the set '{folder.name}' was not run, this version has no check for it. Its cases: {names}"
        return
    for entry in left:
        yield str(entry), f"a case was not run, there is no check for it: {entry}"
    for file in unread_files(folder):
        yield f"{folder.name}/{file}", f"a file was not read, no case of the manifest names it: {folder.name}/{file}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report a golden case that was skipped as one that failed."""
    report = yield
    if report.skipped and (entry := golden_case(item)) is not None:
        report.outcome = "failed"
        report.longrepr = f"a golden case was skipped: {entry}"
    return report
