"""Every method agrees with the papers' own code, in value and in gradient."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdtable import methods, models
from kdtable.data import Batch
from kdtable.methods.at import attention_loss
from kdtable.methods.base import Setting
from kdtable.methods.soft_targets import kd_loss
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe
from kdtable.training.member import Member
from kdtable.training.step import weighted_sum
from tests import engine
from tests.asking import aim
from tests.golden_data import GOLDEN, Arrays, cases, fill

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
RECIPE = Recipe(epochs=1, batch_size=8, lr=0.01, milestones=())


def by_id(*names: str) -> Any:
    return pytest.mark.parametrize("case", cases(*names), ids=lambda case: case["id"])


def leaf(data: Arrays, name: str) -> torch.Tensor:
    return data.given(name).requires_grad_()


def setting(row: str, student: Outputs, teacher: Outputs, labels: torch.Tensor, **params: Any) -> Setting:
    terms = {"ce": 1.0, methods.get(row).term or "kd": 1.0}
    return Setting(RECIPE, aim(row, terms, params), labels, 10, student, teacher)


@DTYPES
@by_id("kd")
def test_kd(case: dict[str, Any], dtype: torch.dtype) -> None:
    data = Arrays(case, dtype)
    s, t = leaf(data, "in.logit_s"), data.given("in.logit_t")
    loss = kd_loss(s, t, case["hyper"]["T"])
    loss.backward()
    data.check("out.loss", loss)
    data.check("grad.logit_s", s.grad)
    built = methods.get("kd")(setting("kd", Outputs(s), Outputs(t), torch.zeros(4), kd_temperature=case["hyper"]["T"]))
    batch = Batch(torch.zeros(1), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), 1)
    assert torch.equal(built.loss("kd", Outputs(s), Outputs(t), batch), loss)


@DTYPES
@by_id("objective")
def test_objective(case: dict[str, Any], dtype: torch.dtype) -> None:
    """gamma CE + alpha KD + beta X, through a method's terms and the step's weighted sum."""
    data, hyper = Arrays(case, dtype), case["hyper"]
    s, extra = leaf(data, "in.logit_s"), leaf(data, "in.loss_kd")

    class Given(methods.get("kd")):  # type: ignore[misc]
        term = "given"

        def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> torch.Tensor:
            return extra

    terms = {"ce": hyper["gamma"], "kd": hyper["alpha"], "given": hyper["beta"]}
    teacher = Outputs(data.given("in.logit_t"))
    built = Given(
        Setting(RECIPE, aim("kd", terms, {"kd_temperature": hyper["T"]}), torch.zeros(4), 10, Outputs(s), teacher)
    )
    batch = Batch(torch.zeros(1), data.given("in.labels"), torch.zeros(1, dtype=torch.int64), 1)
    stage = built.stages()[0]
    losses = [built.loss(term.name, Outputs(s), teacher, batch) for term in stage.terms]
    total = weighted_sum(losses, stage)
    total.backward()
    for name, value in (("out.loss", total), ("out.ce", losses[0]), ("out.kl", losses[1])):
        data.check(name, value)
    data.check("grad.logit_s", s.grad)
    data.check("grad.loss_kd", extra.grad)


@DTYPES
@by_id("at")
def test_at(case: dict[str, Any], dtype: torch.dtype) -> None:
    data = Arrays(case, dtype)
    count = len(data.names("in.s"))
    s = [leaf(data, f"in.s{i}") for i in range(count)]
    t = [data.given(f"in.t{i}") for i in range(count)]
    loss = attention_loss(s, t)
    loss.backward()
    data.check("out.loss", loss)
    for i in range(count):
        data.check(f"grad.s{i}", s[i].grad)
        data.check("out.losses", torch.stack([attention_loss([a], [b]) for a, b in zip(s, t, strict=True)]))
    student, teacher = (Outputs(torch.zeros(1), stages=tuple(x)) for x in (s, t))
    built = methods.get("at")(setting("at", student, teacher, torch.zeros(4)))
    batch = Batch(torch.zeros(1), torch.zeros(1), torch.zeros(1), 1)
    assert torch.equal(built.loss("at", student, teacher, batch), loss)


@DTYPES
@by_id("crd")
def test_crd_steps(case: dict[str, Any], dtype: torch.dtype) -> None:
    """Consecutive steps through embeddings, banks and Z; adaptors as the registry builds them."""
    data, h = Arrays(case, dtype), case["hyper"]
    shapes = [Outputs(torch.zeros(1), embedding=torch.zeros(1, h[f"{side}_dim"])) for side in "st"]
    params = {
        "dim": h["feat_dim"],
        "negatives": h["nce_k"],
        "tau": h["nce_t"],
        "bank_momentum": h["nce_m"],
        "mode": h["mode"],
    }
    crd = methods.get("crd")(setting("crd", *shapes, torch.arange(h["n_data"]) % 4, **params)).to(dtype)
    state = {n.removeprefix("param."): data.given(n) for n in data.names("param.")}
    state |= {name: data.given(f"in.{name}") for name in ("memory_student", "memory_teacher")}
    missing, unexpected = crd.load_state_dict({**crd.state_dict(), **state}, strict=True)
    assert not missing
    assert not unexpected
    for k in range(h["steps"]):
        step = f"step{k}"
        crd.zero_grad()
        s, t = leaf(data, f"in.{step}.f_s"), leaf(data, f"in.{step}.f_t")
        loss = crd.contrast(s, t, data.given(f"in.{step}.index"), data.given(f"in.{step}.contrast_index"))
        loss.backward()
        data.check(f"out.{step}.loss", loss)
        data.check(f"out.{step}.embedding_s", crd.embed_s(s))
        data.check(f"out.{step}.embedding_t", crd.embed_t(t))
        for name, value in (("memory_student", crd.memory_student), ("memory_teacher", crd.memory_teacher)):
            data.check(f"out.{step}.{name}", value)
        data.check(f"out.{step}.z_student_anchor", crd.z_student)
        data.check(f"out.{step}.z_teacher_anchor", crd.z_teacher)
        data.check(f"grad.{step}.f_s", s.grad)
        data.check(f"grad.{step}.f_t", t.grad)
        for name, parameter in crd.named_parameters():
            data.check(f"pgrad.{step}.{name}", parameter.grad)


TRAJECTORIES = json.loads((GOLDEN / "trajectories.json").read_text())["cases"]
KNOWN = [case for case in TRAJECTORIES if case["method"].removesuffix("+kd") in methods.METHODS]


@pytest.mark.parametrize("case", KNOWN, ids=lambda case: case["id"])
def test_whole_training_steps(case: dict[str, Any]) -> None:
    """Teacher pass, student step and SGD, with the members that a cohort trains, in float64."""
    teacher, student = (models.build(case[role], case["num_classes"]).double() for role in ("teacher", "student"))
    fill(teacher, case["salt"])
    fill(student, case["salt"] + 1)
    teacher.eval()
    trained = trajectory_member(case, student)
    trained.begin_epoch()
    losses = []
    for i in range(case["steps"]):
        draw = np.random.default_rng(case["salt"] + 100 + i)
        images = torch.from_numpy(draw.standard_normal((case["batch"], 3, 32, 32)))
        labels = torch.from_numpy(draw.integers(0, case["num_classes"], case["batch"]))
        batch = Batch(images, labels, torch.arange(case["batch"]), 1)
        before = trained.learner.sums[0].item()
        with torch.no_grad():
            teacher_outputs = teacher(images)
        trained.step(batch, teacher_outputs)
        losses.append((trained.learner.sums[0].item() - before) / case["batch"])
    probe = torch.from_numpy(np.random.default_rng(case["salt"] + 7).standard_normal((2, 3, 32, 32)))
    with torch.no_grad():
        logits = student.eval()(probe).logits.numpy()
    # Stored to ten significant digits.
    np.testing.assert_allclose(losses, case["loss"], rtol=1e-8)
    expected = np.array(case["probe_logits"])
    assert np.abs(logits - expected).max() <= 1e-8 * np.abs(expected).max()


def trajectory_member(case: dict[str, Any], student: nn.Module) -> Member:
    row = case["method"]
    own = methods.get(row).term
    weights = {"ce": case["ce"], "kd": case["kd"], own: case["distill"]}
    terms = {name: float(weight) for name, weight in weights.items() if name and (weight or name == "ce")}
    recipe = Recipe(
        epochs=1,
        batch_size=case["batch"],
        lr=case["lr"],
        milestones=(),
        momentum=case["momentum"],
        nesterov=case["nesterov"],
        weight_decay=case["weight_decay"],
    )
    shape = student.eval()(torch.zeros(1, 3, 32, 32, dtype=torch.float64))
    labels = torch.arange(40) % case["num_classes"]
    params = {"kd_temperature": float(case["temperature"])}
    built = methods.get(row)(Setting(recipe, aim(row, terms, params), labels, case["num_classes"], shape, shape))
    return Member(case["id"], student, built, engine.task(engine.image_set(classes=case["num_classes"])))
