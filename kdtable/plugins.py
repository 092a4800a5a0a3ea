"""What can be asked for by name: our own tables, and what other packages register through entry points.

A table is literal, "module:Name" by name. Entry points of its group join it when a name is first looked up; a target is
imported only when it is asked for.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from kdtable.errors import BadRequest

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Objects by name.

    Args:
        group: of the entry points that join it: ``kdtable.methods``.
        own: "module:Name" by name, or the object itself where it costs nothing.
    """

    def __init__(self, group: str, own: Mapping[str, Any]) -> None:
        self.group = group
        self._own = own

    @cached_property
    def targets(self) -> dict[str, Any]:
        """What stands behind each name: an object, "module:Name" or an entry point."""
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
        """The object, imported if need be.

        Raises:
            KeyError: nothing has that name.
            BadRequest: another package registered what cannot be imported.
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
        """Whether there is such a name; imports nothing."""
        return name in self.targets

    def __iter__(self) -> Iterator[str]:
        """The names, our own first."""
        return iter(self.targets)

    def __len__(self) -> int:
        return len(self.targets)


def _shown(target: Any) -> str:
    if isinstance(target, EntryPoint):
        return f"{target.value} of {target.dist.name}" if target.dist else target.value
    return target if isinstance(target, str) else "its own"
