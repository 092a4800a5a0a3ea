"""Reading the fact sheets that lie beside the repository."""

import re
from pathlib import Path

import pytest

from kdtable.models.names import canonical

FACTS = Path(__file__).parents[2].parent / "shared" / "facts"


def sheet(name: str) -> str:
    """The text of a sheet; the test is skipped without it."""
    path = FACTS / f"{name}.md"
    if not path.exists():
        pytest.skip(f"the fact sheet {path.name} does not lie beside the repository")
    return path.read_text()


def flat(text: str) -> str:
    """A text in one line."""
    return " ".join(text.split())


def table_after(text: str, marker: str) -> list[list[str]]:
    """The cells of the first table after a marker, without its head."""
    lines = text[text.index(marker) :].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows[2:]


def number(cell: str) -> float | None:
    """The number that a cell begins with; ``None`` where it has none."""
    text = cell.partition("(")[0].strip()
    return None if text in ("-", "not found") else float(text)


def network(name: str) -> str:
    """A network of the ReviewKD sheet by our name."""
    if name == "ResNet-50":
        return "cifar_resnet50"
    short = name.replace("ShuffleNet-", "Shuffle").replace("MobileNet-", "MobileNet")
    return canonical(re.sub(r"^(ResNet|VGG)-", lambda m: m[1].lower(), short).replace("WRN-", "wrn_").replace("-", "_"))
