import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from kdtable.report.page.axes import Axis, apart, path, thinned
from kdtable.report.page.cost import cost_panels
from kdtable.report.page.seeds import interval
from kdtable.report.page.summary import NAMED, summary
from kdtable.report.page.views import views
from tests.report.pages import Report, made_up, without

LOADING = ("src", "href", "srcset", "action", "data", "poster", "xlink:href", "formaction", "background", "ping")
#: Elements that never have an end tag, and those whose end tag HTML lets us leave out.
OPEN = {"meta", "input", "br", "tr", "td", "th", "li", "dt", "dd", "p", "thead"}


class Reader(HTMLParser):
    """Collects what a page has, and checks that its elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.elements: list[str] = []
        self.text = ""
        self._stack: list[str] = []
        self.feed(text)
        self.close()
        assert self._stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in OPEN:
            self._stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in OPEN:
            assert self._stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._stack and self._stack[-1] not in ("script", "style"):
            self.text += data


@pytest.fixture(scope="module")
def report() -> Report:
    return made_up()


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return report.page


def words(page: str) -> str:
    return " ".join(Reader(page).text.split())


def test_nothing_is_loaded(page: str) -> None:
    loads = [(tag, name, value) for tag, name, value in Reader(page).attributes if name in LOADING]
    assert loads
    assert all(value.startswith("#") for _, _, value in loads)
    assert "url(" not in page
    assert "@import" not in page
    assert not re.search(r"\bfetch\(|XMLHttpRequest|WebSocket|\bimport\(", page)


def test_a_policy_forbids_loading(page: str) -> None:
    (policy,) = (value for _, name, value in Reader(page).attributes if name == "content" and "-src" in value)
    assert policy.split("; ") == [
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        "script-src 'unsafe-inline'",
        "img-src data:",
    ]
    assert page.index("Content-Security-Policy") < page.index("<style>") < page.index("<script")


def test_every_link_has_a_target(page: str) -> None:
    reader = Reader(page)
    ids = [value for _, name, value in reader.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value.removeprefix("#") for _, name, value in reader.attributes if name == "href"} <= set(ids)


def test_numbers_stand_in_the_page_without_scripts(report: Report, page: str) -> None:
    text = words(re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL))
    cell = report.tables[0].cells.set_index(["row", "column"]).loc[("crd", 1)]
    assert f"{cell['mean']:.2f} ±{cell['std']:.2f}" in text.replace("±", " ±").replace("  ", " ")
    for section in ("Gain over kd", "Every seed", "Learning curves", "Cost against accuracy", "Ours against published"):
        assert section in text
    assert all(run in text for run in report.runs["run"])


def test_each_rule_and_the_gain_is_a_view(page: str) -> None:
    assert re.findall(r'type="radio" name="t1-view" class="(r\d)"', page) == ["r0", "r1", "r2"]
    assert [word in page for word in ("Last epoch", "Best epoch", "Gain over kd")] == [True] * 3


def test_gains_are_bold_where_their_interval_excludes_zero(report: Report) -> None:
    table = report.tables[0]
    cells = table.cells.copy()
    cells.loc[cells["row"] == "student", ["gap_low", "gap_high"]] = -2.0, -1.0
    page = replace(report, tables=(replace(table, cells=cells),)).page
    compared = cells[~cells["row"].isin(["teacher", table.versus]) & cells["gap"].notna()]
    sure = compared[(compared["gap_low"] > 0) | (compared["gap_high"] < 0)]
    assert 0 < len(sure) < len(compared)
    gains = re.findall(r'<td class="(?:pos|neg)( sure)?" style="--s', page)
    assert (gains.count(" sure"), len(gains)) == (len(sure), len(compared))


def test_one_rule_alone_needs_no_tabs() -> None:
    assert 'type="radio"' not in made_up(rules=("last",), versus=None).page


def test_labels_are_escaped() -> None:
    evil = "<img src=x onerror=alert(1)>"
    report = made_up((f"{evil}:s<b>",), (f"kd {evil}", "kd"), title=f"{evil}</title><script>alert(2)</script>")
    runs = report.runs.assign(data=evil, finished=evil)
    runs.loc[0, ["status", "reason"]] = "failed", f"</td>{evil}"
    found = {
        run: replace(details, sections=(replace(details.sections[1], lines=(("", "</script><!--" + evil),)),))
        for run, details in report.details.items()
    }
    page = replace(report, runs=runs, details=found).page
    reader = Reader(page)
    assert "img" not in reader.elements
    assert reader.elements.count("script") == 2
    assert not [name for _, name, _ in reader.attributes if name.startswith("on")]
    assert evil in reader.text
    assert "<!--" not in page


def test_the_grid_of_a_paper_with_all_details_fits_into_a_megabyte() -> None:
    pairs = [f"teacher{number}:student{number}" for number in range(13)]
    page = made_up(pairs, ["kd", *(f"method{number}" for number in range(13))], epochs=240).page
    assert len(page.encode()) < 1_000_000
    assert "to keep this page small" not in page


def test_a_grid_of_many_seeds_fits_into_a_megabyte() -> None:
    pairs = [f"teacher{number}:student{number}" for number in range(13)]
    methods = ["kd", *(f"method{number}" for number in range(22)), "crd", "crd+kd"]
    page = made_up(pairs, methods, seeds=5, epochs=30).page
    assert len(page.encode()) < 1_000_000


def test_a_page_too_large_leaves_out_details_and_says_so(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = len(report.page.encode())
    monkeypatch.setattr("kdtable.report.rendering.html.LIMIT", whole - 1_000)
    page = report.page
    assert len(page.encode()) < whole - 1_000
    assert "Details of runs are left out" in page
    assert "The list of runs" not in page


@pytest.mark.parametrize(
    "report",
    [
        made_up(("resnet56:resnet20",), seeds=1, published=False),
        made_up(("resnet20",), ("kd",), seeds=1, versus=None, published=False, rules=("last",)),
        made_up(versus=None),
        made_up(methods=("at", "crd"), versus=None, published=False),
        made_up(metric="top1-error"),
        without(made_up(), "crd", 0, failed=3),
        without(made_up(), "kd", 1, not_applicable="kd cannot be run on it"),
        replace(made_up(), epochs=made_up().epochs.iloc[:0], details={}),
        replace(made_up(), runs=made_up().runs.assign(parameters=np.nan, finished=None)),
    ],
    ids=["one-seed", "lone-student", "no-versus", "no-kd", "errors", "failed", "n/a", "no-epochs", "no-parameters"],
)
def test_what_is_not_there_is_left_out(report: Report) -> None:
    page = report.page
    Reader(page)
    assert "nan" not in re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL).replace("became nan", "")
    assert "None" not in words(page)
    assert ("Gain over" in page) == bool(report.tables[0].cells["gap"].notna().any())
    assert ("Ours against published" in page) == bool(report.tables[0].cells["difference"].notna().any())


def test_nothing_done_yet() -> None:
    report = made_up(("resnet56:resnet20",), ("kd",), published=False)
    for row in ("student", "kd"):
        report = without(report, row, 0)
    page = replace(report, epochs=report.epochs.iloc[:0], details={}).page
    assert "No run is done yet." in words(page)
    assert "Every seed" not in page


def test_a_failed_run_says_why_and_can_be_opened() -> None:
    report = without(made_up(("resnet56:resnet20",)), "crd", 0, failed=3, asked=3)
    page = report.page
    assert "failed: the loss became nan &lt;in epoch 3&gt;" in page
    failed = " ".join(report.runs[report.runs["row"] == "crd"]["run"])
    assert f'data-r="{failed}"' in page
    assert "3 of 3 runs failed" in page
    assert "3 failed" in words(page)


def test_several_tables_have_headings() -> None:
    one, other = made_up(title="cifar100: top-1 accuracy (%)"), made_up(title="digits: top-1 accuracy (%)")
    page = replace(one, tables=(*one.tables, *other.tables)).page
    assert page.count("<h2>") == 3  # two tables, and the runs
    assert [table for table in ("t1", "t2") if f'<article id="{table}">' in page] == ["t1", "t2"]


def test_tables_of_equal_title_are_told_apart() -> None:
    """Two comparisons of one data set, each under two rules."""
    last, best = made_up().tables
    found = views((last, last, best, best), made_up().runs)
    assert [[sheet.table.rule for sheet in view.sheets] for view in found] == [["last", "best"], ["last", "best"]]


def test_the_summary_names_the_best_and_what_beats_the_baseline() -> None:
    report = made_up(("resnet56:resnet20",))
    (finding,) = summary(views(report.tables, report.runs), report.runs).findings
    cells = report.tables[0].cells
    (best,) = cells[cells["mark"] == "best"].itertuples()
    assert finding.startswith(f"{best.row} is best on resnet56 → resnet20 with {best.mean:.2f} ± {best.std:.2f} %")
    above = set(cells[(cells["against"] == "above") & (cells["row"] != "student")]["row"])
    assert 0 < len(above) <= NAMED
    named = finding[finding.index("Better than kd") :]
    assert {row for row in cells["row"].unique() if f" {row} (+" in named} == above


def test_of_an_error_lower_is_better() -> None:
    report = made_up(("resnet56:resnet20",), metric="top1-error")
    (finding,) = summary(views(report.tables, report.runs), report.runs).findings
    assert "No method is better than kd" in finding  # all others have higher errors
    assert 'class="v v0 bad"' in report.page


def test_rows_of_the_front_are_not_reached_by_a_cheaper_one() -> None:
    report = made_up(("resnet56:resnet20",))
    (view,) = views(report.tables, report.runs)
    panel = next(panel for panel in cost_panels(view, report.epochs) if panel.cost == "cpu-seconds")
    means = view.table.cells.set_index("row")["mean"]
    costs = (
        report.runs.assign(row=report.runs["row"].replace("vanilla", "student")).groupby("row")["cpu_seconds"].mean()
    )
    costs = costs.map(lambda seconds: float(f"{seconds:.2g}"))
    for point in panel.points:
        beaten = any(costs[row] <= costs[point.label] and means[row] > means[point.label] for row in costs.index)
        assert point.front == (not beaten)


def test_the_interval_of_a_mean() -> None:
    low, high = interval([70.0, 71.0, 72.0]) or (0.0, 0.0)
    assert (low, high) == pytest.approx((71 - 4.302653 / 3**0.5, 71 + 4.302653 / 3**0.5), abs=1e-5)
    assert interval([70.0]) is None


def test_an_axis_maps_ends_and_ticks() -> None:
    axis = Axis(0, 10, 0, 200)
    assert [axis.at(value) for value in (0, 5, 10)] == [0, 100, 200]
    assert axis.ticks(5) == [(0, "0"), (40, "2"), (80, "4"), (120, "6"), (160, "8"), (200, "10")]
    assert Axis(0.0, 0.5, 0, 100).ticks(5)[1] == (20, "0.1")
    assert Axis(1, 100, 0, 200, log=True).at(10) == 100


def test_paths_are_relative() -> None:
    assert path([(1, 2), (4, 2), (5, 9)]) == "M1 2l3 0 1 7"
    assert path([]) == ""


def test_labels_are_moved_apart_in_order() -> None:
    assert apart([10, 12, 11], 5, 0, 100) == [10, 20, 15]
    assert apart([98, 99], 5, 0, 100) == [95, 100]


def test_thinning_keeps_the_ends() -> None:
    kept = thinned(240, 60)
    assert (kept[0], kept[-1], len(kept)) == (0, 239, 60)
    assert list(thinned(3, 60)) == [0, 1, 2]
