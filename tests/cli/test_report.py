import csv
import fcntl
import io
import json
import os
import signal
import statistics
import struct
import subprocess
import sys
import termios
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from kdtable.store import Store
from tests.cli.command import Call, Done, Shell, environment, interruptible, listing, runs_in

PAIR = "resnet14:resnet8"
LABELS = ["teacher", "student", "kd", "at", "crd (dim=8, negatives=16)", "crd+kd (dim=8, negatives=16)"]


def _seeds(folder: Path, label: str, column: str = "last_top1") -> dict[int, float]:
    """The accuracies in the store behind a label, in percent."""
    row = {"student": "vanilla"}.get(label, label.partition(" ")[0])
    runs = [run for run in runs_in(folder / "results").values() if run["student"] == "resnet8" and run["row"] == row]
    return {int(str(run["seed"])): 100 * float(str(run[column])) for run in runs}


def _cells(tables: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {cell["row"]: cell for table in tables for cell in table["cells"] if cell["pair"] == PAIR}


@pytest.mark.parametrize("epoch", ["last", "best"])
def test_json(epoch: str, call: Call, after_grid: Path) -> None:
    done = call("report", "--format", "json", "--epoch", epoch)
    assert (done.code, done.err) == (0, "")
    cells = _cells(json.loads(done.out))
    assert list(cells) == LABELS
    for label in LABELS[1:]:
        seeds = _seeds(after_grid, label, f"{epoch}_top1")
        assert cells[label]["seeds"] == {str(seed): value for seed, value in seeds.items()}
        assert cells[label]["mean"] == pytest.approx(statistics.fmean(seeds.values()))
        assert cells[label]["std"] == pytest.approx(statistics.stdev(seeds.values()))
        assert (cells[label]["n"], cells[label]["asked"], cells[label]["failed"]) == (2, 2, 0)


def test_errors_are_what_is_missing_from_accuracies(call: Call, after_grid: Path) -> None:
    done = call("report", "--metric", "top5-error,top1-error", "--epoch", "best", "--format", "json")
    assert (done.code, done.err) == (0, "")
    (table,) = [t for t in json.loads(done.out) if any(cell["pair"] == PAIR for cell in t["cells"])]
    cells = {(cell["row"], cell["metric"]): cell for cell in table["cells"] if cell["pair"] == PAIR}
    assert [key for key in cells if key[0] == "kd"] == [("kd", "top5-error"), ("kd", "top1-error")]
    for metric in ("top1", "top5"):
        for label in LABELS[1:]:
            expected = {str(seed): 100 - value for seed, value in _seeds(after_grid, label, f"best_{metric}").items()}
            assert cells[label, f"{metric}-error"]["seeds"] == pytest.approx(expected)
    assert table["captions"][0].startswith("Best top-1 error over epochs, and the top-5 error of that epoch: ")


def test_csv_has_a_line_per_run(call: Call, after_grid: Path) -> None:
    done = call("report", "--format", "csv")
    assert (done.code, done.err) == (0, "")
    records = [record for record in csv.DictReader(io.StringIO(done.out)) if record["pair"] == PAIR]
    assert {record["row"] for record in records} == set(LABELS[1:])
    known = runs_in(after_grid / "results")
    for label in LABELS[1:]:
        lines = {int(record["seed"]): record for record in records if record["row"] == label}
        assert {seed: float(line["value"]) for seed, line in lines.items()} == pytest.approx(_seeds(after_grid, label))
        assert all(known[line["run"]]["seed"] == seed for seed, line in lines.items())
    wide = list(csv.DictReader(io.StringIO(call("report", "--format", "csv", "--wide").out)))
    shown = [record for record in wide if record["row"] in LABELS[1:] and record[f"{PAIR} mean"]]
    means = {record["row"]: record[f"{PAIR} mean"] for record in shown}
    assert {label: float(mean) for label, mean in means.items()} == pytest.approx(
        {label: statistics.fmean(_seeds(after_grid, label).values()) for label in LABELS[1:]}
    )


def test_markdown(call: Call, after_grid: Path) -> None:
    done = call("report", "--format", "markdown")
    assert (done.code, done.err) == (0, "")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.out.splitlines() if line.startswith("|")]
    column = rows[0].index(PAIR)
    shown = {row[0]: row[column] for row in rows[2:]}
    assert list(shown) == LABELS
    means = {}
    for label in LABELS[1:]:
        values = _seeds(after_grid, label).values()
        means[label] = statistics.fmean(values)
        assert f"{means[label]:.2f} ± {statistics.stdev(values):.2f}" in shown[label]
    cells = _cells(json.loads(call("report", "--format", "json").out))
    assert {label for label in shown if "**" in shown[label]} == {
        label for label in LABELS if cells[label]["mark"] in ("best", "tied")
    }
    for label in LABELS[3:]:
        arrow = {"above": "↑", "below": "↓", "": ""}[cells[label]["against"]]
        assert [sign for sign in "↑↓" if sign in shown[label]] == list(arrow)
        gaps = [_seeds(after_grid, label)[seed] - _seeds(after_grid, "kd")[seed] for seed in (1, 2)]
        assert cells[label]["gap"] == pytest.approx(statistics.fmean(gaps))
        half = 12.706204736 * statistics.stdev(gaps) / 2**0.5  # Student's t for one degree of freedom
        assert cells[label]["gap_low"] == pytest.approx(statistics.fmean(gaps) - half)
        assert (arrow == "↑") == (cells[label]["gap_low"] > 0)
    assert "\x1b" not in done.out


def test_terminal_is_the_default(call: Call, after_grid: Path) -> None:
    done = call("report")
    assert (done.code, done.err) == (0, "")
    assert done == call("report", "--format", "terminal")
    assert all(f"│ {label}" in done.out for label in LABELS)
    assert "\x1b" not in done.out


def test_every_seed(call: Call, after_grid: Path) -> None:
    done = call("report", "--by-seed", "--format", "markdown")
    assert (done.code, done.err) == (0, "")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.out.splitlines() if line.startswith("|")]
    shown = {cells[1].rstrip(" ¹²³⁴⁵"): cells for cells in lines if cells[0] == PAIR}
    assert list(shown) == LABELS[1:]
    plain = _seeds(after_grid, "student")
    for label in shown:
        seeds = _seeds(after_grid, label)
        assert shown[label][2:4] == [f"{seeds[1]:.2f}", f"{seeds[2]:.2f}"]
        gaps = [seeds[seed] - plain[seed] for seed in (1, 2)]
        mean, half = statistics.fmean(gaps), 12.706204736 * statistics.stdev(gaps) / 2**0.5
        paired = f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}] (n=2)"
        assert shown[label][4] == ("" if label == "student" else paired)


@pytest.mark.parametrize("form", ["terminal", "markdown", "json"])
def test_another_recipe_than_the_papers_is_said_so(form: str, call: Call, after_grid: Path) -> None:
    text = " ".join(call("report", "--format", form).out.split())
    assert "The recipe differs from that of crd: batch_size 16 for 64; epochs 2 for 240; milestones" in text


def test_students_at_chance_level_are_footnoted(call: Call, after_grid: Path) -> None:
    """Chance is 25 %, and two standard errors on 24 images are 17.7 points more."""
    tables = json.loads(call("report", "--format", "json").out)
    lost = {
        label: {s for s, top1 in _seeds(after_grid, label, "best_top1").items() if top1 < 42.7} for label in LABELS[1:]
    }
    assert any(lost.values()), "two epochs teach these networks little"
    for label, cell in _cells(tables).items():
        seeds = ", ".join(map(str, sorted(lost.get(label, ()))))
        said = [note for note in cell["notes"] if note.startswith("Never left chance level: seed")]
        assert said == ([f"Never left chance level: seed{'s' * (len(lost[label]) > 1)} {seeds}."] if seeds else [])


def test_a_published_table_takes_nothing_from_another_data_set(call: Call, after_grid: Path) -> None:
    done = call("report", "--table", "crd-1", "--format", "json")
    assert (done.code, done.err) == (0, "")
    (table,) = json.loads(done.out)
    assert "CRD table 1" in table["title"]
    assert "wrn_40_2:wrn_16_2" in table["columns"]
    assert {cell["n"] for cell in table["cells"]} == {0}
    assert {cell["published"] for cell in table["cells"]} == {None}


def test_the_published_numbers_stand_beside_ours(call: Call, after_grid: Path) -> None:
    done = call("report", "--table", "crd-1", "--compare", "--format", "json")
    (table,) = json.loads(done.out)
    numbers = {(cell["pair"], cell["row"]): cell["published"] for cell in table["cells"]}
    assert numbers["resnet56:resnet20", "teacher"] == 72.34
    assert numbers["resnet56:resnet20", "student"] == 69.06
    assert numbers["resnet56:resnet20", "crd"] == 71.16
    assert numbers["vgg13:vgg8", "kd"] == 72.98
    assert {cell["difference"] for cell in table["cells"]} == {None}
    text = call("report", "--table", "crd-1", "--compare", "--format", "markdown").out
    assert "71.16" in text
    assert "b84f547c5db6" in text


def test_a_table_of_errors_is_filled_by_the_papers_rule(call: Call, after_grid: Path) -> None:
    done = call("report", "--table", "cd-cifar100", "--compare", "--format", "json")
    assert (done.code, done.err) == (0, "")
    (table,) = json.loads(done.out)
    assert table["columns"] == ["top-1 error", "top-5 error"]
    assert table["captions"][0].startswith("Best top-1 error over epochs, and the top-5 error of that epoch: ")
    numbers = {(cell["row"], cell["metric"]): cell["published"] for cell in table["cells"]}
    assert numbers["cd", "top1-error"] == 20.08
    assert numbers["cd", "top5-error"] == 4.78
    turned = call("report", "--table", "cd-cifar100", "--compare", "--metric", "top1", "--epoch", "last")
    assert "[79.92]" in turned.out
    assert "Top-1 accuracy of the last epoch" in turned.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--metric", "top3"), "unknown metric 'top3'; did you mean top"),
        (("--metric", ","), "--metric names no metric: use one or several of top1, top5,"),
        (("--epoch", "first"), "--epoch is one of last, best, lowest-loss, validation, not 'first'"),
        (("--format", "pdf"), "unknown format 'pdf': use one of csv, html, json, latex, markdown, terminal"),
        (("--versus", "rkd"), "unknown row to compare with 'rkd'; did you mean"),
        (("--table", "crd-9"), "unknown table 'crd-9'; did you mean crd-"),
        (("--wide",), "--wide is a shape of CSV: add --format csv"),
        (("--by-seed", "--format", "csv"), "--by-seed does not go with --format csv: every seed stands in it already"),
        (("--watch", "-o", "x"), "--watch draws on the terminal: leave out --output and --format"),
        (("--output", "results"), "results cannot be written (Is a directory): name another --output"),
        (
            ("--table", "crd-1", "--compare", "--metric", "top5,top5-error"),
            "table crd-1 has no published numbers of top5,top5-error: leave out --compare or --metric",
        ),
    ],
)
@pytest.mark.usefixtures("after_grid")
def test_what_cannot_be_shown_is_refused(options: tuple[str, ...], words: str, call: Call) -> None:
    done = call("report", *options)
    assert (done.code, done.out) == (2, "")
    assert words in " ".join(done.err.split())


def test_a_report_changes_nothing(after_grid: Path) -> None:
    before = listing(after_grid)
    assert Shell(after_grid).run("report").code == 0
    assert listing(after_grid) == before


def test_a_file_is_replaced_only_when_it_is_whole(
    call: Call, after_grid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = call("report", "--format", "markdown").out
    Path("report.md").write_text("before")
    assert call("report", "--format", "markdown", "-o", "report.md") == Done(0, "", "")
    assert Path("report.md").read_text(encoding="utf-8") == text
    Path("report.md").write_text("before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kdtable.files.atomic.replace_durably", full)
    done = call("report", "--format", "markdown", "-o", "report.md")
    assert (done.code, done.out) == (2, "")
    assert "report.md cannot be written (No space left on device): name another --output" in done.err
    assert Path("report.md").read_text() == "before"
    assert [path.name for path in Path().glob(".report*")] == []


def test_published_numbers_need_no_store(call: Call) -> None:
    done = call("report", "--table", "crd-1", "--compare", "--format", "markdown")
    assert (done.code, done.err) == (0, "")
    assert "[71.16]" in done.out
    assert call("report", "--table", "crd-1").code == 2
    wide = call("report", "--table", "crd-1", "--compare", "--format", "csv", "--wide").out
    crd = next(line for line in csv.DictReader(io.StringIO(wide)) if line["row"] == "crd")
    assert crd["resnet56:resnet20 published"] == "71.16"


def test_any_row_to_compare_with(call: Call, after_grid: Path) -> None:
    tables = json.loads(call("report", "--versus", "at", "--format", "json").out)
    (table,) = [table for table in tables if any(cell["pair"] == PAIR for cell in table["cells"])]
    assert table["versus"] == "at"
    gaps = [_seeds(after_grid, "kd")[seed] - _seeds(after_grid, "at")[seed] for seed in (1, 2)]
    assert _cells(tables)["kd"]["gap"] == pytest.approx(statistics.fmean(gaps))


def test_answers_for_a_checklist(call: Call, after_grid: Path) -> None:
    done = call("report", "--checklist")
    assert (done.code, done.err) == (0, "")
    runs = runs_in(after_grid / "results").values()
    text = " ".join(done.out.split())
    assert f"Runs: {sum(run['status'] == 'done' for run in runs)} done" in text
    with closing(Store(after_grid / "results", create=False)) as store:
        histories = [store.history(run.id) for run in store.runs()]
    seconds = sum(epoch.seconds / epoch.cohort_size for history in histories for epoch in history)
    assert f"In all: {seconds:.1f} seconds of a device's time; of these, 0.0 seconds for runs that failed" in text


def test_a_report_on_a_narrow_terminal(after_grid: Path) -> None:
    done = Shell(after_grid, {"COLUMNS": "80"}).run("report", "--table", "crd-1", "--compare")
    assert (done.code, done.err) == (0, "")
    assert max(map(len, done.out.splitlines())) <= 80


def test_watching_redraws_and_ends_by_an_interruption(after_grid: Path) -> None:
    """On a terminal of the kernel's: one that is no terminal is not redrawn."""
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    words = [sys.executable, "-m", "kdtable", "report", "--watch"]
    with interruptible():
        process = subprocess.Popen(words, cwd=after_grid, env=environment() | {"TERM": "xterm"}, stdout=its, stderr=its)
    os.close(its)
    sent = b""
    try:
        while "│ kd".encode() not in sent:
            sent += os.read(ours, 1 << 16)
        process.send_signal(signal.SIGINT)
        with suppress(OSError):  # what Linux says once nobody has the other end open
            while more := os.read(ours, 1 << 16):
                sent += more
        assert process.wait() == 0
    finally:
        process.kill()
        os.close(ours)
    assert sent.count("│ kd".encode()) >= 2, "drawn while it was watched, and left on the terminal"
    assert b"Traceback" not in sent
