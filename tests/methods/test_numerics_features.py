"""The newer methods on features stay finite, in value and gradient, where features are degenerate."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kdtable import methods
from kdtable.data import Batch
from kdtable.methods.base import Method, Setting
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe
from tests.asking import aim
from tests.methods.test_golden_newer_features import Given
from tests.methods.test_numerics import KINDS, features

RECIPE = Recipe(epochs=1, batch_size=8, lr=0.01, milestones=())
CLASSES = 5
#: Hyper-parameters by row.
ROWS: Mapping[str, dict[str, Any]] = {
    "ofd": {},
    "srrl": {},
    "catkd": {"normalise": True},
    "sdd": {"scales": "1,2,4"},
    "sdd+dkd": {"base": "dkd"},
    "nd": {},
    "simkd": {},
}
#: (channels, height) of the last map.
LAST = (8, 4)


def outputs(kind: str, batch: int, seed: int, dtype: torch.dtype = torch.float32, width: int = 8) -> Outputs:
    draw = torch.Generator().manual_seed(seed)

    def made(*shape: int) -> Tensor:
        return features(kind, (batch, *shape), draw).to(dtype).float().requires_grad_()

    preacts = (made(4, 6, 6), made(6, 3, 3))
    return Outputs(made(CLASSES), preacts=preacts, embedding=made(width), last=made(width, LAST[1], LAST[1]))


def detached(given: Outputs) -> Outputs:
    return given.mapped(Tensor.detach)


def build(row: str, student: Outputs, teacher: Outputs) -> Method:
    torch.manual_seed(3)
    kind = methods.get(row)
    own, other = (
        Given([nn.BatchNorm2d(4), nn.BatchNorm2d(6)], nn.Linear(x.last.shape[1], CLASSES)) for x in (student, teacher)
    )  # type: ignore[union-attr]
    aimed = aim(kind, {"ce": 1.0, kind.term: 1.0}, ROWS[row])
    return kind(
        Setting(RECIPE, aimed, torch.arange(40) % CLASSES, CLASSES, student, teacher, student=own, teacher=other)
    )


@pytest.mark.parametrize("precision", ["float32", "bf16", "inside bf16 autocast"])
@pytest.mark.parametrize("row", ROWS)
@settings(max_examples=30, deadline=None)
@given(
    student=st.sampled_from(KINDS),
    teacher=st.sampled_from((*KINDS, "the student's")),
    batch=st.sampled_from((1, 2, 5)),
    widths=st.sampled_from(((8, 8), (6, 8))),
    seed=st.integers(0, 10),
)
def test_degenerate_features(
    row: str, precision: str, student: str, teacher: str, batch: int, widths: tuple[int, int], seed: int
) -> None:
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    own, other = widths
    s = outputs(student, batch, seed, dtype, own)
    same = teacher == "the student's" and own == other
    t = detached(s if same else outputs(teacher if teacher in KINDS else "mixed", batch, seed + 100, dtype, other))
    method = build(row, outputs("mixed", 1, 0, width=own), outputs("mixed", 1, 0, width=other))
    method.train(batch > 1)  # a batch norm needs two images of one position
    given_batch = Batch(torch.zeros(batch), torch.arange(batch), torch.arange(batch), 1)
    if row == "nd":
        method.begin_sweep()
        method.observe(s, t, given_batch)
        method.end_sweep()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "inside bf16 autocast"):
        loss = method.loss(method.term, s, t, given_batch)
    loss.backward()
    assert loss.isfinite(), f"{row} is {loss.item()}"
    leaves = [s.logits, *s.preacts, s.embedding, s.last, *method.parameters()]
    bad = [x for x in leaves if x is not None and x.grad is not None and not x.grad.isfinite().all()]
    assert not bad
    assert any(x is not None and x.grad is not None for x in leaves)


@given(st.integers(0, 50))
def test_class_means_are_those_of_a_sweep(seed: int) -> None:
    shapes = outputs("mixed", 6, seed)
    method: Any = build("nd", shapes, shapes)
    labels = torch.tensor([0, 1, 0, 2, 2, 2])
    assert method.sweep_before(method.stages()[0], 1) == 40
    assert method.sweep_before(method.stages()[0], 2) is None
    method.begin_sweep()
    for rows in (slice(0, 2), slice(2, 6)):
        index = torch.arange(6)[rows]
        method.observe(shapes.part(rows), detached(shapes).part(rows), Batch(torch.zeros(1), labels[rows], index, 0))
    method.end_sweep()
    embedding = detached(shapes).embedding
    assert embedding is not None
    means = torch.stack([embedding[labels == c].mean(dim=0) for c in range(3)])
    torch.testing.assert_close(method.class_means[:3], means, rtol=0, atol=1e-4)
    assert not method.class_means[3:].any(), "classes without images"


@pytest.mark.parametrize("scales", ["2,1", "1,3", "1,1", "2"])
def test_scales_that_cannot_be_pooled_are_refused(scales: str) -> None:
    with pytest.raises(ValueError, match="scales begins with 1"):
        aim("sdd", {"sdd": 1.0}, {"scales": scales})


def test_networks_without_a_last_map_are_refused() -> None:
    shapes = outputs("mixed", 1, 0)
    bare = Outputs(shapes.logits, embedding=shapes.embedding)
    for row in ("catkd", "sdd"):
        assert "the teacher shows no last map" in str(methods.get(row).inapplicable(shapes, bare))
    srrl, simkd = methods.get("srrl"), methods.get("simkd")
    assert "version=embedding" in str(srrl.inapplicable_with(srrl.hyper(), bare, shapes, tuple))
    assert srrl.inapplicable_with(srrl.hyper(version="embedding"), bare, shapes, tuple) is None  # type: ignore[call-arg]
    assert "factor 9" in str(simkd.inapplicable_with(simkd.hyper(factor=9), shapes, shapes, tuple))  # type: ignore[call-arg]
    larger = Outputs(shapes.logits, preacts=(torch.zeros(1, 4, 9, 9), *shapes.preacts[1:]))
    ofd = methods.get("ofd")
    assert "larger than the teacher's: heights 9 and 6" in str(ofd.inapplicable(larger, shapes))
    assert "no batch norm of all 4 channels" in str(
        ofd.inapplicable_with(ofd.hyper(), shapes, shapes, lambda: [None, None])
    )
