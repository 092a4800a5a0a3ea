"""Networks of timm (PyTorch Image Models, Wightman, doi:10.5281/zenodo.4414861) as ``timm:NAME``.

Feature maps are those of the model's ``feature_info``, which is what timm's ``features_only`` gives.
"""

from collections.abc import Sequence
from typing import Any

import timm
from torch import nn

from kdtable.errors import BadRequest
from kdtable.models.foreign import Normalisation, check
from kdtable.models.hooked import Hooked, Level, levels_of, linear_name


def build(num_classes: int, name: str, image_size: int) -> Hooked:
    """The network ``name`` of timm with its own random initialisation.

    Networks of a fixed image size, such as ViTs, are built for ``image_size``.

    Raises:
        BadRequest: the classifier is not one linear layer, or the network cannot be built for this image size.
    """
    check(f"timm:{name}")
    options = {"img_size": image_size} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    try:
        source = timm.create_model(name, num_classes=num_classes, **options)
    except (AssertionError, ValueError, ZeroDivisionError) as error:
        size = f"{image_size} x {image_size}"
        raise BadRequest(f"timm:{name} cannot be built for images of {size} pixels ({error})") from error
    return Hooked(source, linear_name(source, source.get_classifier(), f"timm:{name}"), _levels(source))


def _levels(source: Any) -> tuple[Level, ...]:
    infos = getattr(source, "feature_info", None) or []
    channels_last = getattr(source, "output_fmt", None) == "NHWC"
    return levels_of([(info["module"], info["reduction"]) for info in infos], channels_last=channels_last)


def weights(name: str) -> Sequence[str]:
    """Names of the pretrained weights of a network, as they follow its own name and a point."""
    tags: list[str] = timm.models.list_pretrained(f"{name}.*")
    return [tag.partition(".")[2] for tag in tags]


def normalisation(name: str) -> Normalisation:
    """Mean and standard deviation of the inputs that the pretrained weights were trained with."""
    config = timm.get_pretrained_cfg(name)
    return tuple(config.mean), tuple(config.std)


def pretrained(name: str) -> dict[str, Any]:
    """The ``state_dict`` with timm's weights, from its hub or its cache."""
    source: nn.Module = timm.create_model(name, pretrained=True)
    return source.state_dict()
