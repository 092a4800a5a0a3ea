"""KD, a whole objective, AT and CRD agree with the CRD benchmark's own code, in value and in gradient."""

from typing import Any

import torch
from torch import Tensor

from kdtable import methods
from kdtable.data import Batch
from kdtable.methods.at import attention_loss
from kdtable.methods.base import Setting
from kdtable.methods.crd import contrast_loss, scores
from kdtable.methods.soft_targets import kd_loss
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe
from tests.asking import aim
from tests.golden_arrays import constants
from tests.methods.golden_crd import EMPTY, Case, crd, with_stages
from tests.methods.golden_sets import batch, objective, unlabelled

RECIPE = Recipe(epochs=1, batch_size=8, lr=0.01, milestones=())


@crd("kd")
def test_kd(case: Case) -> None:
    s, t, temperature = case.leaf("in.logit_s"), case.array("in.logit_t"), case.hyper["T"]
    method = case.build(Outputs(s), Outputs(t), kd_temperature=temperature)
    loss = method.loss("kd", Outputs(s), Outputs(t), unlabelled(len(s)))
    case.check_loss(loss)
    case.check("grad.logit_s", s.grad)
    assert torch.equal(kd_loss(s, t, temperature), loss)


@crd("objective")
def test_objective(case: Case) -> None:
    """gamma CE + alpha KD + beta X, through a method's terms and the step's weighted sum."""
    hyper, student = case.hyper, Outputs(case.leaf("in.logit_s"))
    extra, teacher = case.leaf("in.loss_kd"), Outputs(case.array("in.logit_t"))

    class Given(methods.get("kd")):  # type: ignore[misc]
        term = "given"

        def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
            return extra

    terms = {"ce": hyper["gamma"], "kd": hyper["alpha"], "given": hyper["beta"]}
    images, aimed = batch(case.array("in.labels")), aim("kd", terms, {"kd_temperature": hyper["T"]})
    method = Given(Setting(RECIPE, aimed, images.labels, student.logits.shape[1], student, teacher))
    case.check_loss(objective(method, student, teacher, images))
    case.check("out.ce", method.loss("ce", student, teacher, images))
    case.check("out.kl", method.loss("kd", student, teacher, images))
    case.check("grad.logit_s", student.logits.grad)
    case.check("grad.loss_kd", extra.grad)


@crd("at")
def test_at(case: Case) -> None:
    assert case.hyper["p"] == 2, "attention is of squares"
    student, teacher = with_stages(case.s), with_stages(case.t)
    loss = case.loss(case.build(student, teacher), student, teacher)
    case.check_loss(loss)
    case.check_taps(attention_loss)
    assert torch.equal(loss, attention_loss(case.s, case.t))


class Given:
    """Draws that a case gives: the positive, and behind it the negatives."""

    def __init__(self, contrast: Tensor) -> None:
        self.contrast = contrast

    def same_class(self, index: Tensor) -> Tensor:
        return self.contrast[:, 0]

    def draw(self, index: Tensor) -> Tensor:
        return self.contrast[:, 1:]


@crd("crd")
def test_crd_steps(case: Case) -> None:
    """Consecutive steps through embeddings, banks and Z; adaptors as the registry builds them."""
    hyper = case.hyper
    params = {
        "dim": hyper["feat_dim"],
        "negatives": hyper["nce_k"],
        "tau": hyper["nce_t"],
        "bank_momentum": hyper["nce_m"],
        "mode": hyper["mode"],
        "labels": torch.arange(hyper["n_data"]) % 2,
    }
    student, teacher = (Outputs(EMPTY, embedding=torch.zeros(1, hyper[f"{side}_dim"])) for side in "st")
    method: Any = case.build(student, teacher, **params)
    state = {name.partition(".")[2]: case.array(name) for name in case.names("param.") + case.names("in.memory_")}
    method.load_state_dict({**method.state_dict(), **state}, strict=True)
    step = 0
    with constants(contrast_loss, EPS=hyper["eps"]):
        while f"in.step{step}.index" in case:
            check_step(case, method, step)
            step += 1


def check_step(case: Case, method: Any, number: int) -> None:
    step = f"step{number}"
    index, contrast = case.array(f"in.{step}.index"), case.array(f"in.{step}.contrast_index")
    s, t = case.leaf(f"in.{step}.f_s"), case.leaf(f"in.{step}.f_t")
    banks = {"student": method.memory_teacher.clone(), "teacher": method.memory_student.clone()}
    method.negatives = Given(contrast)
    method.zero_grad()
    images = Batch(torch.zeros(len(index)), torch.zeros_like(index), index, 1)
    loss = method.loss("crd", Outputs(EMPTY, embedding=s), Outputs(EMPTY, embedding=t), images)
    loss.backward()
    case.check(f"out.{step}.loss", loss)
    for name, embed, features, anchor in (("s", method.embed_s, s, "student"), ("t", method.embed_t, t, "teacher")):
        embedded, z = embed(features), method.get_buffer(f"z_{anchor}")
        scored = scores(embedded, banks[anchor], contrast, method.params.tau) / z
        case.check(f"out.{step}.embedding_{name}", embedded)
        case.check(f"out.{step}.z_{anchor}_anchor", z)
        case.check(f"out.{step}.score_{anchor}_anchor", scored)
        case.check(f"out.{step}.loss_{anchor}_anchor", contrast_loss(scored, method.params.negatives / method.samples))
        case.check(f"out.{step}.memory_{anchor}", method.get_buffer(f"memory_{anchor}"))
        case.check(f"grad.{step}.f_{name}", features.grad)
    for name, parameter in method.named_parameters():
        case.check(f"pgrad.{step}.{name}", parameter.grad)
