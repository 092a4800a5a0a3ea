"""``kdtable report --format html``: the page of what a store holds."""

import json
import re
import zlib
from base64 import b64decode
from pathlib import Path

from tests.cli.command import Call

PAIR = "resnet14:resnet8"


def _json(page: str) -> dict[str, dict[str, list[object]]]:
    (packed,) = re.findall(r'<script type="application/octet-stream" id="details">(.*?)</script>', page, re.DOTALL)
    found: dict[str, dict[str, list[object]]] = json.loads(zlib.decompress(b64decode(packed)))
    return found


def test_the_page_shows_the_numbers_of_the_table(call: Call, after_grid: Path) -> None:
    done = call("report", "--format", "html", "-o", "report.html")
    assert (done.code, done.err) == (0, "")
    page = Path("report.html").read_text("utf-8")
    for rule in ("last", "best"):
        tables = json.loads(call("report", "--format", "json", "--epoch", rule).out)
        means = [cell["mean"] for table in tables for cell in table["cells"] if cell["mean"] is not None]
        assert means
        assert all(f"<b>{mean:.2f}</b>" in page for mean in means)
    assert "Gain over kd" in page
    assert "Learning curves" in page


def test_the_page_knows_every_run(call: Call, after_grid: Path) -> None:
    call("report", "--format", "html", "-o", "report.html")
    details = _json(Path("report.html").read_text("utf-8"))
    lines = [line for line in details["lines"] if isinstance(line, list)]
    commands = {text for label, text in lines if not label and str(text).startswith("kdtable run ")}
    tables = json.loads(call("report", "--format", "json").out)
    finished = sum(cell["n"] for table in tables for cell in table["cells"] if cell["row"] != "teacher")
    assert len(commands) == len(details["runs"]) == finished
    assert any(f"--pairs {PAIR} --methods kd " in command for command in commands)
    terms = {curve[2] for _, curves in details["runs"].values() for curve in curves}  # type: ignore[attr-defined, misc]
    assert {"train", "ce", "kd", "crd", "at"} <= terms


def test_published_numbers_need_no_store(call: Call) -> None:
    done = call("report", "--table", "crd-1", "--compare", "--format", "html")
    assert (done.code, done.err) == (0, "")
    assert "No run is done yet." in done.out
    assert '<span class="pub">75.48' in done.out  # CRD on WRN-40-2 and WRN-16-2
