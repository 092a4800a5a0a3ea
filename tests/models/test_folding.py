import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from kdtable import models
from kdtable.models.folding import fold_batch_norms
from kdtable.models.names import of_task
from kdtable.models.network import Network
from kdtable.models.outputs import Outputs

#: Batch norms that cannot be folded: those that follow a sum (all but one per block of a WRN).
UNFOLDED = {
    **{"wrn_16_1": 7, "wrn_16_2": 7, "wrn_40_1": 19, "wrn_40_2": 19},
    **dict.fromkeys(("wrn_28_2", "wrn_28_2+heads", "wrn_28_2+tofd"), 13),
}
#: Of the same code as a smaller one.
LARGE = {"resnet44", "resnet56", "resnet110", "wide_resnet34", "cd_resnet50", "cd_resnet152", "mgd_shufflenetv2"} | {
    f"tv_resnet{depth}" for depth in (34, 101, 152)
}
SHALLOW = sorted(set(of_task("classification")) - LARGE)
BRANCHED = ["resnet8+heads", "resnet8+tofd", "resnet20_a+tofd", "wide_resnet18+tofd", "wrn_28_2+heads", "wrn_28_2+tofd"]


def trained_like(name: str, classes: int = 10) -> nn.Module:
    """A network whose batch norms have statistics and scales of their own."""
    torch.manual_seed(3)
    network = models.build(name, classes, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    return network


def tensors(outputs: Outputs) -> list[torch.Tensor]:
    assert outputs.stem is not None
    assert outputs.embedding is not None
    branches = [tensor for branch in outputs.branches for tensor in branch]
    return [outputs.logits, outputs.stem, outputs.embedding, *outputs.stages, *outputs.preacts, *branches]


@pytest.mark.parametrize("name", [*SHALLOW, *BRANCHED])
def test_folding_keeps_every_output_within_1e_5(name: str) -> None:
    network = trained_like(name)
    folded = copy.deepcopy(network)
    count = fold_batch_norms(folded)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert norms - count == UNFOLDED.get(name, 0)
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        for plain, new in zip(tensors(network(images)), tensors(folded(images)), strict=True):
            assert (plain - new).abs().max() <= 1e-5 * plain.abs().max()


def test_a_folded_network_has_no_batch_norms_in_front_of_its_taps() -> None:
    network = trained_like("resnet8")
    assert isinstance(network, Network)
    assert None not in network.tap_norms()
    fold_batch_norms(network)
    assert network.tap_norms() == (None, None, None)


def test_folding_needs_eval_mode() -> None:
    with pytest.raises(ValueError, match="eval mode"):
        fold_batch_norms(models.build("resnet8", 10))


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "tv_resnet18", "tv_mobilenetv2"])
def test_a_folded_network_is_freed_without_the_cyclic_collector(name: str) -> None:
    models.build(name, 10)  # a package's first import leaves the frames that imported it to the collector
    gc.collect()
    gc.disable()
    try:
        network = trained_like(name)
        fold_batch_norms(network)  # type: ignore[arg-type]
        parameters = [weakref.ref(parameter) for parameter in network.parameters()]
        del network
        assert not [one for one in parameters if one() is not None]
    finally:
        gc.enable()
