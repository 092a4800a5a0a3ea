"""The networks by name. Needs no torch, so that names can be checked and completed at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from kdtable.errors import BadRequest, unknown


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a network comes from.

    Attributes:
        module: the module that has the class.
        cls: the class, called with ``num_classes`` and ``args``.
        args: its keyword arguments.
        version: part of a run's identity; raised when the network's numbers or its start change.
    """

    module: str
    cls: str
    args: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1


NETWORKS: Final[dict[str, Entry]] = {
    "resnet8": Entry("kdtable.models.resnet", "ResNet", {"depth": 8}),
    "resnet14": Entry("kdtable.models.resnet", "ResNet", {"depth": 14}),
    "resnet20": Entry("kdtable.models.resnet", "ResNet", {"depth": 20}),
    "resnet32": Entry("kdtable.models.resnet", "ResNet", {"depth": 32}),
    "resnet44": Entry("kdtable.models.resnet", "ResNet", {"depth": 44}),
    "resnet56": Entry("kdtable.models.resnet", "ResNet", {"depth": 56}),
    "resnet110": Entry("kdtable.models.resnet", "ResNet", {"depth": 110}),
    "resnet8x4": Entry("kdtable.models.resnet", "ResNet", {"depth": 8, "widths": (32, 64, 128, 256)}),
    "resnet32x4": Entry("kdtable.models.resnet", "ResNet", {"depth": 32, "widths": (32, 64, 128, 256)}),
    "resnet20_a": Entry("kdtable.models.resnet_a", "ResNetA", {"depth": 20}),
    "resnet32_a": Entry("kdtable.models.resnet_a", "ResNetA", {"depth": 32}),
    "resnet44_a": Entry("kdtable.models.resnet_a", "ResNetA", {"depth": 44}),
    "resnet56_a": Entry("kdtable.models.resnet_a", "ResNetA", {"depth": 56}),
    "resnet110_a": Entry("kdtable.models.resnet_a", "ResNetA", {"depth": 110}),
    "cifar_resnet50": Entry("kdtable.models.cifar_resnet50", "CifarResNet50"),
    "wrn_16_1": Entry("kdtable.models.wrn", "WideResNet", {"depth": 16, "widening": 1}),
    "wrn_16_2": Entry("kdtable.models.wrn", "WideResNet", {"depth": 16, "widening": 2}),
    "wrn_40_1": Entry("kdtable.models.wrn", "WideResNet", {"depth": 40, "widening": 1}),
    "wrn_40_2": Entry("kdtable.models.wrn", "WideResNet", {"depth": 40, "widening": 2}),
    "vgg8": Entry("kdtable.models.vgg", "VGG", {"convolutions": (1, 1, 1, 1, 1)}),
    "vgg11": Entry("kdtable.models.vgg", "VGG", {"convolutions": (1, 1, 2, 2, 2)}),
    "vgg13": Entry("kdtable.models.vgg", "VGG", {"convolutions": (2, 2, 2, 2, 2)}),
    "vgg16": Entry("kdtable.models.vgg", "VGG", {"convolutions": (2, 2, 3, 3, 3)}),
    "vgg19": Entry("kdtable.models.vgg", "VGG", {"convolutions": (2, 2, 4, 4, 4)}),
    "MobileNetV2": Entry("kdtable.models.mobilenetv2", "MobileNetV2"),
    "ShuffleV1": Entry("kdtable.models.shufflev1", "ShuffleV1"),
    "ShuffleV2": Entry("kdtable.models.shufflev2", "ShuffleV2"),
}

#: What papers and people call them. An alias of several networks is refused, with their names.
ALIASES: Final[dict[str, tuple[str, ...]]] = {
    "res8": ("resnet8",),
    "res14": ("resnet14",),
    "res20": ("resnet20",),
    "res32": ("resnet32",),
    "res44": ("resnet44",),
    "res56": ("resnet56",),
    "res110": ("resnet110",),
    "res8x4": ("resnet8x4",),
    "res32x4": ("resnet32x4",),
    "ResNet50": ("cifar_resnet50",),
    "ShuffleNetV1": ("ShuffleV1",),
    "ShuffleNetV2": ("ShuffleV2",),
    "shufflenet": ("ShuffleV1", "ShuffleV2"),
}


def canonical(name: str) -> str:
    """The name in ``NETWORKS`` that ``name`` means, whatever its case and its ``-`` or ``_``.

    Raises:
        BadRequest: no network has that name, or several do.
    """
    candidates = _BY_FOLDED_NAME.get(_fold(name))
    if candidates is None:
        raise unknown("network", name, [*NETWORKS, *ALIASES])
    if len(candidates) > 1:
        raise BadRequest(f"network '{name}' is ambiguous: say {' or '.join(candidates)}")
    return candidates[0]


def _fold(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


_BY_FOLDED_NAME: Final[dict[str, tuple[str, ...]]] = {
    **{_fold(alias): names for alias, names in ALIASES.items()},
    **{_fold(name): (name,) for name in NETWORKS},
}
