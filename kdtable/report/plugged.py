"""What stored runs have from plug-ins: which source they were made with, and whether that is today's."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kdtable.errors import counted
from kdtable.methods import METHODS
from kdtable.models.names import NETWORKS
from kdtable.plugins import Registry
from kdtable.store.shown import ShownRuns

Identity = Mapping[str, Any]

#: In an identity's text where a run has something from a plug-in.
MARK: Final = '"source":'


@dataclass(frozen=True, slots=True)
class Part:
    """A method or network that a plug-in gave to a run.

    Attributes:
        noun: "method", "student" or "teacher".
        name: of the method or network.
        source: hash of the plug-in's source when the run was planned.
        today: hash of what has the name now; ``None`` if nothing has it.
        file: the plug-in's file that has the name now; ``None`` if it is not loaded, or of an installed package.
    """

    noun: str
    name: str
    source: str
    today: str | None
    file: Path | None

    @property
    def same(self) -> bool:
        """Whether the source is today's."""
        return self.today == self.source

    @property
    def words(self) -> str:
        """The source, and how today's compares."""
        if self.today is None:
            return f"source {self.source} (not loaded: --plugin FILE)"
        where = "the package" if self.file is None else self.file.name
        return f"source {self.source}" + (
            f" ({where} as it is now)" if self.same else f" ({where} is {self.today} now)"
        )


def parts_of(identity: Identity) -> list[Part]:
    """What a run has from plug-ins, each source and name once."""
    given: list[tuple[str, str, Identity | None, Registry[Any]]] = [
        ("method", "name", identity["method"], METHODS),
        ("student", "network", identity["student"], NETWORKS),
        ("teacher", "network", identity["teacher"], NETWORKS),
    ]
    found: dict[tuple[str, str], Part] = {}
    for noun, key, one, registry in given:
        if one and "source" in one:
            name = one[key].partition("+")[0] if registry is NETWORKS else one[key]
            sources = one["source"] if isinstance(one["source"], Mapping) else {name: one["source"]}
            for own, source in sources.items():  # several of a combination of methods
                part = Part(noun, own, source, _today(own, registry), registry.file(own))
                found.setdefault((own, source), part)
    return list(found.values())


def _today(name: str, registry: Registry[Any]) -> str | None:
    if name not in registry:
        return None
    return registry.source(name, *([NETWORKS[name].module] if registry is NETWORKS else []))


def marked(identity: Identity) -> str:
    """The beginnings of the sources' hashes, as labels have them; empty for a run without plug-ins."""
    return "+".join(dict.fromkeys(part.source[:8] for part in parts_of(identity)))


def options(identity: Identity, unknown: str) -> Iterator[tuple[str, str]]:
    """``--plugin`` for each file that a run needs; ``unknown`` stands for one that is not loaded, or was edited."""
    files: dict[str, None] = {}
    for part in parts_of(identity):
        if not part.same:
            files[unknown] = None
        elif part.file is not None:
            files[os.path.relpath(part.file)] = None
    yield from (("--plugin", file) for file in files)


def warnings(identity: Identity) -> list[str]:
    """Clauses on plug-ins that were edited since a run was planned."""
    return [
        f"{part.noun} {part.name} was of source {part.source[:8]} of its plug-in, which is {part.today[:8]} now"
        for part in parts_of(identity)
        if part.today is not None and not part.same
    ]


def lines(runs: ShownRuns) -> list[str]:
    """For each method and network of a plug-in a line: its sources, and how many runs each has."""
    groups = Counter(runs.kinds[kind][0] for kind in runs.kind)
    found: dict[tuple[str, str], Counter[str]] = {}
    for group, first in enumerate(runs.firsts):
        if MARK in first.protocol.text:
            for part in parts_of(first.protocol.identity):
                noun = "method" if part.noun == "method" else "network"
                found.setdefault((noun, part.name), Counter())[part.words] += groups[group]
    return [_line(noun, name, sources.items()) for (noun, name), sources in found.items()]


def _line(noun: str, name: str, sources: Iterable[tuple[str, int]]) -> str:
    each = (f"{counted(count, 'run')} of {words}" for words, count in sources)
    return f"Plug-in {noun} {name}: {'; '.join(each)}"
