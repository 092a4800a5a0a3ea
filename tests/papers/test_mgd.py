"""Matching Guided Distillation as it is resolved, against its code's golden series and its sheet's section 7."""

from dataclasses import replace
from typing import Any

import torch

from kdtable import papers
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe
from tests.methods.golden_sets import built, objective
from tests.methods.test_golden_mgd import Teacher, match_as_shown, outputs
from tests.papers.resolving import Said, assert_said, cells, courses, golden, member, run_of, runs

IMAGENET = Recipe(
    epochs=130,
    batch_size=256,
    lr=0.1,
    milestones=(41, 71, 91),
    lr_factor=0.1,
    momentum=0.9,
    nesterov=True,
    weight_decay=1e-4,
    crop_padding=0,
    warmup_epochs=10,
    warmup_factor=0.1,
)
CUB200 = replace(IMAGENET, epochs=120, batch_size=64, lr=0.01, milestones=(31, 61, 81), warmup_epochs=0)
ALONE = replace(IMAGENET, epochs=100, milestones=(30, 60, 90), nesterov=False, warmup_epochs=0)

ON_IMAGENET = "tv_resnet50:mobilenetv1"
#: By student: the weights that it starts from.
ON_CUB200 = {"mgd_mobilenetv2": "tv_mobilenetv2", "mgd_shufflenetv2": "tv_shufflenetv2"}
KD = {"kd_temperature": 1.5}


def matching(**own: Any) -> dict[str, Any]:
    """The hyper-parameters of matching."""
    every_epoch = {"reducer": "amp", "ignore": "", "update_every": 1, "update_after": "", "loss_factor": 1e4}
    return every_epoch | {"sweep_images": 20000, "margins_from": "teacher", "student_taps": "preacts"} | own


def said(row: str, recipe: Recipe, **own: Any) -> Said:
    terms = {"ce": 1.0, **({"kd": 1.0} if "kd" in row else {}), **({"mgd": 1.0} if "mgd" in row else {})}
    params = {**(KD if "kd" in row else {}), **(matching(**own) if "mgd" in row else {})}
    return Said(recipe, terms, params)


def test_rows() -> None:
    own = papers.load("mgd").rows
    assert list(own) == ["vanilla", "kd", "mgd", "mgd+kd"]
    found = runs("mgd", *own)
    birds = {("cub200", row, f"tv_resnet50:{student}") for row in own for student in ON_CUB200}
    assert found.keys() == {("imagenet", row, ON_IMAGENET) for row in own} | birds
    for row in own:
        run = found["imagenet", row, ON_IMAGENET]
        assert_said(run, said(row, ALONE if row == "vanilla" else IMAGENET))
        assert run.start is None
    for _, row, pair in birds:
        run = found["cub200", row, pair]
        # In the released code the last map of ShuffleNetV2 is overwritten by the activation behind it.
        taps = "preacts,preacts,preacts,stages" if "shufflenet" in pair else "preacts"
        assert_said(run, said(row, CUB200, ignore="0", update_every=2, student_taps=taps))
        assert run.start is not None
        assert (run.start.network, run.start.classes) == (ON_CUB200[run.student], 1000)


def test_photographs_are_not_padded() -> None:
    """What a run of them would not show."""
    for kind, recipe in (("imagenet", IMAGENET), ("cub200", CUB200)):
        assert papers.load("mgd").on(kind).recipe == recipe


def test_seeds_and_data() -> None:
    assert {cell.run.seed for cell in cells("mgd")} == {1}
    assert papers.load("mgd").data == "imagenet"


def test_as_the_paper_has_it_every_tap_is_before_the_activation() -> None:
    rows = ("mgd", "mgd+kd")
    code, paper = runs("mgd", *rows), runs("mgd", *rows, reading="paper")
    for key, run in paper.items():
        own = code[key].objective
        assert run == replace(code[key], objective=replace(own, params=replace(own.params, student_taps="preacts")))


# --- golden series -----------------------------------------------------------------------------------------------


def test_learning_rates_and_updates() -> None:
    for name, run in (
        ("lr_imagenet_mobilenet_v1", run_of("mgd", "mgd", ON_IMAGENET, "imagenet")),
        ("lr_cub", run_of("mgd", "mgd", "tv_resnet50:mgd_mobilenetv2", "cub200")),
    ):
        case, course = golden("mgd", name), courses(member(run))["main"]
        case.check("lr", course.rates)
        assert course.optimizer == (0.9, True, 1e-4)
        assert set(course.sweeps) <= {20000, None}
        # Before the first epoch, and after those listed, from 0; the last comes after all training.
        updates = [epoch - 1 for epoch, sweep in enumerate(course.sweeps) if sweep]
        assert [*updates, len(course.rates) - 1] == [-1, *case.out("update_after_epoch").tolist()]


def test_objective() -> None:
    """A run on CUB-200 with KD has the case's settings: the largest magnitude, and the first stage ignored."""
    case, run = golden("mgd", "full_amp_kd"), run_of("mgd", "mgd+kd", "tv_resnet50:mgd_mobilenetv2", "cub200")
    count = len(case.hyper["s_channels"])
    s = [case.leaf(f"s{i}") for i in range(count)]
    student = Outputs(case.leaf("s_logits"), preacts=tuple(s))
    teacher = Outputs(case.given("t_logits"), preacts=outputs(case, "t", count).preacts)
    norms = Teacher([case.par(f"teacher_bn{i}_") for i in range(count)])
    recipe = replace(run.recipe, batch_size=case.hyper["batch"])
    method: Any = built(run.row, student, teacher, run.objective, recipe=recipe, network=norms)
    match_as_shown(case, method, count)
    for i, adaptor in enumerate(method.adaptors):
        adaptor.load_state_dict(case.par(f"adapt{i}_") | {"num_batches_tracked": torch.tensor(0)})
    total = objective(method.train(), student, teacher, case.given("labels"))
    total.backward()
    case.check("total", total)
    case.check("grad_s_logits", student.logits.grad)
    for i in method.used:
        case.check(f"grad_s{i}", s[i].grad)
