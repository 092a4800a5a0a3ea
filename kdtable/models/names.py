"""The networks by name. Needs no torch, so that checking and completing names is fast."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from kdtable.errors import BadRequest, unknown
from kdtable.models import foreign
from kdtable.plugins import FORGET, Registry


@dataclass(frozen=True, slots=True)
class Entry:
    """The class of a network: ``Entry("my_package.nets", "TinyNet", {"width": 16})``.

    Attributes:
        module: the module that has the class.
        cls: the class's name; it is called with ``num_classes`` and ``args``.
        args: keyword arguments.
        sized: whether the parameters depend on the images' size; the class then gets ``image_size`` too.
        version: part of a run's identity; raise it when the network's outputs or initial weights change.
        task: name of the task that it is for.
    """

    module: str
    cls: str
    args: Mapping[str, Any] = field(default_factory=dict)
    sized: bool = False
    version: int = 1
    task: str = "classification"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of extra classifiers; ``BASE+KIND`` is network BASE with them.

    Attributes:
        module: the module that has the function.
        function: name of the function that adds them, called with the network, ``num_classes`` and ``image_size``.
        bases: the networks that can have them; empty for all.
        version: as of :class:`Entry`.
    """

    module: str
    function: str
    bases: tuple[str, ...] = ()
    version: int = 1


def _detectors() -> dict[str, Entry]:
    """Faster R-CNN and RetinaNet: small ones, and those of torchvision by body; ``_bn`` ones start at random."""
    small, large = "kdtable.models.detection.small", "kdtable.models.detection.large"
    found: dict[str, Entry] = {}
    for family, function, bodies in (
        ("fasterrcnn", "faster_rcnn", ("resnet18", "resnet34", "resnet50", "resnet101", "mobilenetv2")),
        ("retinanet", "retinanet", ("resnet18", "resnet34", "resnet50", "resnet101")),
    ):
        for width in (8, 16, 32):
            found[f"{family}_w{width}"] = Entry(small, function, {"width": width}, task="detection")
        for body in bodies:
            found[f"{family}_{body}"] = Entry(large, function, {"body": body}, task="detection")
            found[f"{family}_{body}_bn"] = Entry(large, function, {"body": body, "scratch": True}, task="detection")
    found["retinanet_resnet18_mgd"] = Entry(large, "retinanet", {"body": "resnet18", "groups": True}, task="detection")
    return found


#: Entry points of the group ``kdtable.models`` add to it; each is an :class:`Entry`.
NETWORKS: Final[Registry[Entry]] = Registry(
    "kdtable.models",
    {
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
        "wide_resnet18": Entry("kdtable.models.wide_resnet", "MassiveResNet", {"blocks": (2, 2, 2, 2)}),
        "wide_resnet34": Entry("kdtable.models.wide_resnet", "MassiveResNet", {"blocks": (3, 4, 6, 3)}),
        "dih_vgg11": Entry("kdtable.models.dih_vgg11", "DihVGG11", {"taps": "code"}, sized=True),
        "dih_vgg11_paper": Entry("kdtable.models.dih_vgg11", "DihVGG11", {"taps": "paper"}, sized=True),
        "wrn_28_2": Entry("kdtable.models.wrn_28_2", "PlainWideResNet", version=2),
        "tv_resnet18": Entry("kdtable.models.tv_resnet", "TvResNet", {"depth": 18}),
        "tv_resnet34": Entry("kdtable.models.tv_resnet", "TvResNet", {"depth": 34}),
        "tv_resnet50": Entry("kdtable.models.tv_resnet", "TvResNet", {"depth": 50}),
        "tv_resnet101": Entry("kdtable.models.tv_resnet", "TvResNet", {"depth": 101}),
        "tv_resnet152": Entry("kdtable.models.tv_resnet", "TvResNet", {"depth": 152}),
        "tv_mobilenetv2": Entry("kdtable.models.tv_mobilenetv2", "TvMobileNetV2"),
        "tv_shufflenetv2": Entry("kdtable.models.tv_shufflenetv2", "TvShuffleNetV2"),
        "cd_resnet50": Entry("kdtable.models.tv_resnet", "TvResNet", {"depth": 50, "stem": "small"}),
        "cd_resnet152": Entry("kdtable.models.tv_resnet", "TvResNet", {"depth": 152, "stem": "small"}),
        "moco_resnet50": Entry("kdtable.models.moco_resnet", "MoCoResNet", {"depth": 50}, task="self-supervised"),
        "mobilenetv1": Entry("kdtable.models.mobilenetv1", "MobileNetV1"),
        "mgd_mobilenetv2": Entry("kdtable.models.mgd_mobilenetv2", "MgdMobileNetV2"),
        "mgd_shufflenetv2": Entry("kdtable.models.tv_shufflenetv2", "TvShuffleNetV2"),
        **_detectors(),
    },
)

_OF_THREE_STAGES = tuple(f"resnet{depth}" for depth in (8, 14, 20, 32, 44, 56, 110))
_OPTION_A = tuple(f"resnet{depth}_a" for depth in (20, 32, 44, 56, 110))

KINDS: Final[dict[str, Kind]] = {
    "heads": Kind("kdtable.models.branched", "with_heads"),
    "tofd": Kind(
        "kdtable.models.tofd",
        "with_tofd",
        (*_OF_THREE_STAGES, *_OPTION_A, "wide_resnet18", "wide_resnet34", "wrn_28_2"),
    ),
}

#: Names in papers and in common use. An alias of several networks is refused, with their names.
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
    "resnet18": ("wide_resnet18", "tv_resnet18"),
    "resnet34": ("wide_resnet34", "tv_resnet34"),
    "resnet101": ("tv_resnet101",),
    "resnet152": ("cd_resnet152", "tv_resnet152"),
    "mobilenet": ("mobilenetv1", "MobileNetV2", "tv_mobilenetv2", "mgd_mobilenetv2"),
    "tv_shufflenet_v2_x1_0": ("tv_shufflenetv2",),
    "wr_28_2": ("wrn_28_2",),
}


def canonical(name: str) -> str:
    """The name in ``NETWORKS`` of a name or alias, ignoring case, ``-`` and ``_``.

    Extra classifiers stay: ``canonical("res56+Heads")`` is ``"resnet56+heads"``.

    Raises:
        BadRequest: no network has the name, several have it, or the network cannot have these classifiers.
    """
    base, kind = split(name)
    return f"{base}+{kind}" if kind else base


def base_name(name: str) -> str:
    """The canonical name of a network without its extra classifiers.

    Raises:
        BadRequest: as of :func:`canonical`.
    """
    return split(name)[0]


def stored_base(name: str) -> str:
    """As :func:`base_name`, for the network of a stored run, which may be of a plug-in that is not loaded."""
    try:
        return base_name(name)
    except BadRequest:
        return name.partition("+")[0]


def version(name: str) -> int:
    """The version of a network's code, part of a run's identity: it rises when outputs or initial weights change.

    Raises:
        BadRequest: as of :func:`canonical`.
    """
    base, kind = split(name)
    # Both versions only rise, so their sum never repeats.
    return entry_of(base).version + (KINDS[kind].version if kind else 0)


def checked(name: str) -> str:
    """As :func:`canonical`, for a name that a user wrote: a network of another library is looked up there.

    Raises:
        BadRequest: as of :func:`canonical`; or the library is not installed, or has no such network.
    """
    found = canonical(name)
    if foreign.is_foreign(found):
        foreign.check(found.partition("+")[0])
    return found


def entry_of(base: str) -> Entry:
    """The entry of a network's canonical name without extra classifiers; imports nothing."""
    library, colon, name = base.partition(":")
    if colon:
        return Entry(foreign.LIBRARIES[library], "build", {"name": name}, sized=True)
    return NETWORKS[base]


def task_of(name: str) -> str:
    """Name of the task that a network is for.

    Raises:
        BadRequest: as of :func:`canonical`.
    """
    return entry_of(base_name(name)).task


def of_task(task: str) -> list[str]:
    """Names of the networks that are for a task."""
    return [name for name, entry in NETWORKS.items() if entry.task == task]


def source(name: str) -> dict[str, str]:
    """The hash of the source of a network that is not kdtable's own, for a run's identity; empty for our own.

    Raises:
        BadRequest: as of :func:`canonical`.
    """
    base, _ = split(name)
    if foreign.is_foreign(base):
        return {}  # of a library, whose version is recorded
    found = NETWORKS.source(base, NETWORKS[base].module)
    return {} if found is None else {"source": found}


def same_as(name: str) -> tuple[str, ...]:
    """The networks that a name means in any spelling; none if it is free."""
    _by_folded_name.cache_clear()
    return _by_folded_name().get(_fold(name), ())


def weights_of(name: str) -> str:
    """The network whose published weights ``name`` uses: one of the same modules, with other taps or strides.

    A detector uses those of the classifier that its body is of.
    """
    if name in NETWORKS and entry_of(name).task == "detection":
        return f"tv_{entry_of(name).args.get('body', name)}"
    return {"mgd_mobilenetv2": "tv_mobilenetv2", "mgd_shufflenetv2": "tv_shufflenetv2"}.get(name, name)


def split(name: str) -> tuple[str, str]:
    """``("resnet56", "heads")`` of ``res56+heads``, and ``("resnet56", "")`` of ``res56``.

    Raises:
        BadRequest: as of :func:`canonical`.
    """
    text, plus, classifiers = name.partition("+")
    base, kind = _base(text), classifiers.lower()
    if not plus:
        return base, ""
    if classifiers and all(map(known, classifiers.split("+"))):
        raise BadRequest(f"'{name}' names several networks, which only the teacher of a pair can be: name one")
    if kind not in KINDS:
        raise BadRequest(f"network '{name}' has unknown classifiers: write {base}+{f' or {base}+'.join(KINDS)}")
    if KINDS[kind].bases and base not in KINDS[kind].bases:
        raise BadRequest(f"{base} cannot have the classifiers '{kind}': these can: {', '.join(KINDS[kind].bases)}")
    return base, kind


def known(name: str) -> bool:
    """Whether a name, without extra classifiers, is that of a network, or of several."""
    return foreign.is_foreign(name) or _fold(name) in _by_folded_name()


def _base(name: str) -> str:
    if foreign.is_foreign(name):
        return foreign.spelled(name)
    candidates = _by_folded_name().get(_fold(name))
    if candidates is None:
        raise unknown("network", name, [*NETWORKS, *ALIASES], "models")
    if len(candidates) > 1:
        raise BadRequest(f"network '{name}' is ambiguous: say {' or '.join(candidates)}")
    return candidates[0]


def _fold(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


@cache
def _by_folded_name() -> dict[str, tuple[str, ...]]:
    aliases = {_fold(alias): names for alias, names in ALIASES.items()}
    return aliases | {_fold(name): (name,) for name in NETWORKS}


FORGET.append(_by_folded_name.cache_clear)
