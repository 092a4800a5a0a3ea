"""What a run's identity depends on, and what it does not."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtable.data.spec import DataSpec
from kdtable.methods import get
from kdtable.methods.objective import Objective
from kdtable.numerics.names import PRECISIONS, TEACHER_CACHES, split_precision
from kdtable.planning.run import Run, Sharding, digest
from kdtable.planning.teacher_refs import FileTeacher, MissingTeacher, RunTeacher
from kdtable.recipes.recipe import Recipe
from kdtable.recipes.schedule import Schedule
from tests.asking import aim

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
CIFAR = DataSpec("cifar100", "cifar100", "cifar100", None, None, 100, MEAN, STD, 32, 50000, 10000)
OWN = DataSpec("own", "own-0", "npz", Path("/there/own.npz"), "a" * 64, 7, (0.5,) * 3, (0.25,) * 3, 32, 700, 70)
RECIPE = Recipe(epochs=240, batch_size=64, lr=0.05, milestones=(150, 180, 210))
TEACHER = FileTeacher("resnet56", MEAN, STD, "b" * 64, Path("/teachers/resnet56.pt"))
SOFT, AT_4 = {"ce": 0.1, "kd": 0.9}, {"kd_temperature": 4.0}
VANILLA = Run("vanilla", "resnet20", CIFAR, RECIPE, Objective({"ce": 1.0}), 1)
KD = Run("kd", "resnet20", OWN, RECIPE, aim("kd", SOFT, AT_4), 2, "fp32", TEACHER)


def test_identities_are_fixed() -> None:
    """Stored results are found by these: they may change only together with a raised version."""
    assert (VANILLA.id, VANILLA.protocol_id) == ("a2d6fd2ac2110e82", "5f5798df820eacdd")
    assert (KD.id, KD.protocol_id) == ("02ddf1e648e207e0", "8f324b85421936fc")


CHANGES: dict[str, dict[str, Any]] = {
    "seed": {"seed": 3},
    "student": {"student": "resnet32"},
    "weight": {"objective": aim("kd", {"ce": 0.1, "kd": 0.8}, AT_4)},
    "further term": {"objective": aim("kd", {**SOFT, "at": 0.0}, AT_4)},
    "order of addition": {"objective": aim("kd", {"kd": 0.9, "ce": 0.1}, AT_4)},
    "parameter": {"objective": aim("kd", SOFT, {"kd_temperature": 2.0})},
    "precision": {"precision": "bf16"},
    "kept outputs of the teacher": {"precision": "fp32-cached"},
    "the same in half precision": {"precision": "fp32-cached16"},
    "method": {"row": "at+kd"},
    "content of the data": {"data": replace(OWN, sha256="c" * 64)},
    "normalisation": {"data": replace(OWN, mean=(0.4, 0.5, 0.5))},
    "mirror images": {"data": replace(OWN, flip=False)},
    "classes": {"data": replace(OWN, num_classes=8)},
    "a changing weight": {"objective": aim("kd", SOFT, AT_4, schedules={"kd": Schedule(ramp=2)})},
    "a stage before": {"objective": aim("kd", SOFT, AT_4, stage_epochs={"init": 2})},
    "a batch on two devices": {"sharding": Sharding(2)},
    "a batch in two parts": {"sharding": Sharding(1, 2)},
    "statistics of both devices": {"sharding": Sharding(2, sync_batch_norm=True)},
    "the test images' loss": {"test_loss": True},
    "no loss of the test images": {"test_loss": False},
    "another task": {"task": "regression"},
    "no teacher": {"teacher": None},
    "teacher's weights": {"teacher": replace(TEACHER, sha256="c" * 64)},
    "teacher's network": {"teacher": replace(TEACHER, network="resnet110")},
    "teacher's mean": {"teacher": replace(TEACHER, mean=(0.5, 0.5, 0.5))},
    "teacher's std": {"teacher": replace(TEACHER, std=(0.5, 0.5, 0.5))},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_meaning_changes_the_identity(change: dict[str, Any]) -> None:
    assert replace(KD, **change).id != KD.id


OTHER_VALUES = {
    "epochs": 24,
    "batch_size": 32,
    "lr": 0.01,
    "milestones": (150, 180),
    "lr_factor": 0.2,
    "momentum": 0.8,
    "nesterov": True,
    "weight_decay": 1e-4,
    "crop_padding": 2,
    "crop_fill": "reflect",
    "first_epoch_lr": 0.001,
    "warmup_epochs": 10,
    "warmup_factor": 0.2,
    "optimizer": "adamw",
    "schedule": "cosine",
    "lr_min": 0.001,
    "label_smoothing": 0.1,
    "mixup": 0.2,
    "cutmix": 1.0,
    "randaugment": 2,
    "randaugment_magnitude": 5,
    "ema": 0.999,
    "iterations": 1000,
    "warmup_iterations": 50,
    "clip": 10.0,
    "sides": (640, 672),
    "views": "moco-v2",
}


@pytest.mark.parametrize("field", [f.name for f in fields(Recipe)])
def test_every_field_of_the_recipe_changes_the_identity(field: str) -> None:
    assert replace(KD, recipe=replace(RECIPE, **{field: OTHER_VALUES[field]})).id != KD.id


def test_changes_lead_to_different_identities() -> None:
    ids = [replace(KD, **change).id for change in CHANGES.values()]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    "change",
    [
        {"teacher": replace(TEACHER, path=Path("/elsewhere/teacher.pt"))},
        {"teacher": replace(TEACHER, claimed_top1=72.34)},
        {"data": replace(OWN, path=Path("/elsewhere/own.npz"))},
        {"data": replace(OWN, name="renamed", key="renamed-0")},
    ],
    ids=["teacher's path", "teacher's claim", "data's path", "data's name"],
)
def test_what_does_not_matter_leaves_the_identity(change: dict[str, Any]) -> None:
    assert replace(KD, **change).id == KD.id


def test_the_row_is_only_a_label_of_equal_meaning() -> None:
    weighted = aim("at", {"ce": 1.0, "kd": 1.0, "at": 500.0}, AT_4)
    labelled, plain = (replace(KD, row=row, objective=weighted) for row in ("at+kd", "at"))
    assert labelled.method is plain.method is get("at")
    assert labelled.id == plain.id


def test_a_trained_teacher_enters_by_its_run() -> None:
    trained = replace(TEACHER, run="0123456789abcdef")
    run = replace(KD, teacher=trained)
    assert run.id != KD.id
    assert replace(KD, teacher=replace(trained, sha256="c" * 64)).id == run.id
    assert replace(KD, teacher=replace(trained, run="f" * 16)).id != run.id
    assert "sha256" not in trained.identity()
    assert "run" not in TEACHER.identity()


def test_vanilla_has_no_teacher_in_its_meaning() -> None:
    assert VANILLA.protocol["teacher"] is None


@pytest.mark.parametrize("computed", PRECISIONS)
@pytest.mark.parametrize("cache", TEACHER_CACHES)
def test_a_precision_says_what_the_teachers_cache_holds(computed: str, cache: str) -> None:
    run = replace(KD, precision=computed + TEACHER_CACHES[cache])
    assert split_precision(run.precision) == (computed, cache)
    assert run.teacher_cache == cache


def test_a_strange_precision_stays_strange() -> None:
    assert split_precision("fp32-other") == ("fp32-other", "off")


def test_seeds_of_one_protocol() -> None:
    other = replace(KD, seed=9)
    assert other.protocol_id == KD.protocol_id
    assert other.id != KD.id


def test_the_meaning_is_plain_json() -> None:
    assert json.loads(json.dumps(KD.protocol)) == KD.protocol


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=8,
)


def reordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    return [reordered(item) for item in value] if isinstance(value, list) else value


@given(st.dictionaries(st.text(max_size=3), JSON, max_size=4))
def test_digest_is_independent_of_the_order_of_keys(meaning: dict[str, Any]) -> None:
    assert digest(reordered(meaning)) == digest(meaning)
    assert len(digest(meaning)) == 16


def test_digest_depends_on_the_order_in_lists() -> None:
    assert digest({"a": [1, 2]}) != digest({"a": [2, 1]})


def test_a_teacher_is_known_by_the_run_that_makes_it_or_not_at_all() -> None:
    """These mappings are hashed into the ids of stored runs."""
    known = {"network": "resnet56", "version": 1, "mean": list(MEAN), "std": list(STD), "pass": 2}
    made = RunTeacher("resnet56", MEAN, STD, "0123456789abcdef", "b" * 64)
    assert made.identity() == known | {"run": "0123456789abcdef"}
    assert replace(TEACHER, run="0123456789abcdef").identity() == made.identity()
    assert MissingTeacher("resnet56", MEAN, STD).identity() == known | {"sha256": "not fetched yet"}
