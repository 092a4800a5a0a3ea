"""Networks of timm and torchvision, by names such as ``timm:resnet18``. Reading a name imports neither package."""

import re
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from kdtable.errors import BadRequest, unknown

#: What a name begins with, to the module that builds such networks.
LIBRARIES: Final = {"timm": "kdtable.models.timm_network", "torchvision": "kdtable.models.torchvision_network"}

#: Mean and standard deviation per channel, for images in [0, 1].
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]

#: How both libraries mark the functions that build their networks.
_REGISTERED: Final = re.compile(r"^@register_model\b.*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+")


def is_foreign(name: str) -> bool:
    """Whether a network's name is one of another library: ``timm:resnet18``."""
    return name.partition(":")[0].strip().lower() in LIBRARIES


def spelled(name: str) -> str:
    """Our spelling of such a name; whether there is such a network, only :func:`check` says.

    Raises:
        BadRequest: no network can have the name.
    """
    library, _, own = (part.strip() for part in name.partition(":"))
    if not _NAME.fullmatch(own):
        raise BadRequest(f"network '{name}' is no name of {library.lower()}'s: write {library.lower()}:resnet18")
    return f"{library.lower()}:{own}"


def split_names(text: str) -> list[str]:
    """Split names of networks at colons, but not behind a library's name: ``timm:resnet18:resnet8`` has two."""
    names: list[str] = []
    for part in text.split(":"):
        if names and names[-1].rpartition("+")[2].strip().lower() in LIBRARIES:
            names[-1] += f":{part}"
        else:
            names.append(part)
    return names


def check(name: str) -> None:
    """Check that the library has the network; imports it if the name has weights (``timm:resnet18.a1_in1k``).

    Raises:
        BadRequest: the library is not installed, or has no such network.
    """
    library, _, own = name.partition(":")
    _check_installed(library)
    known = registered(library)
    plain, _, weights = own.partition(".")
    if plain not in known:
        raise unknown(f"network of {library}", own, known)
    if weights and weights not in (tags := _module(library).weights(plain)):
        raise unknown(f"weights of {library}:{plain}", own, [f"{plain}.{tag}" for tag in tags])


@cache
def registered(library: str) -> tuple[str, ...]:
    """Names of a library's networks, as its source registers them: importing it takes seconds; none if it is absent."""
    spec = find_spec(library) if library in LIBRARIES else None
    folders = [Path(folder, "models") for folder in (spec and spec.submodule_search_locations) or []]
    texts = (path.read_text(encoding="utf-8") for folder in folders for path in sorted(folder.glob("*.py")))
    return tuple(sorted(name for text in texts for name in _REGISTERED.findall(text)))


def own_normalisation(name: str) -> Normalisation | None:
    """The input normalisation of the library's weights of a network; ``None`` for one of kdtable's own networks.

    Raises:
        BadRequest: the library is not installed, or has no such network.
    """
    library, _, own = name.partition("+")[0].partition(":")
    if library not in LIBRARIES:
        return None
    check(f"{library}:{own}")
    found: Normalisation = _module(library).normalisation(own)
    return found


def pretrained(name: str) -> dict[str, Any]:
    """The ``state_dict`` of a network with the library's weights, which it downloads.

    Raises:
        BadRequest: there is no such network, or the library has no weights of it.
        Exception: of the library or its downloads, of any kind.
    """
    library, _, own = name.partition(":")
    check(name)
    state: dict[str, Any] = _module(library).pretrained(own)
    return state


def _module(library: str) -> Any:
    _check_installed(library)
    return import_module(LIBRARIES[library])


def _check_installed(library: str) -> None:
    if find_spec(library) is None:
        raise BadRequest(f"networks of {library} need a package that is not there: pip install 'kdtable[{library}]'")
