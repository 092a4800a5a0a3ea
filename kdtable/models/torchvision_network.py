"""Classification networks of torchvision as ``torchvision:NAME``.

Feature maps: of the modules in the first two ranks (children, and children of containers), the last at each resolution.
Resolutions are those of an image of 224 pixels, so that a network's levels do not depend on the images.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torchvision import models

from kdtable.errors import BadRequest
from kdtable.models.foreign import Normalisation, check
from kdtable.models.hooked import Hooked, Level, linear_name
from kdtable.models.initialisation import SkipInitialisation

#: Height and width of the image that tells a network's levels.
NOMINAL: Final = 224


def build(num_classes: int, name: str, image_size: int) -> Hooked:
    """The network ``name`` of torchvision with its own random initialisation, without auxiliary classifiers.

    ViTs are built for ``image_size``.

    Raises:
        BadRequest: the classifier is not one linear layer, or the network cannot be built for this image size.
    """
    check(f"torchvision:{name}")
    plain = name.partition(".")[0]
    levels = _levels(plain)
    try:
        source = _create(plain, num_classes, image_size)
    except (AssertionError, ValueError) as error:
        size = f"{image_size} x {image_size}"
        raise BadRequest(f"torchvision:{name} cannot be built for images of {size} pixels ({error})") from error
    layers = [module for module in source.modules() if isinstance(module, nn.Linear)]
    last = layers[-1] if layers and layers[-1].out_features == num_classes else None
    return Hooked(source, linear_name(source, last, f"torchvision:{name}"), levels)


def _create(plain: str, num_classes: int, image_size: int) -> nn.Module:
    taken = inspect.signature(_class_of(plain)).parameters
    options: dict[str, Any] = {"aux_logits": False} if "aux_logits" in taken else {}
    options |= {"init_weights": True} if "aux_logits" in taken else {}  # their default, with a warning
    options |= {"image_size": image_size} if "image_size" in taken else {}
    options |= {"input_size": (image_size, image_size)} if "input_size" in taken else {}
    source: nn.Module = models.get_model(plain, num_classes=num_classes, **options)
    return source


def _class_of(plain: str) -> Any:
    """The class that a network's builder returns an object of."""
    return inspect.signature(models.get_model_builder(plain), eval_str=True).return_annotation


@cache
def _levels(plain: str) -> tuple[Level, ...]:
    found: dict[str, tuple[int, int, int]] = {}

    def note(name: str, _: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == 4:
            found[name] = (output.shape[1], output.shape[2], output.shape[3])

    # Once in a process: it may not move the global generator, from which this network's weights are drawn next.
    with torch.random.fork_rng(devices=[]), SkipInitialisation():
        source = _create(plain, 2, NOMINAL).to("meta").eval()
    with torch.device("meta"), torch.no_grad():
        for name, module in source.named_modules():
            if name and name.count(".") <= 1 and not isinstance(module, nn.AdaptiveAvgPool2d):
                module.register_forward_hook(partial(note, name))
        source(torch.empty(1, 3, NOMINAL, NOMINAL))
    return last_of_each(found)


def last_of_each(maps: Mapping[str, tuple[int, int, int]]) -> tuple[Level, ...]:
    """The last map of each power of two that its stride reaches; none if there is only one, as in a ViT.

    Args:
        maps: module to the shape of its output, (C, H, W) or (H, W, C) with H = W, in the order of the pass.
    """
    last: dict[int, Level] = {}
    for name, (first, second, third) in maps.items():
        channels_last = second != third
        size = second if not channels_last else first
        if size > 1 and (not channels_last or first == second):
            octave = int(math.log2(NOMINAL / size))
            last[octave] = Level(name, channels_last=channels_last)
    if len(last) < 2:
        return ()
    first_one = min(last)
    return tuple(replace(level, stem=octave == first_one <= 1 and len(last) > 2) for octave, level in last.items())


def weights(name: str) -> Sequence[str]:
    """Names of the pretrained weights of a network."""
    return list(models.get_model_weights(name).__members__)


def normalisation(name: str) -> Normalisation:
    """Mean and standard deviation of the inputs that the pretrained weights were trained with."""
    transform = _weights(name).transforms()
    return tuple(transform.mean), tuple(transform.std)


def _weights(name: str) -> Any:
    """The weights that a name says, by default torchvision's own choice."""
    plain, _, tag = name.partition(".")
    return models.get_model_weights(plain)[tag or "DEFAULT"]


def pretrained(name: str) -> dict[str, Any]:
    """The ``state_dict`` with torchvision's weights, downloaded into torch's cache; without auxiliary classifiers."""
    source: nn.Module = models.get_model(name.partition(".")[0], weights=_weights(name))
    return {key: value for key, value in source.state_dict().items() if not key.lower().startswith("aux")}
