"""Registries: our own objects by name, and those that other packages register through entry points.

Our own objects are a literal table of "module:Name" by name. Entry points join it at the first lookup. An object is
imported when it is requested.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from kdtable.errors import BadRequest

T = TypeVar("T")


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
        """Targets by name: an object, "module:Name" or an entry point."""
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
        if isinstance(target, EntryPoint):
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


def _shown(target: Any) -> str:
    if isinstance(target, EntryPoint):
        return f"{target.value} of {target.dist.name}" if target.dist else target.value
    return target if isinstance(target, str) else "its own"
