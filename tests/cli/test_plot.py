import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.command import Call, Shell, assert_refused, listing


@pytest.mark.parametrize("kind", ["curves", "gains", "seeds", "cost"])
def test_a_figure_of_a_trained_grid(kind: str, call: Call, after_grid: Path) -> None:
    for form in ("pdf", "svg", "png"):
        assert call("plot", kind, "-o", f"figures/{kind}.{form}") == call("plot", kind, "-o", f"again.{form}")
        first, again = (after_grid / name for name in (f"figures/{kind}.{form}", f"again.{form}"))
        assert first.read_bytes() == again.read_bytes()
    with Image.open(after_grid / "figures" / f"{kind}.png") as image:
        assert image.width == 990


def test_rows_pairs_metric_epoch_baseline_and_cost_can_be_chosen(call: Call, after_grid: Path) -> None:
    options = ("--pairs", "resnet14:resnet8", "--methods", "kd,crd", "--metric", "top1-error", "--epoch", "best")
    for kind, more in (
        ("gains", ("--versus", "at")),
        ("cost", ("--cost", "passes")),
        ("cost", ("--cost", "parameters")),
    ):
        done = call("plot", kind, "-o", "chosen.svg", *options, *more)
        assert (done.code, done.out, done.err) == (0, "", ""), done.err
    text = (after_grid / "chosen.svg").read_text()
    assert "crd (dim=8" in text
    assert "<!-- at -->" not in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("seed", "-o", "seeds.pdf"), "unknown figure 'seed'; did you mean seeds"),
        (("seeds", "-o", "seeds.jpeg"), "a figure's file ends in .pdf, .svg, .png, not 'seeds.jpeg'"),
        (("seeds", "-o", "seeds.pdf", "--metric", "top3"), "unknown metric 'top3'"),
        (("seeds", "-o", "seeds.pdf", "--metric", "top1,top5"), "a figure draws one metric"),
        (
            ("seeds", "-o", "seeds.pdf", "--epoch", "first"),
            "--epoch is one of last, best, lowest-loss, validation, not 'first'",
        ),
        (("seeds", "-o", "seeds.pdf", "--methods", "kdd"), "unknown method 'kdd'; did you mean kd"),
        (("gains", "-o", "gains.pdf", "--versus", "nst"), "'nst'"),
        (("cost", "-o", "cost.pdf", "--cost", "hours"), "unknown cost 'hours'"),
        (("seeds", "-o", "seeds.pdf", "--table", "crd-1"), "there is nothing to draw"),
        (("seeds", "-o", "seeds.pdf", "--number", "9"), "--number is 1 to "),
        (("published", "-o", "published.pdf"), "published numbers belong to a table: name it with --table crd-1"),
        (("ranks", "-o", "ranks.pdf"), "ranks need"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options: tuple[str, ...], words: str, call: Call, after_grid: Path) -> None:
    assert_refused(call("plot", *options), words)
    assert not list(after_grid.glob("*.pdf"))


@pytest.mark.usefixtures("after_grid")
def test_a_missing_extra_is_refused(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert_refused(call("plot", "seeds", "-o", "seeds.pdf"), "pip install 'kdtable[figures]'")


def test_an_unwritable_file_is_one_sentence(call: Call, after_grid: Path) -> None:
    (after_grid / "seeds.pdf").mkdir()
    done = call("plot", "seeds", "-o", "seeds.pdf")
    assert (done.code, len(done.errors)) == (2, 1)
    assert done.err.startswith("kdtable: seeds.pdf cannot be written")


def test_a_figure_changes_nothing_in_the_store(after_grid: Path) -> None:
    before = listing(after_grid)
    assert Shell(after_grid).run("plot", "seeds", "-o", "seeds.svg").code == 0
    (after_grid / "seeds.svg").unlink()
    assert listing(after_grid) == before


def test_matplotlib_is_imported_for_figures_alone(after_grid: Path) -> None:
    done = Shell(after_grid).run("report", python=("-X", "importtime"))
    assert done.code == 0
    assert "matplotlib" not in done.err
