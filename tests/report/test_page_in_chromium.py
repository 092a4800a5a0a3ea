"""The page in a real browser: Debian's Chromium, driven by playwright."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.report.pages import made_up, without

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    with playwright.sync_playwright() as driver:
        # Chromium's sandbox does not start for root, as whom containers run.
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    pairs = ["resnet56:resnet20", "resnet32x4:ShuffleV1", "wrn_40_2:wrn_16_2", "wrn_40_2:wrn_40_1", "vgg13:vgg8"]
    path.write_text(without(made_up(pairs), "nst", 0, failed=3, asked=3).page, "utf-8")
    return path


def opened(browser: "Browser", file: Path, **options: Any) -> "tuple[Page, list[str]]":
    """The page in a context of its own, and the list of what it complains of or asks for."""
    page, found = browser.new_context(**options).new_page(), []
    page.on("console", lambda message: found.append(message.text))
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("request", lambda request: found.append(request.url) if request.url != file.as_uri() else None)
    page.goto(file.as_uri())
    return page, found


@pytest.fixture
def page(browser: "Browser", file: Path) -> "Iterator[Page]":
    page, found = opened(browser, file, viewport={"width": 1280, "height": 900})
    yield page
    assert found == []
    page.context.close()


def methods(page: "Page") -> list[str]:
    return [text.strip() for text in page.locator(".grid tbody.rows tr:visible th").all_inner_texts()]


def numbers(page: "Page", column: int) -> list[float]:
    """Those visible in a column of the methods' rows."""
    cells = page.locator(f".grid tbody.rows tr td:nth-child({column + 2}) .v:visible b").all_inner_texts()
    return [float(text.replace("\N{MINUS SIGN}", "-")) for text in cells if text != "—"]


def test_a_click_on_a_heading_sorts(page: "Page") -> None:
    before = methods(page)
    heading = page.locator(".grid thead th").nth(1)
    heading.get_by_role("button").click()
    found = numbers(page, 0)
    assert found == sorted(found, reverse=True)
    assert heading.get_attribute("aria-sort") == "descending"
    assert methods(page)[-1] == "nst"  # without a number, so last
    heading.get_by_role("button").click()
    assert numbers(page, 0) == sorted(found)
    assert methods(page)[-1] == "nst"
    page.locator(".grid thead th").nth(0).get_by_role("button").click()
    assert methods(page) == sorted(before)


def test_the_tabs_change_the_numbers_and_keep_the_order(page: "Page") -> None:
    page.locator(".grid thead th").nth(2).get_by_role("button").click()
    last = numbers(page, 1)
    page.get_by_text("Best epoch").click()
    best = numbers(page, 1)
    assert [round(ours - theirs, 2) for ours, theirs in zip(best, last, strict=True)] == [0.21] * len(last)
    page.get_by_text("Gain over kd").first.click()
    gains = numbers(page, 1)
    assert gains == sorted(gains, reverse=True)
    assert min(gains) == 0  # kd's own


def test_the_filter_hides_rows(page: "Page") -> None:
    box = page.locator(".hero input[type=search]")
    box.fill("KD")
    assert methods(page) == ["kd", "crd+kd"]
    assert page.locator(".grid tbody.base tr:visible").count() == 2
    box.fill("")
    assert len(methods(page)) == 7
    page.locator("#runs input[type=search]").fill("failed nst")
    assert page.locator("#runs tbody tr:visible").count() == 3


def test_published_numbers_can_be_hidden(page: "Page") -> None:
    assert page.locator(".pub:visible").count() > 0
    page.get_by_text("Published numbers").click()
    assert page.locator(".pub:visible").count() == 0


def test_hovering_shows_every_seed(page: "Page") -> None:
    tip = page.locator("#tip")
    assert not tip.is_visible()
    page.locator(".grid tbody.rows td .v:visible").nth(0).hover()
    assert [line.split("\u2002")[0] for line in tip.inner_text().splitlines()] == ["seed 1", "seed 2", "seed 3"]


def test_a_click_on_a_cell_opens_its_runs(page: "Page") -> None:
    dialog = page.locator("dialog")
    page.locator(".grid tbody.rows tr", has_text="crd+kd").locator("td a").nth(1).click()
    assert dialog.is_visible()
    assert dialog.locator("h2").inner_text() == "crd+kd on resnet32x4 → ShuffleV1"
    text = dialog.inner_text()
    assert "kdtable run --pairs resnet56:resnet20 --methods crd --seeds 1," in text
    assert all(word in text for word in ("batch_size", "SHA-256 " + "a" * 64, "torch", "0108000000000001"))
    losses = [" ".join(text.split()) for text in dialog.locator("figcaption").all_inner_texts()]
    assert losses == ["train loss 3.1 → 0.258", "ce 2.3 → 0.192", "crd 0.8 → 0.0667"]
    dialog.get_by_text("seed 3").click()
    assert "--seeds 3," in dialog.inner_text()
    page.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_failed_runs_can_be_opened_by_the_keyboard(page: "Page") -> None:
    link = page.locator(".grid tbody.rows tr", has_text="nst").locator("td a").nth(0)
    link.focus()
    page.keyboard.press("Enter")
    assert page.locator("dialog").get_by_role("button").all_inner_texts() == ["Close", "seed 1", "seed 2", "seed 3"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_screen(browser: "Browser", file: Path, width: int, scheme: str) -> None:
    page, found = opened(browser, file, viewport={"width": width, "height": 844}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.locator("td a").first.click()
    box = page.locator("dialog").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    assert page.evaluate("document.querySelector('dialog').scrollWidth <= document.querySelector('dialog').clientWidth")
    assert found == []
    page.context.close()


def contrast(colours: list[list[float]]) -> float:
    """The contrast ratio of two sRGB colours in [0, 255], as WCAG defines it."""

    def luminance(colour: list[float]) -> float:
        parts = [value / 255 for value in colour[:3]]
        red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted(map(luminance, colours))
    return (high + 0.05) / (low + 0.05)


#: The colour of an element's text and of what is painted behind it, as the browser computes them.
COLOURS = """element => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  let behind = element;
  while (behind && rgb(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
  return [rgb(getComputedStyle(element).color), rgb(getComputedStyle(behind).backgroundColor)];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast(browser: "Browser", file: Path, scheme: str) -> None:
    page, _ = opened(browser, file, color_scheme=scheme)
    for selector in (
        ".facts",
        ".v b",
        ".v small",
        ".v.best b",
        ".pub",
        ".teacher",
        ".heat td",
        ".note",
        ".list td.bad",
    ):
        for element in page.locator(f"{selector}:visible").all()[:40]:
            assert contrast(element.evaluate(COLOURS)) >= 4.5, (selector, element.inner_text())
    page.context.close()


def test_the_page_is_complete_without_scripts(browser: "Browser", file: Path) -> None:
    page, found = opened(browser, file, java_script_enabled=False)
    assert page.locator(".grid tbody.rows tr").count() == 7
    assert not page.locator("input[type=search]").first.is_visible()
    page.get_by_text("Best epoch").click()  # the tabs are style alone
    assert page.locator(".v1:visible").count() > 0
    assert page.locator(".v0:visible").count() == 0
    page.locator(".grid td a").first.click()
    assert page.url.startswith(file.as_uri() + "#r-")
    assert found == []
    page.context.close()
