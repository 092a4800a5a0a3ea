"""DIH and its baselines as they are resolved, against its sheet's sections 1 to 6."""

from dataclasses import replace

import pytest
import torch

from kdtable import papers
from kdtable.data.stream import Batch
from kdtable.methods.at import AT, ATParams, attention_loss
from kdtable.methods.base import Setting
from kdtable.methods.objective import Objective
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe
from tests.papers.resolving import Said, assert_said, cells, courses, member, runs

RECIPE = Recipe(
    epochs=200,
    batch_size=64,
    lr=0.1,
    milestones=(60, 120, 180),
    lr_factor=0.2,
    momentum=0.9,
    nesterov=True,
    weight_decay=5e-4,
    crop_padding=4,
    crop_fill="reflect",
)
BENCHMARK = replace(RECIPE, batch_size=128, nesterov=False, crop_fill="zero")

#: Where the test images' loss decides which epoch is reported.
TOLD = {"vanilla", "kd", "fitnet-2stage", "takd", "dih", "mhkd"}
SOFT = {"ce": 0.9, "kd": 0.1}
AT_5 = {"kd_temperature": 5.0}
ROWS = {
    "vanilla": Said(RECIPE, {"ce": 1.0}),
    "kd": Said(RECIPE, SOFT, AT_5),
    "fitnet-2stage": Said(
        RECIPE,
        SOFT,
        {"hint_group": 1, "regressor": "where-needed", "hint_modes": "all-but-last", **AT_5},
        {"hint": 40},
    ),
    "takd": Said(RECIPE, SOFT, AT_5),
    "at": Said(BENCHMARK, {"ce": 1.0, "kd": 0.9, "at": 1000.0}, {"kd_temperature": 4.0}),
    "crd": Said(
        BENCHMARK,
        {"ce": 1.0, "kd": 0.9, "crd": 0.8},
        {
            "kd_temperature": 4.0,
            "dim": 128,
            "negatives": 16384,
            "tau": 0.07,
            "bank_momentum": 0.5,
            "mode": "exact",
        },
    ),
    "heads": Said(RECIPE, {"heads": 1.0}, {"kept": "test-batch"}),
    "dih": Said(RECIPE, {**SOFT, "dih": 1.0}, {"alphas": "0.1", "teachers": "sum", **AT_5}),
    "tofd-teacher": Said(replace(RECIPE, batch_size=128), {"ce": 1.0, "branches": 1.0}),
    "tofd": Said(
        replace(RECIPE, batch_size=128, nesterov=False),
        {"ce": 1.0, "tofd": 1.0},
        {
            "feature_weight": 0.05,
            "orthogonal_weight": 0.03,
            "start_temperature": 3.0,
            "pairing": "shifted",
            "orthogonal": "all",
            "teacher_mode": "train",
        },
    ),
    "mhkd": Said(
        RECIPE,
        {**SOFT, "mhkd": 1.0},
        {
            "kd_temperature": 4.0,
            "kd_alpha": "0.1",
            "beta": 0.5,
            "groups": "-2,-1",
            "head_calls": 2,
            "detach": False,
        },
    ),
    "dml": Said(RECIPE, {"dml": 1.0}, {"alpha": 0.1, "temperature": 1.0, "peers": 1, "peer": ""}),
}
PAIRS = ["resnet110:resnet8", "resnet110:resnet20", "wide_resnet34:resnet8", "wide_resnet34:wide_resnet18"]

#: Where the text differs from the code; in all rows the rate drops to a tenth.
TEXT = {
    "heads": {"kept": "last"},
    "dih": {"teachers": "mean"},
    "tofd": {"pairing": "aligned", "orthogonal": "resized", "teacher_mode": "eval"},
    "mhkd": {"head_calls": 1, "detach": True},
}

#: Means and standard deviations of section 4.
CONSTANTS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "cifar100": ((0.507, 0.487, 0.441), (0.267, 0.256, 0.276)),
    "tiny-imagenet": ((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)),
}


def networks(row: str, pair: str) -> tuple[str | None, str]:
    """Who teaches a row for a pair, and what is trained; of TAKD's teacher see :func:`test_assistants`."""
    large, small = pair.split(":")
    return {
        "vanilla": (None, small),
        "dml": (None, small),
        "heads": (None, f"{large}+heads"),
        "dih": (f"{large}+heads", small),
        "tofd-teacher": (None, f"{large}+tofd"),
        "tofd": (f"{large}+tofd", f"{small}+tofd"),
    }.get(row, (large, small))


def said_of(row: str, pair: str) -> Said:
    """What is said of a row for a pair: RepDistiller's loop over stages ends with the shorter list."""
    if (row, pair) == ("at", "wide_resnet34:resnet8"):
        return replace(ROWS[row], params={**ROWS[row].params, "at_pairing": "first"})
    return ROWS[row]


def test_rows() -> None:
    own = papers.load("dih").rows
    assert list(own) == list(ROWS)
    found = runs("dih", *own)
    assert found.keys() == {(data, row, pair) for data in CONSTANTS for row in ROWS for pair in PAIRS}
    for (data, row, pair), run in found.items():
        assert_said(run, said_of(row, pair))
        assert run.test_loss == {**dict.fromkeys(TOLD, True), "crd": False}.get(row)
        assert (run.data.mean, run.data.std) == CONSTANTS[data]
        large = pair.partition(":")[0]
        assert (run.start and run.start.network) == (large if row == "heads" else None)
        if row != "takd":
            assert (run.teacher and run.teacher.network, run.student) == networks(row, pair)


def test_as_its_text_has_it() -> None:
    for reading, factor in (("code", 0.2), ("paper", 0.1)):
        found = runs("dih", *ROWS, reading=reading)
        for (_, row, pair), run in found.items():
            own = TEXT.get(row, {}) if reading == "paper" else {}
            said = said_of(row, pair)
            recipe = replace(said.recipe, lr_factor=factor)
            assert_said(run, replace(said, recipe=recipe, params={**said.params, **own}))


def test_attention_of_networks_with_different_numbers_of_stages() -> None:
    """DIH's table has such a pair. Elsewhere it is not applicable, since which stages belong together is a choice."""
    student, teacher = (
        Outputs(torch.zeros(2, 4), stages=tuple(torch.rand(2, c, h, h) for c, h in taps))
        for taps in ([(4, 8), (8, 4), (16, 2)], [(8, 8), (16, 4), (32, 2), (64, 1)])
    )
    params = ATParams(at_pairing="first")
    setting = Setting(RECIPE, Objective({"at": 1.0}, params), torch.zeros(4), 4, student, teacher)
    found = AT(setting).distillation(
        student, teacher, Batch(torch.zeros(2, 3, 8, 8), torch.zeros(2), torch.zeros(2), 1)
    )
    assert torch.equal(found, attention_loss(student.stages, teacher.stages[:3]))
    assert AT.inapplicable_with(ATParams(), student, teacher, list) is not None
    assert all(cell.not_applicable is None for cell in cells("dih", "at"))


def test_seeds_and_data() -> None:
    found = cells("dih")
    assert {cell.run.seed for cell in found if not cell.prerequisite} == {30, 50, 67}
    assert {cell.run.seed for cell in found if cell.prerequisite} == {30}
    assert papers.load("dih").data == "cifar100"


def test_assistants() -> None:
    found = runs("dih", "takd")
    taught_by = {(data, pair): run.teacher.network for (data, _, pair), run in found.items() if run.teacher}
    # The TAKD authors' for resnet110 and resnet8 (section 2); elsewhere the nearest to the middle.
    small = {"cifar10": "resnet14", "cifar100": "resnet20", "tiny-imagenet": "resnet56"}
    narrow = {"cifar10": "resnet14", "cifar100": "resnet20", "tiny-imagenet": "resnet20"}
    assert taught_by == {
        **{(data, "resnet110:resnet8"): name for data, name in small.items()},
        **{(data, "resnet110:resnet20"): "resnet56" for data in small},
        **{(data, "wide_resnet34:resnet8"): name for data, name in narrow.items()},
        **{(data, "wide_resnet34:wide_resnet18"): "wide_resnet34" for data in small},
    }


def test_what_is_trained_first() -> None:
    first = [cell for cell in cells("dih", "takd", "dih", "tofd") if cell.prerequisite]
    assert {cell.row for cell in first} == {"kd", "heads", "tofd-teacher"}
    for cell in first:
        assert_said(cell.run, ROWS[cell.row])


# --- what is trained ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reading", "factor"), [("code", 0.2), ("paper", 0.1)])
def test_learning_rates(reading: str, factor: float) -> None:
    lasting = ((60, 1), (60, factor), (60, factor**2), (20, factor**3))
    rates = pytest.approx([0.1 * share for epochs, share in lasting for _ in range(epochs)], rel=1e-9)
    found = runs("dih", "kd", "fitnet-2stage", reading=reading)
    for row in ("kd", "fitnet-2stage"):
        stages = courses(member(found["cifar100", row, "resnet110:resnet8"]))
        assert stages["main"].rates == rates
        assert stages["main"].weights == {"ce": [0.9] * 200, "kd": [0.1] * 200}
        assert {name: course.rates for name, course in stages.items() if name != "main"} == (
            {} if row == "kd" else {"hint": [0.1] * 40}
        )
        assert {course.optimizer for course in stages.values()} == {(0.9, True, 5e-4)}
