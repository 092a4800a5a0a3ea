"""What `run` shows on a terminal: a real one, of the kernel's."""

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.cli.command import SMALL, TEACHER, Call, environment, runs_in, write_images
from tests.cli.test_bad_files import NASTY

PAIR = ("run", "--pairs", "resnet14:resnet8", "--epochs", "2", *SMALL, *TEACHER, "--results", NASTY)
BROKEN = ("--set", "weight.kd=1e38")
SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def _on_a_terminal(folder: Path, *args: str) -> tuple[int, str]:
    """Call the command on a terminal of its own; its exit code, and all that the terminal was sent."""
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 250, 0, 0))
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
