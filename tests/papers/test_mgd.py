"""Matching Guided Distillation as it is resolved, against its sheet's sections 2 to 7."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdtable import papers
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe
from tests.methods.golden_sets import batch, built, objective
from tests.methods.test_golden_mgd import Teacher
from tests.papers.formulas import LABELS, ce, draw, kl, logits
from tests.papers.resolving import Said, assert_said, cells, courses, member, run_of, runs, series

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


# --- what is trained ---------------------------------------------------------------------------------------------

#: From which epoch on; on ImageNet from 0.01 up over ten epochs, and all drops ten epochs later than without.
RATES = {
    "imagenet": {**{1 + e: 0.01 + 0.009 * e for e in range(10)}, 11: 0.1, 42: 0.01, 72: 1e-3, 92: 1e-4},
    "cub200": {1: 0.01, 32: 1e-3, 62: 1e-4, 82: 1e-5},
}


@pytest.mark.parametrize(
    ("kind", "pair", "every"), [("imagenet", ON_IMAGENET, 1), ("cub200", "tv_resnet50:mgd_mobilenetv2", 2)]
)
def test_learning_rates_and_updates(kind: str, pair: str, every: int) -> None:
    """Channels are matched before the first epoch, and then again after each or every other one."""
    course = courses(member(run_of("mgd", "mgd", pair, kind)))["main"]
    epochs = len(course.rates)
    assert course.rates == pytest.approx(series(epochs, RATES[kind]), rel=1e-12)
    assert course.optimizer == (0.9, True, 1e-4)
    assert course.sweeps == [20000 if epoch % every == 0 else None for epoch in range(epochs)]


def test_objective() -> None:
    """A run on CUB-200 with KD: the largest magnitude, and the first stage ignored."""
    run = run_of("mgd", "mgd+kd", "tv_resnet50:mgd_mobilenetv2", "cub200")
    s, t = ([draw(5, c, 3, 3, seed=seed + c) for c in channels] for seed, channels in ((0, (2, 3, 4)), (9, (4, 6, 8))))
    student, teacher = Outputs(logits(1), preacts=tuple(s)), Outputs(logits(2), preacts=tuple(t))
    norms = Teacher([{"weight": torch.ones(x.shape[1]), "bias": torch.zeros(x.shape[1])} for x in t])
    method: Any = built(run.row, student, teacher, run.objective, recipe=run.recipe, network=norms)
    method.is_matched, method.adaptors = True, nn.ModuleList(nn.Identity() for _ in s)
    for i in (1, 2):  # neighbours belong together
        method.get_buffer(f"groups{i}").copy_(torch.arange(t[i].shape[1]).view(-1, 2))
    distance = partial_distance(s[1], t[1]) / 2 + partial_distance(s[2], t[2])
    expected = ce(student.logits) + kl(student.logits, teacher.logits, 1.5) + distance / 64 / 1e4
    torch.testing.assert_close(objective(method, student, teacher, batch(LABELS)), expected, rtol=1e-6, atol=0)


def partial_distance(s: Tensor, t: Tensor) -> Tensor:
    """With margins of batch norms of scale 1 and shift 0, and teacher channels that are pooled in twos."""
    even, odd = t[:, ::2], t[:, 1::2]
    q = torch.where(even.abs() >= odd.abs(), even, odd).clamp(min=-0.7978845608)
    return ((s - q).square() * ((s > q) | (q > 0))).sum()
