"""Registries: our own objects by name, and those that other packages and plug-ins register.

Our own objects are a literal table of "module:Name" by name. Entry points join it at the first lookup. An object is
imported when it is requested.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from kdtable.errors import BadRequest
from kdtable.plugins.declare import settings_of
from kdtable.plugins.sources import installed_hash

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Component:
    """An object of a plug-in's file.

    Attributes:
        target: what the file declares.
        make: returns the object, made of it.
        source: hash of the file.
        file: the file.
        settings: what the file says about it.
    """

    target: Any
    make: Callable[[], Any]
    source: str
    file: Path
    settings: Mapping[str, Any] = field(default_factory=dict)


class Registry(Mapping[str, T], Generic[T]):
    """Objects by name, imported when they are requested.

    Example:
        methods = Registry("kdtable.methods", {"kd": "kdtable.methods.kd:KD"})
        methods["kd"]  # imports the module

    Args:
        group: the entry points' group, such as ``kdtable.methods``.
        own: "module:Name" by name, or the object itself if it needs no import.
    """

    def __init__(self, group: str, own: Mapping[str, Any]) -> None:
        self.group = group
        self._own = own

    @cached_property
    def targets(self) -> dict[str, Any]:
        """Targets by name: an object, "module:Name", an entry point or a plug-in's component."""
        found = dict(self._own)
        for point in sorted(entry_points(group=self.group), key=lambda point: (point.name, point.value)):
            if point.name in found:
                raise BadRequest(
                    f"{self.group} has '{point.name}' twice, as {_shown(found[point.name])} and as {_shown(point)}: "
                    "uninstall one of them"
                )
            found[point.name] = point
        return found

    def __getitem__(self, name: str) -> T:
        """The object of that name, imported if necessary.

        Raises:
            KeyError: unknown name.
            BadRequest: another package's entry point cannot be imported.
        """
        target = self.targets[name]
        if isinstance(target, Component):
            target = target.make()
        elif isinstance(target, EntryPoint):
            try:
                target = target.load()
            except (ImportError, AttributeError) as error:
                raise BadRequest(f"{self.group} '{name}' cannot be loaded from {_shown(target)}: {error}") from error
        elif isinstance(target, str):
            module, _, attribute = target.partition(":")
            target = getattr(import_module(module), attribute)
        found: T = target
        return found

    def __contains__(self, name: object) -> bool:
        """Whether the name is known; imports nothing."""
        return name in self.targets

    def __iter__(self) -> Iterator[str]:
        """Names, our own first."""
        return iter(self.targets)

    def __len__(self) -> int:
        return len(self.targets)

    def source(self, name: str, *modules: str) -> str | None:
        """The hash of the source of what a plug-in or another package registered; ``None`` for our own objects.

        Args:
            name: of the object.
            modules: further modules that an entry point's object stands for; kdtable's own do not count.

        Raises:
            KeyError: unknown name.
        """
        target = self.targets[name]
        if isinstance(target, Component):
            return target.source
        if isinstance(target, EntryPoint):
            others = (module for module in modules if module.partition(".")[0] != "kdtable")
            return installed_hash(*dict.fromkeys((target.module, *others)))
        return None

    def settings(self, name: str) -> Mapping[str, Any]:
        """What a plug-in says about its object, such as a method's row; empty for our own objects.

        An entry point's object is imported.

        Raises:
            KeyError: unknown name.
        """
        target = self.targets[name]
        if isinstance(target, Component):
            return target.settings
        return settings_of(self.group, name, self[name]) if isinstance(target, EntryPoint) else {}

    def declared(self, name: str) -> Any:
        """What a plug-in's file declares under a name, as it stands there.

        Raises:
            KeyError: no plug-in's file registered it.
        """
        target = self.targets[name]
        if not isinstance(target, Component):
            raise KeyError(name)
        return target.target

    def file(self, name: str) -> Path | None:
        """The plug-in's file that registered the name; ``None`` for all else."""
        target = self.targets.get(name)
        return target.file if isinstance(target, Component) else None

    def where(self, name: str) -> str:
        """Where the object of a name is from, in words."""
        return _shown(self.targets[name])


def _shown(target: Any) -> str:
    if isinstance(target, EntryPoint):
        return f"{target.value} of {target.dist.name}" if target.dist else target.value
    if isinstance(target, Component):
        return str(target.file)
    return target if isinstance(target, str) else "kdtable's own"
