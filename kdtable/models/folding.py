"""Fold the batch norms of a frozen network into the convolutions before them.

In eval mode a batch norm is an affine map with constant coefficients, which the convolution before it can absorb.
Outputs differ in their last bits.
"""

from collections import defaultdict
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kdtable.models.network import Hold, Network
from kdtable.models.outputs import EVERYTHING
from kdtable.models.tracing import Tracer


def fold_batch_norms(network: Network) -> int:
    """Fold, in place, every batch norm of ``network`` that is the only reader of a convolution's output.

    A batch norm behind a sum or a concatenation stays. So does one behind a convolution whose raw output is also read
    by a shortcut or as a feature map. The taps stay the same tensors. A network of timm or torchvision stays as it is.

    Returns:
        The number of folded batch norms.

    Raises:
        ValueError: the network is in train mode.
    """
    if network.training:
        raise ValueError("batch norms can be folded in eval mode only")
    pairs = _pairs(network) if network.foldable else []
    for conv, norm in pairs:
        modules = dict(network.named_modules())
        network.set_submodule(conv, fuse_conv_bn_eval(modules[conv], modules[norm]))
        network.set_submodule(norm, nn.Identity())
    return len(pairs)


def _pairs(network: Network) -> list[tuple[str, str]]:
    """Names of convolutions and of the batch norms that alone read their outputs.

    A layer that runs several times in a pass must have the same partner each time.
    """
    modules = dict(network.named_modules())
    after: dict[str, set[str | None]] = defaultdict(set)
    before: dict[str, set[str]] = defaultdict(set)
    tracer = _Tracer()
    nodes = tracer.trace(_Everything(network)).nodes
    vars(tracer).clear()  # functions that it made refer to it: the network would live until a cyclic collection
    for node in nodes:
        if _is(node, nn.Conv2d, modules):
            readers = list(node.users)
            alone = len(readers) == 1 and _is(readers[0], nn.BatchNorm2d, modules)
            after[_own_name(node)].add(_own_name(readers[0]) if alone else None)
        elif _is(node, nn.BatchNorm2d, modules):
            (source,) = node.all_input_nodes
            before[_own_name(node)].add(_own_name(source))
    partners = [(conv, next(iter(norms))) for conv, norms in after.items() if len(norms) == 1]
    return [(conv, norm) for conv, norm in partners if norm is not None and before[norm] == {conv}]


def _is(node: fx.Node, kind: type[nn.Module], modules: dict[str, nn.Module]) -> bool:
    return node.op == "call_module" and isinstance(modules[_own_name(node)], kind)


def _own_name(node: fx.Node) -> str:
    return str(node.target).removeprefix("network.")


class _Everything(nn.Module):
    """A module whose graph outputs every tensor that a hold can keep."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[object, ...]:
        hold = Hold(EVERYTHING)
        embedding = self.network.embed(images, hold)
        outputs = hold.outputs(self.network.classify(embedding), embedding)
        return outputs.logits, outputs.stem, outputs.stages, outputs.preacts, outputs.embedding, outputs.branches


class _Tracer(Tracer):
    """Takes one branch of a network whose pooling depends on the image size; either joins the same layers."""

    def to_bool(self, obj: Any) -> bool:
        return False
