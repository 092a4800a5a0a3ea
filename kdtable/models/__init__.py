"""Networks, built by name, all with the same :class:`Outputs`."""

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from kdtable.models.names import (
    ALIASES,
    KINDS,
    NETWORKS,
    Entry,
    base_name,
    canonical,
    checked,
    entry_of,
    split,
    version,
)

if TYPE_CHECKING:
    from kdtable.models.network import Network

__all__ = ["ALIASES", "KINDS", "NETWORKS", "Entry", "base_name", "build", "canonical", "checked", "version"]


def build(
    name: str,
    num_classes: int,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int = 32,
    **options: Any,
) -> "Network":
    """A freshly initialised network.

        network = models.build("resnet8x4", 100)
        outputs = network(torch.rand(2, 3, 32, 32))  # outputs.logits (2, 100), outputs.stages, outputs.embedding

    Draws from torch's global generator. ``BASE+heads`` and ``BASE+tofd`` are BASE with extra classifiers. BASE draws
    before them, so that it starts from the same weights as alone.

    ``timm:NAME`` and ``torchvision:NAME`` are networks of these libraries, without their pretrained weights.

    Args:
        name: a name or alias that ``canonical`` accepts.
        num_classes: number of logits.
        mean: subtracted from the images per channel; give it with ``std``.
        std: divides the difference per channel. Neither adds a key to the ``state_dict``.
        image_size: height and width of the images. Linear heads and ``dih_vgg11`` work at this size only; other
            networks take any size that is large enough.
        options: options of the family: ``taps`` of ``dih_vgg11``, "code" or "paper".

    Raises:
        BadRequest: ``name`` is unknown or ambiguous.
        RuntimeError: the images are too small for the network.
        ValueError: ``num_classes`` is below 1, or ``mean`` and ``std`` do not fit together.
    """
    base, kind = split(name)
    entry = entry_of(base)
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, not {num_classes}")
    if (mean is None) != (std is None):
        raise ValueError("mean and std must be given together")
    sized = {"image_size": image_size} if entry.sized else {}
    arguments = {**entry.args, **sized, **options}
    network: Network = getattr(import_module(entry.module), entry.cls)(num_classes=num_classes, **arguments)
    if kind:
        mount = getattr(import_module(KINDS[kind].module), KINDS[kind].function)
        network = mount(network, num_classes, image_size)
    network.name = f"{base}+{kind}" if kind else base
    if mean is not None and std is not None:
        network.normalise_inputs(mean, std)
    return network
