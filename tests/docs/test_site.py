"""``mkdocs build --strict``: all pages are in the navigation, links and anchors lead somewhere, nothing is loaded."""

import logging
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

MISSING = "mkdocs is not installed: pip install 'kdtable[docs]'"
mkdocs_build = pytest.importorskip("mkdocs.commands.build", reason=MISSING)
pytest.importorskip("material", reason=MISSING)

ROOT = Path(__file__).parents[2]

#: Attributes by which a page loads something, by tag; an anchor's href only leads there.
LOADS = {
    "script": "src",
    "link": "href",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
}


class Loaded(HTMLParser):
    """Collects the addresses that a page loads, and its headings' anchors."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get(LOADS.get(tag, ""))
        if address:
            self.addresses.append(address)


def _built(config_file: Path, site: Path) -> list[str]:
    """Build the site; its warnings, which ``--strict`` makes errors."""
    from mkdocs.config import load_config

    warnings: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warnings.append(record.getMessage())

    kept = Kept(logging.WARNING)
    logger = logging.getLogger("mkdocs")
    logger.addHandler(kept)
    try:
        config = load_config(str(config_file), site_dir=str(site), strict=False)
        config.plugins.on_startup(command="build", dirty=False)
        mkdocs_build.build(config)
        config.plugins.on_shutdown()
    finally:
        logger.removeHandler(kept)
    return warnings


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    assert _built(ROOT / "mkdocs.yml", folder) == []
    return folder


def test_the_reference_has_what_the_code_has(site: Path) -> None:
    from kdtable.cli import PANELS
    from kdtable.methods import METHODS
    from kdtable.models.names import NETWORKS

    commands = (site / "reference" / "commands" / "index.html").read_text(encoding="utf-8")
    for panel in PANELS.values():
        for command in panel:
            assert f'id="kdtable-{command.__name__.rstrip("_").replace("_", "-")}"' in commands
    methods = (site / "reference" / "methods" / "index.html").read_text(encoding="utf-8")
    assert len(re.findall("<h3 id=", methods)) == len(METHODS)
    networks = (site / "reference" / "networks" / "index.html").read_text(encoding="utf-8")
    assert all(f"<code>{name}</code>" in networks for name in NETWORKS)


def test_nothing_is_loaded_from_another_site(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    loaded = {address for page in pages for address in Loaded(page).addresses}
    assert len(loaded) > 2
    assert not [address for address in loaded if re.match(r"(?:\w+:)?//", address)]


def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    text = re.sub(r"^hooks:\n(?:  .*\n)+", "", text, flags=re.MULTILINE)
    text = text[: text.index("nav:\n  - ")] + "nav: [index.md, other.md]\n"
    (tmp_path / "docs").mkdir()
    (tmp_path / "mkdocs.yml").write_text(text)
    (tmp_path / "docs" / "other.md").write_text("# Other\n")
    (tmp_path / "docs" / "index.md").write_text("# Home\n\n[page](none.md) [anchor](other.md#none)\n")
    warnings = _built(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert len(warnings) == 2
    assert "none.md" in warnings[0]
    assert "#none" in warnings[1]
