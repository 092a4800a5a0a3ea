import importlib
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from kdtable.errors import BadRequest
from kdtable.recipes.metrics import METRICS
from kdtable.report.costs import front
from kdtable.report.figures import KINDS, check, write
from kdtable.report.figures.data import FigureData
from kdtable.report.figures.style import FONT, WIDTH, looks, styled
from kdtable.report.result_table import Heading, ResultTable
from kdtable.report.statistics import TooFew
from tests.report.drawn import EPOCHS, made_up

PAIRS = [f"resnet{depth}:resnet{student}" for depth in (56, 110, 44) for student in (20, 32)] + ["vgg13:vgg8"]
ROWS = ["student", "kd", "fitnet", "at", "crd (dim=8, negatives=16)"]

#: Kind by kind, drawn in the style of files.
Draw = Callable[..., Figure]


@pytest.fixture
def draw() -> Draw:
    def drawn(kind: str, data: FigureData) -> Figure:
        with styled():
            figure: Figure = importlib.import_module(KINDS[kind]).draw(data)
            figure.draw_without_rendering()
        return figure

    return drawn


def _axes(figure: Figure) -> list[Axes]:
    found: list[Axes] = figure.findobj(Axes)  # type: ignore[assignment]
    return found


def _texts(figure: Figure) -> list[Text]:
    """Every text that is drawn: axes hold labels of ticks beyond their ends, too."""
    found: list[Text] = []
    plain = Text.draw

    def draw(self: Text, renderer: Any) -> None:
        found.append(self)
        plain(self, renderer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", draw)
        figure.draw_without_rendering()
    return [text for text in found if text.get_text().strip() and text.get_visible()]


def _sample(kind: str) -> FigureData:
    """As little as a kind draws."""
    return made_up(PAIRS if kind == "ranks" else PAIRS[:2], ROWS[:4], seeds=2, published=True)


def _words(figure: Figure) -> str:
    return " ".join(text.get_text() for text in _texts(figure))


# --- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_pdf_has_one_page_as_wide_as_a_column_and_truetype_fonts(kind: str, tmp_path: Path) -> None:
    write(kind, _sample(kind), tmp_path / "figure.pdf")
    content = (tmp_path / "figure.pdf").read_bytes()
    assert content.startswith(b"%PDF-1.")
    assert content.rstrip().endswith(b"%%EOF")
    assert len(re.findall(rb"/Type /Page\b", content)) == 1
    ((left, right),) = re.findall(rb"/MediaBox \[ ([\d.]+) [\d.]+ ([\d.]+) [\d.]+ \]", content)
    assert float(right) - float(left) == pytest.approx(72 * WIDTH)
    assert b"/FontFile2" in content
    assert b"/Type3" not in content
    assert b"/CreationDate" not in content


@pytest.mark.parametrize("kind", KINDS)
def test_an_svg_can_be_parsed(kind: str, tmp_path: Path) -> None:
    write(kind, _sample(kind), tmp_path / "figure.svg")
    root = ET.parse(tmp_path / "figure.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert float(str(root.get("width")).removesuffix("pt")) == pytest.approx(72 * WIDTH, abs=0.01)
    assert len(root.findall(".//{http://www.w3.org/2000/svg}path")) > 10


@pytest.mark.parametrize("kind", KINDS)
def test_a_png_is_as_wide_as_a_column_and_not_empty(kind: str, tmp_path: Path) -> None:
    write(kind, _sample(kind), tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as image:
        assert image.width == round(300 * WIDTH)
        grey = np.asarray(image.convert("L"))
    assert 0.005 < (grey < 128).mean() < 0.5


@pytest.mark.parametrize(("kind", "form"), [*((kind, "pdf") for kind in KINDS), ("seeds", "svg"), ("seeds", "png")])
def test_equal_figures_have_equal_bytes(kind: str, form: str, tmp_path: Path) -> None:
    for name in "ab":
        write(kind, _sample(kind), tmp_path / f"{name}.{form}")
    assert (tmp_path / f"a.{form}").read_bytes() == (tmp_path / f"b.{form}").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("pairs", "rows"), [(PAIRS[:1], ROWS[:4]), (PAIRS, [*ROWS, *(f"method{n}" for n in range(9))])]
)
def test_texts_are_large_enough_and_inside_the_figure(
    pairs: Sequence[str], rows: Sequence[str], kind: str, draw: Draw
) -> None:
    if kind == "ranks":
        pairs = PAIRS
    figure = draw(kind, made_up(pairs, rows, published=True))
    for text in _texts(figure):
        assert float(text.get_fontsize()) >= FONT, text.get_text()
        box = text.get_window_extent()
        assert box.x0 >= -1, text.get_text()
        assert box.x1 <= 1 + figure.bbox.width, text.get_text()
        assert box.y0 >= -1, text.get_text()
        assert box.y1 <= 1 + figure.bbox.height, text.get_text()


def test_rows_differ_without_colour() -> None:
    found = looks([f"row{number}" for number in range(60)], "row1")
    assert len({(look.marker, look.line) for look in found.values()}) == 60
    assert found["row1"].colour == "#000000"
    assert len({look.marker for look in list(found.values())[:13]}) == 13


def test_names_are_text_and_no_formulas(tmp_path: Path, draw: Draw) -> None:
    data = made_up(["a_1:b_2"], ["student", "kd", "x$_{y}$\x1b[0m"])
    assert "x$_{y}$" in _words(draw("seeds", data))
    assert "\x1b" not in _words(draw("seeds", data))
    write("seeds", data, tmp_path / "figure.svg")


# --- what is drawn -----------------------------------------------------------------------------------------------


def test_gains_are_the_tables_and_hatched_below_zero(draw: Draw) -> None:
    data = made_up(PAIRS[:2], ROWS[:4])
    figure = draw("gains", data)
    gaps = data.cells[data.cells["row"].isin(["fitnet", "at"])]
    numbers = [f"{round(gap, 1) + 0.0:+.1f}".replace("-", "\N{MINUS SIGN}") for gap in gaps["gap"]]
    shown = {text.get_text(): text.get_fontweight() for text in _texts(figure)}
    assert set(numbers) <= set(shown)
    sure = (gaps["gap_low"] > 0) | (gaps["gap_high"] < 0)
    for number, certain in zip(numbers, sure, strict=True):
        if numbers.count(number) == 1:
            assert shown[number] == ("bold" if certain else "normal")
    assert {number[0] for number in numbers} == {"+", "\N{MINUS SIGN}"}
    hatched = [patch for axes in _axes(figure) for patch in axes.patches if patch.get_hatch()]
    assert len(hatched) == sum(number.startswith("\N{MINUS SIGN}") for number in numbers)
    assert all(isinstance(patch, Rectangle) for patch in hatched)


def test_a_gain_in_an_error_is_positive_where_the_error_is_lower(draw: Draw) -> None:
    accuracy, error = (made_up(PAIRS[:1], ROWS[:3], metric=metric) for metric in ("top1", "top1-error"))
    (gap,) = accuracy.cells.loc[accuracy.cells["row"] == "fitnet", "gap"]
    assert gap < -0.1
    assert f"\N{MINUS SIGN}{-gap:.1f}" in _words(draw("gains", accuracy))
    assert f"+{-gap:.1f}" in _words(draw("gains", error))


def test_every_seed_is_a_dot_and_the_best_are_filled(draw: Draw) -> None:
    data = made_up(PAIRS[:3], ROWS)
    figure = draw("seeds", data)
    dots = [line for axes in _axes(figure) for line in axes.lines if line.get_marker() == "o"]
    drawn = sorted(float(x) for line in dots for x in np.asarray(line.get_xdata()))
    assert drawn == pytest.approx(sorted(data.values["value"]))
    filled = sum(line.get_markerfacecolor() == "black" for line in dots)
    assert filled == data.cells["mark"].isin(["best", "tied"]).sum() > 0


def test_curves_are_medians_over_seeds(draw: Draw) -> None:
    data = made_up(PAIRS[:1], ROWS[:2])
    (axes,) = _axes(draw("curves", data))
    assert [len(np.asarray(line.get_xdata())) for line in axes.lines] == [EPOCHS, EPOCHS]
    for number, line in enumerate(axes.lines):
        epochs = np.arange(1, EPOCHS + 1)
        assert np.asarray(line.get_ydata(), float) == pytest.approx(100 * (0.7 - 0.5 / (epochs + number) + 0.008))


def test_the_front_holds_what_nothing_cheaper_beats() -> None:
    costs = {"a": 1, "b": 2, "c": 3, "d": 3, "e": 4}
    values = {"a": 70.0, "b": 69.0, "c": 72.0, "d": 71.0, "e": 72.0}
    assert front(costs, values) == ["a", "c"]
    assert front(costs, {row: -value for row, value in values.items()}) == ["a", "b"]


def test_passes_of_the_teacher_count_the_epochs_of_every_stage(draw: Draw) -> None:
    (axes,) = _axes(draw("cost", made_up(PAIRS[:1], ROWS[:4], cost="passes")))
    points = {float(np.asarray(line.get_xdata())[0]) for line in axes.lines if line.get_marker() != "None"}
    assert points == {0, EPOCHS, EPOCHS + 1}


def test_our_means_stand_against_the_published_numbers(draw: Draw) -> None:
    data = made_up(PAIRS[:2], ROWS[:3], published=True)
    (axes,) = _axes(draw("published", data))
    points = [line for line in axes.lines if line.get_marker() not in ("None", "")]
    drawn = {(float(np.asarray(p.get_xdata())[0]), float(np.asarray(p.get_ydata())[0])) for p in points}
    assert drawn == set(zip(data.cells["published"], data.cells["mean"], strict=True))


def test_ranks_stand_in_order_and_name_what_is_left_out(draw: Draw) -> None:
    data = made_up(PAIRS, ROWS)
    lacking = (data.cells["row"] == "at") & (data.cells["pair"] == PAIRS[0])
    data.cells.loc[lacking, "mean"] = np.nan
    words = _words(draw("ranks", data))
    assert "mean rank over 7 pairs (Friedman p = " in words
    assert "left out, for want of a pair: at" in words
    assert re.search(r"student \(\d\.\d\)|\(\d\.\d\) student", words)


# --- refusals ----------------------------------------------------------------------------------------------------


def test_too_few_pairs_for_ranks_are_refused_and_a_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "ranks.pdf"
    path.write_text("before")
    with pytest.raises(TooFew, match="ranks need"):
        write("ranks", made_up(PAIRS[:5], ROWS), path)
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("ranks.pdf", "before")]


def test_a_file_is_replaced_only_when_the_figure_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Figure, file: Any, **_: Any) -> None:
        file.write(b"half of it")
        raise RuntimeError("the machine is gone")

    path = tmp_path / "seeds.png"
    path.write_text("before")
    monkeypatch.setattr(Figure, "savefig", broken)
    with pytest.raises(RuntimeError):
        write("seeds", made_up(PAIRS[:1], ROWS), path)
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("seeds.png", "before")]


def test_a_missing_extra_is_one_sentence_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BadRequest, match=re.escape("figures need matplotlib: pip install 'kdtable[figures]'")):
        check("seeds", Path("seeds.pdf"))


def test_an_unknown_kind_or_format_is_refused() -> None:
    with pytest.raises(BadRequest, match="unknown figure 'seed'; did you mean seeds"):
        check("seed", Path("seeds.pdf"))
    with pytest.raises(BadRequest, match=re.escape("a figure's file ends in .pdf, .svg, .png, not 'seeds.jpg'")):
        check("seeds", Path("figures/seeds.jpg"))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_draw_is_refused(kind: str, draw: Draw) -> None:
    data = made_up(PAIRS[:1], ROWS)
    empty = FigureData(
        "digits", data.metric, "kd", data.pairs, data.rows, data.cells[:0], data.values[:0], data.runs[:0],
        data.epochs_of,
    )  # fmt: skip
    with pytest.raises(BadRequest) as refused:
        draw(kind, empty)
    assert "digits" in str(refused.value)


def test_gains_need_a_row_to_compare_with(draw: Draw) -> None:
    with pytest.raises(BadRequest, match="has no row to compare with: name one with --versus"):
        draw("gains", made_up(PAIRS[:1], ["student", "at"], versus=None))


def test_pairs_and_methods_are_chosen_by_the_names_of_the_table() -> None:
    data = made_up(PAIRS, ROWS)
    some = data.only([PAIRS[2], PAIRS[0]], ["crd", "vanilla", "at"])
    assert (some.pairs, some.rows) == ((PAIRS[0], PAIRS[2]), ("student", "at", ROWS[-1]))
    assert set(some.values["pair"]) == {PAIRS[0], PAIRS[2]}
    assert set(some.cells["row"]) == {"student", "at", ROWS[-1]}
    with pytest.raises(BadRequest, match="unknown pair 'resnet56:resnet8'; did you mean"):
        data.only(["resnet56:resnet8"])
    with pytest.raises(BadRequest, match="unknown method 'crdd'"):
        data.only(None, ["crdd"])


def test_one_metric_is_drawn_and_a_known_cost() -> None:
    data = made_up(PAIRS[:1], ROWS)
    headings = tuple(Heading(name, PAIRS[0], METRICS[name], "resnet56", "resnet20") for name in ("top1", "top5"))
    table = ResultTable("made up", "digits", headings, ("teacher", *ROWS), data.cells, data.values)
    with pytest.raises(BadRequest, match="a figure draws one metric: choose it with --metric top1"):
        FigureData.of(table, data.runs, data.epochs_of)
    with pytest.raises(BadRequest, match="unknown cost 'hours'"):
        FigureData.of(table, data.runs, data.epochs_of, "hours")
