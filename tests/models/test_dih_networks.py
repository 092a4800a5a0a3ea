"""What is particular to the DIH repository's networks: taps that are a reading, and dropout."""

import pytest
import torch
from torch import Tensor

from kdtable.models import build
from kdtable.models.network import Network
from kdtable.models.wrn_28_2 import DROPPED, Block
from kdtable.training.cohort import Cohort
from kdtable.training.teacher import FrozenTeacher
from tests import engine


def images(count: int = 4, size: int = 32, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


class TestVgg:
    def test_the_reading_changes_taps_only(self) -> None:
        coded, paper = build("dih_vgg11", 10).eval(), build("dih_vgg11_paper", 10).eval()
        paper.load_state_dict(coded.state_dict())
        one, other = coded(images()), paper(images())
        assert torch.equal(one.logits, other.logits)
        assert [x.shape[1:] for x in one.stages] == [(64, 16, 16), (128, 16, 16), (256, 8, 8), (512, 1, 1)]
        assert [x.shape[1:] for x in other.stages] == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]

    def test_the_reading_is_an_option_too(self) -> None:
        stages = build("dih_vgg11", 10, taps="paper").eval()(images()).stages
        assert [x.shape[-1] for x in stages] == [16, 8, 4, 2]

    def test_an_unknown_reading_is_refused(self) -> None:
        with pytest.raises(ValueError, match="taps are one of code, paper, not 'readme'"):
            build("dih_vgg11", 10, taps="readme")

    def test_a_pool_commutes_with_the_relu_in_value_and_gradient(self) -> None:
        coded, paper = build("dih_vgg11", 10).double(), build("dih_vgg11_paper", 10).double()
        paper.load_state_dict(coded.state_dict())  # the second pool lies behind the ReLU in one of them
        for network in (coded, paper):
            network(images().double()).logits.square().sum().backward()
        for one, other in zip(coded.parameters(), paper.parameters(), strict=True):
            assert torch.equal(one.grad, other.grad)

    def test_images_too_small_for_its_pools_are_refused(self) -> None:
        with pytest.raises(RuntimeError, match="31 pixels are too small"):
            build("dih_vgg11", 10, image_size=31)

    def test_the_classifier_fits_the_images(self) -> None:
        network = build("dih_vgg11", 200, image_size=64)
        assert network.classifier.in_features == 2048
        with pytest.raises(RuntimeError):
            network(images(size=32))


def dropout(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return build("wrn_28_2", 10).train()


class TestDropout:
    def block(self, seed: int = 3) -> Block:
        block = Block(4, 4, 1).train()
        block.seed = seed
        return block

    def test_drops_its_share_and_scales_the_rest(self) -> None:
        x = torch.rand(8, 4, 50, 50) + 1
        dropped = self.block()._dropped(x)
        kept = dropped != 0
        # five standard errors
        assert kept.double().mean().item() == pytest.approx(1 - DROPPED, abs=5 * (0.21 / x.numel()) ** 0.5)
        torch.testing.assert_close(dropped[kept], x[kept] / (1 - DROPPED))

    def test_differs_by_batch_and_by_block(self) -> None:
        x, block = torch.ones(2, 4, 16, 16), self.block()
        first = block._dropped(x)
        assert torch.equal(block._dropped(x), first)
        assert not torch.equal(self.block(seed=4)._dropped(x), first)
        block.bn2(x)
        assert not torch.equal(block._dropped(x), first)

    def test_blocks_of_a_network_and_networks_of_other_starts_differ(self) -> None:
        seeds = [block.seed for network in (dropout(0), dropout(1)) for block in network.blocks()]
        assert len(set(seeds)) == 24
        assert [block.seed for block in dropout(0).blocks()] == seeds[:12]

    def test_is_off_in_eval_mode(self) -> None:
        network = dropout().eval()
        assert torch.equal(network(images()).logits, network(images()).logits)

    def test_draws_from_no_running_generator(self) -> None:
        network, before = dropout(), torch.get_rng_state()
        network(images())
        assert torch.equal(torch.get_rng_state(), before)

    def test_does_not_depend_on_company_or_interruptions(self) -> None:
        images = engine.image_set(train=20, test=4)
        task, teacher, company, alone = engine.task(images), engine.teacher(), engine.Sink(), engine.Sink()
        members = [engine.member(row, task, teacher, "wrn_28_2") for row in ("vanilla", "kd")]
        Cohort(task, FrozenTeacher(teacher, task), members, company, workers=2).train()
        member = engine.member("kd", task, teacher, "wrn_28_2")
        member.load_state(company.states["wrn_28_2-kd", 1])
        Cohort(task, FrozenTeacher(teacher, task), [member], alone).train()
        one, other = (sink.states["wrn_28_2-kd", engine.RECIPE.epochs]["student"] for sink in (company, alone))
        assert all(torch.equal(one[key], other[key]) for key in one)

    def test_goes_on_after_a_restart(self) -> None:
        network = dropout()
        network(images(seed=1))
        state = {key: value.clone() for key, value in network.state_dict().items()}
        expected = network(images(seed=2)).logits
        again = dropout()
        again.load_state_dict(state)
        assert torch.equal(again(images(seed=2)).logits, expected)
