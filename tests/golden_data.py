"""Golden data: which sets there are, which cases they have, and tests that run for every case.

A set is a folder with a ``manifest.json`` and the arrays that it lists; the sets' own READMEs say what is in them. They
are read from ``tests/golden``, or from where ``--golden DIR`` says. Nothing is assumed of a case but its kind: which
check it needs is looked up by that, and shapes and settings are the case's own.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import pytest
import torch

OWN: Final = Path(__file__).parent / "golden"

#: Lists of a manifest that hold cases; and files beside it that do.
LISTS: Final = ("cases", "losses", "models", "modules")
FILES: Final = {"models.json": "models", "trajectories.json": "cases"}


class Root:
    """The folder that the sets are read from."""

    path: Path = OWN
    #: Whether it was asked for, by ``--golden``.
    is_given: bool = False


@dataclass(frozen=True)
class Entry:
    """One case as its set describes it.

    Attributes:
        folder: of its set.
        part: the list or the file that it is in: one of ``LISTS`` or ``FILES``, or "steps".
        place: its place there.
        data: what is said of it.
    """

    folder: Path
    part: str
    place: int
    data: Mapping[str, Any] = field(compare=False, repr=False)

    @property
    def name(self) -> str:
        return str(self.data.get("id", self.data.get("name", self.place)))

    @property
    def kind(self) -> str:
        """What the case is of: every set has one of these fields."""
        return next((str(self.data[key]) for key in ("method", "kind", "family") if key in self.data), "")

    def __str__(self) -> str:
        return f"{self.folder.name}/{self.part}: {self.name}" + (f" ({self.kind})" if self.kind else "")


@lru_cache
def read(path: Path) -> Any:
    """A file of JSON."""
    return json.loads(path.read_text())


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = read(folder / "manifest.json")
    return found


def sets() -> list[Path]:
    """The folders of the sets under the root."""
    return sorted(path.parent for path in Root.path.glob("*/manifest.json"))


def entries(folder: Path) -> list[Entry]:
    """All cases of a set."""
    return [
        Entry(folder, part, place, data) for part, cases in _lists(folder).items() for place, data in enumerate(cases)
    ]


def _lists(folder: Path) -> dict[str, Sequence[Mapping[str, Any]]]:
    content = manifest(folder)
    found = {part: content[part] for part in LISTS if part in content}
    if "steps" in content:
        found["steps"] = content["steps"]["runs"]
    for file, part in FILES.items():
        if (folder / file).exists():
            found[file] = _named(read(folder / file)[part])
    return found


def _named(cases: Any) -> Sequence[Mapping[str, Any]]:
    """Cases as a list, where a file has them by their names."""
    return [{"id": name, **case} for name, case in cases.items()] if isinstance(cases, dict) else cases


def unread_files(folder: Path) -> list[str]:
    """Files of a set that look like data, and that belong to no case."""
    known = {str(entry.data.get("file")) for entry in entries(folder)} | {"manifest.json", *FILES}
    content = manifest(folder)
    known |= {f"{part}.npz" for part in ("models", "steps") if part in content}
    return sorted(path.name for path in folder.iterdir() if path.suffix in (".npz", ".json") and path.name not in known)


# --- tests of cases ----------------------------------------------------------------------------------------------

Check = Callable[[Any], None]


def checks(
    where: str,
    *kinds: str,
    arrays: Callable[[Entry, torch.dtype], Any],
    dtypes: Sequence[torch.dtype] = (torch.float64,),
) -> Callable[[Check], Callable[[Entry, torch.dtype], None]]:
    """Make a check a test of all cases of some kinds.

    Args:
        where: the set, or SET/PART for another part of it than its main list.
        kinds: of the cases; all of the part's, if none is named.
        arrays: what the check is given, made of a case and a floating-point type; after the check every expected array
            must have been compared.
        dtypes: to be checked in; a case that is ``float64_only`` is checked in float64.
    """

    def decorate(check: Check) -> Callable[[Entry, torch.dtype], None]:
        def test(entry: Entry, dtype: torch.dtype) -> None:
            given = arrays(entry, dtype)
            check(given)
            given.assert_all_compared()

        for name in ("__name__", "__qualname__", "__doc__", "__module__"):
            setattr(test, name, getattr(check, name))
        chosen = _params(where, kinds, dtypes)
        return pytest.mark.parametrize(("entry", "dtype"), chosen)(test)

    return decorate


def _params(where: str, kinds: Sequence[str], dtypes: Sequence[torch.dtype]) -> list[Any]:
    chosen = [entry for entry in _part(where) if not kinds or entry.kind in kinds]
    if not chosen:
        missing = f"{Root.path} has no case of {where}" + (f" of kind {' or '.join(kinds)}" if kinds else "")
        if not Root.is_given:
            raise LookupError(missing)
        return [pytest.param(None, None, id="none", marks=pytest.mark.skip(reason=missing))]
    return [
        pytest.param(entry, dtype, id=entry.name + (f"-{dtype}".replace("torch.", "") if len(dtypes) > 1 else ""))
        for entry in chosen
        for dtype in dtypes
        if dtype == torch.float64 or _is_for_both(entry)
    ]


def _is_for_both(entry: Entry) -> bool:
    """Whether a case is to be checked in float32, too."""
    return not entry.data.get("float64_only") and entry.data.get("f32_tol", True) is not None


def _part(where: str) -> list[Entry]:
    name, _, part = where.partition("/")
    folder = Root.path / name
    if not (folder / "manifest.json").exists():
        return []
    main = next((main for main in LISTS if main in manifest(folder)), "")
    return [entry for entry in entries(folder) if entry.part == (part or main)]
