"""Names of several networks that teach together."""

import pytest

from kdtable import models
from kdtable.errors import BadRequest
from kdtable.models.sums import canonical_teacher, networks_of


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("resnet56+resnet110", "resnet56+resnet110"),
        ("res110 + Res56", "resnet56+resnet110"),
        ("wrn-40-2+vgg13+resnet32x4", "resnet32x4+vgg13+wrn_40_2"),
        ("resnet8x4+resnet8", "resnet8+resnet8x4"),
        ("res56", "resnet56"),
        ("res56+Heads", "resnet56+heads"),
        ("resnet20+tofd", "resnet20+tofd"),
    ],
)
def test_one_name_for_any_order_and_spelling(name: str, canonical: str) -> None:
    assert canonical_teacher(name) == canonical
    assert canonical_teacher(canonical) == canonical
    networks = networks_of(canonical)
    assert "+".join(networks) == canonical
    assert all(models.canonical(network) == network for network in networks)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet56+", "'resnet56+' lacks a network beside its +: write resnet56"),
        ("+resnet56", "'+resnet56' lacks a network beside its +: write resnet56"),
        ("resnet56++vgg13", "'resnet56++vgg13' lacks a network beside its +: write resnet56+vgg13"),
        ("resnet56+heads+resnet110", "by their own logits alone: write resnet56+resnet110"),
        ("resnet56+resnet110+tofd", "by their own logits alone: write resnet56+resnet110"),
        ("resnet56+res56", "'resnet56+res56' names resnet56 twice: several teachers are different networks"),
        ("resnet56+resnet57", "unknown network 'resnet57'"),
        ("resnet56+hedas", "heads"),
        ("vgg13+resnet18", "network 'resnet18' is ambiguous: say wide_resnet18 or tv_resnet18"),
        ("vgg13+tofd", "vgg13 cannot have the classifiers 'tofd'"),
    ],
)
def test_a_bad_name_is_one_sentence(name: str, message: str) -> None:
    with pytest.raises(BadRequest) as refused:
        canonical_teacher(name)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_one_network_is_not_several() -> None:
    with pytest.raises(BadRequest, match=r"'resnet56\+vgg13' names several networks, which only the teacher of a pair"):
        models.canonical("resnet56+vgg13")
