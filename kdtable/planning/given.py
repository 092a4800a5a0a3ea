"""Files of weights that the user named: for teachers, and for students to start from."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kdtable import models
from kdtable.errors import BadRequest

#: Mean and standard deviation per channel, for images in [0, 1].
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]

#: Names of networks and what the user gives for each.
Named = Iterable[tuple[str, str | Path]]


@dataclass(frozen=True, slots=True)
class GivenWeights:
    """The user's files, by canonical network name.

    Attributes:
        teachers: weights of teachers.
        starts: weights that students start from.
        inputs: input normalisation of the network's training, where the user tells it.
    """

    teachers: Mapping[str, Path] = field(default_factory=dict)
    starts: Mapping[str, Path] = field(default_factory=dict)
    inputs: Mapping[str, Normalisation] = field(default_factory=dict)


def given_weights(teachers: Named = (), starts: Named = (), means: Named = (), stds: Named = ()) -> GivenWeights:
    """Check what the user named, in any accepted spelling of a network.

    Example:
        given_weights([("resnet56", "mine.pt")], means=[("resnet56", "0.5,0.5,0.5")], stds=[("resnet56", "1,1,1")])

    Args:
        teachers: networks and files.
        starts: networks and files.
        means: networks and three numbers with commas.
        stds: networks and three positive numbers with commas.

    Raises:
        BadRequest: an unknown name, a missing file, two values for one network, or constants that are none.
    """
    files = _files("--teacher", teachers), _files("--start", starts)
    mean, std = _constants("--input-mean", means), _constants("--input-std", stds)
    if odd := sorted(mean.keys() ^ std.keys()):
        raise BadRequest(f"--input-mean and --input-std go together: {odd[0]} has only one of them")
    if odd := sorted(mean.keys() - files[0].keys() - files[1].keys()):
        raise BadRequest(f"--input-mean {odd[0]} is for a file, and neither --teacher nor --start names one of it")
    if odd := sorted(name for name, values in std.items() if min(values) <= 0):
        raise BadRequest(f"--input-std {odd[0]} must be positive")
    return GivenWeights(*files, {name: (mean[name], std[name]) for name in mean})


def _files(option: str, named: Named) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name, file in named:
        path = Path(file).expanduser()
        if not path.is_file():
            raise BadRequest(f"{option} {name}: there is no file {path}")
        network = models.checked(name)
        if found.get(network, path) != path:
            raise BadRequest(f"{option} {network} is given as {found[network]} and as {path}: leave one out")
        found[network] = path
    return found


def _constants(option: str, named: Named) -> dict[str, tuple[float, ...]]:
    found: dict[str, tuple[float, ...]] = {}
    for name, text in named:
        network, values = models.canonical(name), _numbers(str(text).split(","))
        if len(values) != 3:
            raise BadRequest(f"{option} takes NETWORK=R,G,B, three numbers, not '{name}={text}'")
        if found.get(network, values) != values:
            raise BadRequest(f"{option} {network} is given twice with different values: leave one out")
        found[network] = values
    return found


def _numbers(texts: Sequence[str]) -> tuple[float, ...]:
    """The finite numbers that the texts say; none if one of them says no such number."""
    try:
        values = tuple(map(float, texts))
    except ValueError:
        return ()
    return values if all(map(math.isfinite, values)) else ()
