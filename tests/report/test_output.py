"""Where a report goes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kdtable.errors import BadRequest
from kdtable.report.output import watched, written


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    written("table ± 0.1\n\n", tmp_path / "new" / "report.md")
    assert (tmp_path / "new" / "report.md").read_text(encoding="utf-8") == "table ± 0.1\n"
    written("\x1b[1m70.00\x1b[0m", tmp_path / "bold.txt")
    assert (tmp_path / "bold.txt").read_text() == "70.00\n"
    with pytest.raises(BadRequest, match=r"new cannot be written \(Is a directory\): name another --output"):
        written("text", tmp_path / "new")


def test_watching_draws_until_it_is_interrupted(capsys: pytest.CaptureFixture[str]) -> None:
    def texts() -> Iterator[str]:
        yield from ("first", "second")
        raise KeyboardInterrupt

    drawn = texts()
    watched(lambda: next(drawn), pause=0.0)
    assert capsys.readouterr().out.endswith("second\n")


def test_a_report_that_fails_while_it_is_watched_says_why() -> None:
    def text() -> str:
        raise BadRequest("the store is gone")

    with pytest.raises(BadRequest, match="the store is gone"):
        watched(text, pause=0.0)
