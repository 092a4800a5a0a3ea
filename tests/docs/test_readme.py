"""The README is read in two minutes, and leads on."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 900
    links = re.findall(r"\]\(([^)#]+)", text)
    assert len(links) > 15
    assert not [link for link in links if not (ROOT / link).exists()]
