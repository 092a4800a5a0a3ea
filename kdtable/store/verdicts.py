"""Verdicts of ``kdtable doctor``, kept in the results folder by device, driver, torch and version of kdtable."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from kdtable.errors import Trouble
from kdtable.files.atomic import locked, written_whole

FILE: Final = "doctor.json"

PASSED: Final = "passed"
FAILED: Final = "failed"
SKIPPED: Final = "skipped"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found: ``Verdict("resuming", "passed", "3 runs end in the same weights", 12.5)``."""

    name: str
    result: str
    words: str
    seconds: float


def read(results: Path) -> dict[str, list[Verdict]]:
    """All kept verdicts by what was examined, oldest first.

    Raises:
        Trouble: the file is damaged.
    """
    try:
        text = (results / FILE).read_text()
    except FileNotFoundError:
        return {}
    try:
        content: dict[str, list[dict[str, Any]]] = json.loads(text)
        return {name: [Verdict(**one) for one in verdicts] for name, verdicts in content.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise Trouble(f"{results / FILE} is damaged: delete it, and examine the device again") from error


def keep(results: Path, examined: str, verdicts: Sequence[Verdict]) -> None:
    """Keep verdicts on what was examined, each in place of an earlier one of the same check.

    Raises:
        Trouble: the file is damaged.
        OSError: it cannot be written.
    """
    results.mkdir(parents=True, exist_ok=True)
    with locked(results / f".{FILE}.lock"):
        kept = read(results)
        by_check = {one.name: one for one in (*kept.get(examined, ()), *verdicts)}
        kept[examined] = list(by_check.values())
        content = {name: [asdict(one) for one in found] for name, found in kept.items()}
        with written_whole(results / FILE) as file:
            file.write(json.dumps(content, indent=1).encode())
