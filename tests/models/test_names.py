"""Names and aliases."""

import subprocess
import sys

import pytest

from kdtable.errors import BadRequest
from kdtable.models import ALIASES, KINDS, NETWORKS, base_name, build, canonical, version


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("wrn_40_2", "wrn_40_2"),
        ("wrn-40-2", "wrn_40_2"),
        ("WRN-40-2", "wrn_40_2"),
        ("ResNet-56", "resnet56"),
        ("res8x4", "resnet8x4"),
        ("Res110", "resnet110"),
        ("resnet20-A", "resnet20_a"),
        ("ResNet50", "cifar_resnet50"),
        ("resnet50", "cifar_resnet50"),
        ("mobilenetv2", "MobileNetV2"),
        ("MobileNet_V2", "MobileNetV2"),
        ("shufflev1", "ShuffleV1"),
        ("ShuffleNetV2", "ShuffleV2"),
        ("WR-28-2", "wrn_28_2"),
        ("ResNet-101", "tv_resnet101"),
        ("TV-ResNet34", "tv_resnet34"),
        ("cd-resnet-50", "cd_resnet50"),
        ("MobileNet-V1", "mobilenetv1"),
        ("tv_mobilenet_v2", "tv_mobilenetv2"),
        ("tv_shufflenet_v2_x1_0", "tv_shufflenetv2"),
        ("MGD-MobileNetV2", "mgd_mobilenetv2"),
        ("DIH-VGG11", "dih_vgg11"),
        ("res56+heads", "resnet56+heads"),
        ("ResNet56-A+TOFD", "resnet56_a+tofd"),
        ("wrn-40-2+heads", "wrn_40_2+heads"),
    ],
)
def test_spelling_does_not_matter(name: str, expected: str) -> None:
    assert canonical(name) == expected


@pytest.mark.parametrize("name", NETWORKS)
def test_a_canonical_name_means_itself(name: str) -> None:
    assert canonical(name) == name


def test_no_two_names_are_spelled_alike() -> None:
    folded = [name.lower().replace("_", "").replace("-", "") for name in (*NETWORKS, *ALIASES)]
    assert len(set(folded)) == len(folded)


def test_aliases_mean_networks() -> None:
    assert {name for names in ALIASES.values() for name in names} <= NETWORKS.keys()


@pytest.mark.parametrize(
    ("name", "candidates"),
    [
        ("shufflenet", "ShuffleV1 or ShuffleV2"),
        ("resnet18", "wide_resnet18 or tv_resnet18"),
        ("ResNet34", "wide_resnet34 or tv_resnet34"),
        ("resnet152", "cd_resnet152 or tv_resnet152"),
        ("mobilenet", "mobilenetv1 or MobileNetV2 or tv_mobilenetv2 or mgd_mobilenetv2"),
    ],
)
def test_an_ambiguous_alias_is_refused_with_its_candidates(name: str, candidates: str) -> None:
    with pytest.raises(BadRequest) as error:
        build(name, 10)
    assert str(error.value) == f"network '{name}' is ambiguous: say {candidates}"


def test_a_base_is_the_name_without_classifiers() -> None:
    assert base_name("res56+heads") == base_name("resnet-56+tofd") == base_name("resnet56") == "resnet56"


def test_a_network_with_classifiers_has_a_version_of_its_own() -> None:
    assert version("resnet8") == NETWORKS["resnet8"].version
    assert version("res8+heads") == NETWORKS["resnet8"].version + KINDS["heads"].version


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet8+head", r"network 'resnet8\+head' has unknown classifiers: write resnet8\+heads or resnet8\+tofd"),
        ("resnet8+", "unknown classifiers"),
        ("resnet8+heads+tofd", "unknown classifiers"),
        ("vgg8+tofd", "vgg8 cannot have the classifiers 'tofd': these can: resnet8, .*wrn_28_2"),
        ("resnet8x4+tofd", "cannot have"),
        ("resnet57+heads", "unknown network 'resnet57'"),
        ("shufflenet+heads", "ambiguous"),
    ],
)
def test_classifiers_that_a_network_cannot_have_are_refused(name: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        canonical(name)


def test_the_kinds_name_networks() -> None:
    assert all(base in NETWORKS for kind in KINDS.values() for base in kind.bases)


def test_an_unknown_name_is_refused_with_suggestions() -> None:
    with pytest.raises(BadRequest, match=r"unknown network 'resnet57'; did you mean .*resnet56"):
        canonical("resnet57")


def test_names_need_no_torch() -> None:
    code = (
        "import sys, kdtable.models\n"
        "assert kdtable.models.canonical('WRN-40-2') == 'wrn_40_2'\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
