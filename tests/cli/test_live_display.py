"""What `run` shows on a terminal: a real one, of the kernel's."""

import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import termios
from contextlib import closing
from pathlib import Path

import pytest

from kdtable.store import Store
from tests.cli.command import (
    SMALL,
    SMALL_CRD,
    TEACHER,
    Call,
    Shell,
    environment,
    finish,
    interruptible,
    runs_in,
    wait_for,
    write_images,
)
from tests.cli.test_bad_files import NASTY

PAIR = ("run", "--pairs", "resnet14:resnet8", "--epochs", "2", *SMALL, *TEACHER, "--results", NASTY)
BROKEN = ("--set", "weight.kd=1e38")
SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def _on_a_terminal(folder: Path, *args: str, columns: int = 250) -> tuple[int, str]:
    """Call the command on a terminal of its own; its exit code, and all that the terminal was sent."""
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    words = [sys.executable, "-m", "kdtable", *args]
    process = subprocess.Popen(
        words, cwd=folder, env=environment() | {"TERM": "xterm"}, stdin=its, stdout=its, stderr=its, process_group=0
    )
    os.close(its)
    sent = b""
    try:
        while more := _read(ours):
            sent += more
        return process.wait(), sent.decode()
    finally:
        process.kill()
        os.close(ours)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # what Linux says once nobody has the other end open
        return b""


@pytest.fixture
def begun(tiny: Path, call: Call) -> Path:
    """The test's folder, in whose store a run has failed and left a checkpoint that is none."""
    write_images(tiny / "tiny.npz", train=800)  # so that an epoch takes longer than the display to be redrawn
    assert call(*PAIR, "--methods", "kd", *BROKEN).code == 1
    (run_id,) = runs_in(tiny / NASTY)
    (tiny / NASTY / "runs" / run_id / "checkpoint.pt").write_bytes(b"damaged")
    return tiny


def test_a_grid_on_a_terminal(begun: Path) -> None:
    code, sent = _on_a_terminal(begun, *PAIR, "--methods", "vanilla,kd", *BROKEN)
    text = SEQUENCE.sub("", sent)
    assert code == 1, text
    assert "Traceback" not in text
    assert "RecursionError" not in text
    assert SEQUENCE.search(sent), "the display is redrawn in place"
    for epoch in (1, 2):
        assert re.search(rf"epoch {epoch}/2 .*\d+% [\d,]+ images/s", text), text

    # What is said in between stands on lines of its own, above a display that goes on below it.
    lines = text.replace("\r", "\n").splitlines()
    said = [n for n, line in enumerate(lines) if line.startswith(("FAILED resnet8 kd seed 1: ", f"{_spelled()}/runs"))]
    assert len(said) == 2, text
    shown = [n for n, line in enumerate(lines) if "epoch 2/2" in line]
    assert max(said) < max(shown), text
    assert not any("images/s" in lines[n] for n in said)

    # Names move no cursor, change no colour, and are no markup.
    assert _spelled() in text
    assert not any(part in sent for part in ("\x1b[2J", "\x9b", "\u202e"))


def _spelled() -> str:
    return r"\x1b[2J\x9b31m\u202e[red]\n|a"


# --- each student ------------------------------------------------------------------------------------------------

GRID = ("run", "--pairs", "resnet14:resnet8", *SMALL, *TEACHER)


def _frames(sent: str) -> list[list[str]]:
    """The lines of each picture that was drawn, from its bar on."""
    lines = [line.rstrip() for line in SEQUENCE.sub("", sent).replace("\r", "\n").splitlines()]
    starts = [number for number, line in enumerate(lines) if "images/s" in line or re.search(r"\bgrid\b.*%", line)]
    return [lines[start:end] for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)]


def test_each_student_is_shown_with_its_loss_and_metric(tiny: Path) -> None:
    write_images(tiny / "tiny.npz", train=400)
    words = ("--methods", "vanilla,kd,fitnet-2stage", "--epochs", "2", "--seeds", "7,")
    code, sent = _on_a_terminal(tiny, *GRID, *words)
    assert code == 0, sent
    last = [" ".join(line.split()) for line in _frames(sent)[-1]]
    assert "student row seed epoch loss top-1 accuracy %" in last
    with closing(Store(tiny / "results", create=False)) as store:
        for run in store.runs():
            *_, record = store.history(run.id)
            measured = f"{record.train_loss:.4f} {100 * record.metrics['top1']:.2f}"
            assert f"resnet8 {run.row} 7 done {measured}" in last
    shown = {" ".join(line.split()[:4]) for frame in _frames(sent) for line in frame if "fitnet-2stage" in line}
    assert shown >= {"resnet8 fitnet-2stage 7 hint", "resnet8 fitnet-2stage 7 1/2", "resnet8 fitnet-2stage 7 done"}


def test_eighty_columns(tiny: Path) -> None:
    """No line of the picture is wider than the terminal, so none is drawn over or left behind."""
    write_images(tiny / "tiny.npz", train=400)
    code, sent = _on_a_terminal(
        tiny,
        *GRID,
        "--methods",
        "vanilla,fitnet-2stage,crd+kd",
        *SMALL_CRD,
        "--epochs",
        "12",
        "--seeds",
        "1",
        columns=80,
    )
    assert code == 0, sent
    frames = _frames(sent)
    assert any("crd+kd" in line for frame in frames for line in frame)
    pictures = [line for frame in frames for line in frame if not line.startswith(("cohort ", "digits", "kdtable"))]
    drawn = [line for line in pictures if re.search(r"images/s|resnet8 |student +row", line)]
    assert drawn
    assert max(map(len, drawn)) <= 80
    bars = [line for line in drawn if "images/s" in line]
    for part in (r"cohort 1/1 hint epoch \d+/\d+ ", r"cohort 1/1 epoch \d+/12 ", r" \d+% ", r"\d+ images/s", " left$"):
        assert any(re.search(part, line) for line in bars), (part, bars[-1])


def test_a_resumed_grid_begins_where_it_is(tiny: Path) -> None:
    write_images(tiny / "tiny.npz", train=160)
    words = (*GRID, "--methods", "vanilla,kd", "--epochs", "4", "--seeds", "2")
    with interruptible():
        process = Shell(tiny).start(*words)
        try:
            wait_for("cohort 2/2 resnet8 kd seed 2 main epoch 1/4", process)
            process.send_signal(signal.SIGINT)
            assert finish(process).code == 130
        finally:
            process.kill()
    with closing(Store(tiny / "results", create=False)) as store:
        before = sum(len(store.history(run.id)) for run in store.runs())
    assert 10 <= before < 16
    code, sent = _on_a_terminal(tiny, *words, columns=80)
    assert code == 0, sent
    frames = _frames(sent)
    percentages = [int(found[1]) for frame in frames if (found := re.search(r"(\d+)%", frame[0]))]
    assert percentages == sorted(percentages)
    assert percentages[0] == round(before * 100 / 16)
    assert percentages[-1] == 100
    places = [int(found[1]) for frame in frames if (found := re.search(r"cohort 1/1 epoch (\d)/4", frame[0]))]
    assert places[0] >= 1
    assert places == sorted(places)
