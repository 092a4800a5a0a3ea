"""The scales and shifts in front of a detector's taps, of which MGD's margins are made."""

from typing import cast

from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from kdtable.models.detection.detector import Detector

_NORMS = (nn.BatchNorm2d, nn.GroupNorm, FrozenBatchNorm2d)


def tap_affines(network: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias (C,) of the last normalisation before each tap: of a batch norm, frozen or not, or a group norm.

    That of a block's branch, if the tap is a sum.

    Raises:
        ValueError: there is none before a tap.
    """
    detector = cast(Detector, network)
    body = detector.backbone.get_submodule("body")
    return [_affine(body, name) for name in detector.tapped]


def _affine(body: nn.Module, tap: str) -> tuple[Tensor, Tensor]:
    module = body.get_submodule(tap)
    if isinstance(module, nn.ReLU):
        # A block's shortcut may have a norm too; it is no child of the block itself.
        found = [child for child in body.get_submodule(tap.rpartition(".")[0]).children() if isinstance(child, _NORMS)]
    else:
        found = [inner for inner in module.modules() if isinstance(inner, _NORMS)]
    if not found:
        raise ValueError(f"the teacher has no batch norm in front of its stage {tap}, so there are no margins")
    return found[-1].weight, found[-1].bias
