"""From stored runs to means over seeds, and over nothing else."""

from dataclasses import replace

import pytest

from kdtable import papers
from kdtable.recipes.metrics import METRICS
from kdtable.report.comparison import Column, Comparison, column_names
from tests.report.samples import (
    CIFAR100,
    CRD,
    cell,
    column,
    framed,
    measured_on,
    only,
    reached,
    stored,
    teacher,
    with_identity,
)


def sizes(*comparisons: Comparison) -> list[int]:
    """Numbers of finished runs of all cells."""
    return [size for frame in comparisons for size in frame.runs.groupby("group").size()]


def test_a_cell_holds_the_seeds_in_percent() -> None:
    frame = only(*(stored("kd", seed, 0.7 + seed / 100) for seed in (1, 2, 3)))
    found = cell(frame, "kd")
    assert found.values == pytest.approx({1: 71.0, 2: 72.0, 3: 73.0})
    assert (found.asked, found.failed) == (3, 0)


def test_last_and_best_epoch() -> None:
    run = stored("kd", 1, 0.7, best=0.75)
    for epoch, value in (("last", 70.0), ("best", 75.0)):
        frame = only(run, epoch=epoch)
        assert cell(frame, "kd").values == pytest.approx({1: value})


def test_the_epoch_of_the_lowest_loss_and_rows_without_one() -> None:
    judged = stored("kd", 1, 0.7)
    assert judged.result is not None
    chosen = {**judged.result.chosen, "lowest-loss": (7, {"top1": 0.6, "top5": 0.8})}
    judged = replace(judged, result=replace(judged.result, chosen=chosen))
    frame = only(judged, stored("at", 1, 0.5), epoch="lowest-loss")
    kd, at = (cell(frame, row) for row in ("kd", "at"))
    assert (kd.values, kd.notes) == (pytest.approx({1: 60.0}), [])
    assert cell(frame, "kd", metric=METRICS["top5"]).values == pytest.approx({1: 80.0})
    assert at.values == pytest.approx({1: 50.0})
    assert at.notes == ["Of the last epoch, as its loss on the test images was not measured."]
    assert cell(only(stored("at", 1, 0.5)), "at").notes == []


def test_what_is_measured_only_shows_in_no_label() -> None:
    assert only(stored("kd", test_loss=True)).labels == ["kd"]


def test_unfinished_runs_are_counted_but_not_averaged() -> None:
    runs = [stored("kd", 1, 0.7), stored("kd", 2, 0.2, status="failed")]
    runs += [stored("kd", 3, 0.1, status="running"), stored("kd", 4, None, status="planned")]
    frame = only(*runs)
    found = cell(frame, "kd")
    assert found.values == pytest.approx({1: 70.0})
    assert (found.asked, found.failed) == (4, 1)


@pytest.mark.parametrize(
    "other",
    [
        {"recipe": CRD.recipe.scaled(24)},
        {"recipe": replace(CRD.recipe, weight_decay=1e-4)},
        {"recipe": replace(CRD.recipe, batch_size=32)},
        {"precision": "bf16"},
        {"data": replace(CIFAR100, mean=(0.5, 0.5, 0.5))},
        {"data": replace(CIFAR100, kind="npz", key="other-0", sha256="0" * 64)},
    ],
    ids=["epochs", "weight decay", "batch", "precision", "normalisation", "data"],
)
def test_what_may_not_be_compared_stands_in_frames_of_their_own(other: dict[str, object]) -> None:
    found = framed(stored("kd", 1, 0.7), stored("kd", 2, 0.8, **other))  # type: ignore[arg-type]
    assert [cell(frame, "kd").values for frame in found] == [
        pytest.approx({1: 70.0}),
        pytest.approx({2: 80.0}),
    ]


def test_learning_rates_stand_in_columns_of_their_own() -> None:
    frame = only(stored("kd", 1), stored("kd", 1, 0.2, recipe=replace(CRD.recipe, lr=0.01)))
    assert [c.lr for c in frame.columns] == [0.05, 0.01]
    assert list(column_names(frame.columns).values()) == [
        "resnet56:resnet20 lr 0.05",
        "resnet56:resnet20 lr 0.01",
    ]


def test_two_teachers_of_one_network_are_told_apart() -> None:
    runs = [stored("kd", 1, 0.7, taught_by=teacher(sha256=digit * 64)) for digit in "ab"]
    frame = only(*runs)
    assert list(column_names(frame.columns).values()) == ["resnet56@aaaaaaaa:resnet20", "resnet56@bbbbbbbb:resnet20"]


def test_names_stay_short_where_nothing_has_to_be_told_apart() -> None:
    columns = [
        Column("resnet56", "a", "resnet20", 0.05),
        Column("vgg13", "b", "vgg8", 0.01),
        Column(None, "", "vgg8", 0.01),
    ]
    assert list(column_names(columns).values()) == ["resnet56:resnet20", "vgg13:vgg8", "vgg8"]


def test_two_files_of_one_of_several_teachers_are_told_apart() -> None:
    twins = [Column("resnet56+vgg13", f"{'a' * 16}+{origin * 64}", "vgg8", 0.05) for origin in "bc"]
    assert list(column_names(twins).values()) == [
        "resnet56@aaaaaaaa+vgg13@bbbbbbbb:vgg8",
        "resnet56@aaaaaaaa+vgg13@cccccccc:vgg8",
    ]


def test_vanilla_is_shared_by_the_columns_of_its_student() -> None:
    frame = only(
        stored("vanilla", 1, 0.6),
        stored("kd", taught_by=teacher("resnet56")),
        stored("kd", taught_by=teacher("resnet110")),
        stored("kd", student="resnet32", taught_by=teacher("resnet110")),
    )
    assert [c.teacher for c in frame.columns] == ["resnet56", "resnet110", "resnet110"]
    assert [len(cell(frame, "vanilla", c).values) for c in frame.columns] == [1, 1, 0]


def test_vanilla_without_company_has_a_column_of_its_own() -> None:
    frame = only(stored("vanilla"), stored("kd", student="resnet32"))
    assert [(c.teacher, c.student) for c in frame.columns] == [("resnet56", "resnet32"), (None, "resnet20")]


def test_vanilla_of_another_rate_is_not_shared() -> None:
    frame = only(stored("vanilla", recipe=replace(CRD.recipe, lr=0.01)), stored("kd"))
    assert [(c.teacher, c.lr) for c in frame.columns] == [("resnet56", 0.05), (None, 0.01)]


def test_changed_settings_show_in_the_label() -> None:
    frame = only(
        stored("kd"),
        stored("kd", params={"kd_temperature": 2.0}),
        stored("at", terms={"at": 500.0}),
        stored("kd", terms={"ce": 0.5, "kd": 0.5}, params={"kd_temperature": 2.0}),
    )
    assert frame.labels == [
        "kd",
        "kd (kd_temperature=2.0)",
        "at (weight.at=500.0)",
        "kd (weight.ce=0.5, weight.kd=0.5, kd_temperature=2.0)",
    ]
    assert all(len(cell(frame, label).values) == 1 for label in frame.labels)


def test_settings_by_pair_do_not_split_a_row() -> None:
    other = {"student": "ShuffleV1", "recipe": replace(CRD.recipe, lr=0.01)}
    pair = stored("at", 1, 0.6, terms={"at": 500.0}, **other)
    frame = only(stored("at"), stored("kd"), pair)
    assert frame.labels == ["at", "kd"]
    notes = frame.cells[frame.cells["label"] == "at"]["notes"].tolist()
    assert notes == [[], ["Settings of this pair: weight.at=500.0."]]
    changed = [stored("at", terms={"at": 300.0}), pair]
    assert only(*changed).labels == ["at"], "every pair has a setting of its own"
    assert sum(len(notes) for notes in only(*changed).cells["notes"]) == 2
    swept = stored("at", 1, 0.6, terms={"at": 10.0}, **other)
    assert only(stored("at"), pair, swept).labels == ["at", "at (weight.at=500.0)", "at (weight.at=10.0)"]
    both = [stored("at", terms={"at": 500.0}), pair]
    assert only(*both).labels == ["at (weight.at=500.0)"], "one setting on all pairs"
    shared = [stored("crd", terms={"ce": 2.0, "crd": w}, **own) for w, own in ((0.1, {}), (0.2, other))]
    assert only(*shared).labels == ["crd (weight.ce=2.0)"], "what they share stands in the label"
    assert only(*shared).cells["notes"].tolist() == [[f"Settings of this pair: weight.crd={w}."] for w in (0.1, 0.2)]
    started = stored("kd", 1, 0.6, start=teacher("tv_resnet18"), **other)
    assert only(stored("kd"), started).labels == ["kd", "kd (pretrained=True)"]


def test_another_start_than_the_rows_shows_in_the_label() -> None:
    start = teacher("tv_resnet18")
    assert only(stored("kd", start=start)).labels == ["kd (pretrained=True)"]
    cub = replace(CIFAR100, kind="cub200", name="cub", key="cub-0", sha256="0" * 64)
    ours = [stored("kd", seed, data=cub, paper=papers.load("mgd"), start=s) for seed, s in ((1, start), (2, None))]
    assert only(*ours).labels == ["kd", "kd (pretrained=False)"]


def test_changed_settings_of_a_derived_row_show_too() -> None:
    """``at+kd`` is in no paper's TOML; its defaults follow from at and kd."""
    frame = only(stored("at+kd", 1, 0.7), stored("at+kd", 1, 0.5, terms={"at": 10.0}))
    assert len(frame.labels) == 2
    assert "at+kd" in frame.labels
    assert [cell(frame, label).asked for label in frame.labels] == [1, 1]


def test_close_weights_have_different_labels() -> None:
    frame = only(stored("at", terms={"at": 1000.0001}), stored("at", terms={"at": 1000.0002}))
    assert len(frame.labels) == 2


def test_a_cell_holds_one_protocol() -> None:
    """Equal weights of a teacher under another input normalisation are another teacher."""
    runs = [stored("kd", 1, 0.7), stored("kd", 1, 0.5, taught_by=teacher(mean=(0.5, 0.5, 0.5)))]
    assert runs[0].protocol.id != runs[1].protocol.id
    assert [cell(frame, label).asked for frame in framed(*runs) for label in frame.labels] == [1, 1]


def test_versions_of_a_method_are_not_averaged() -> None:
    new = stored("kd", 2, 0.5)
    method = new.protocol.identity["method"]
    new = with_identity(new, method={**method, "version": method["version"] + 1})
    assert sizes(*framed(stored("kd", 1, 0.7), new)) == [1, 1]


def test_a_method_that_cannot_be_run_on_a_pair_is_no_unfinished_run() -> None:
    frame = only(stored("at", 1, None, status="n/a"), stored("kd", 1, 0.7))
    found = cell(frame, "at")
    assert (bool(found.not_applicable), found.asked, found.failed, found.values) == (True, 0, 0, {})
    assert cell(frame, "kd").not_applicable is None


def test_teachers_accuracy() -> None:
    measured = measured_on(0.7234, 0.9)
    frame = only(stored("kd"), stored("kd", taught_by=teacher("vgg13")), teachers=(measured,))
    first, second = frame.columns
    assert reached(frame, first) == pytest.approx([72.34])
    assert reached(frame, second) == []


def test_a_teacher_measured_on_other_data_does_not_count() -> None:
    measured = measured_on(0.7234, 0.9, data="digits")
    frame = only(stored("kd"), teachers=(measured,))
    assert reached(frame, column(frame)) == []


def test_stage_epochs_are_never_averaged() -> None:
    longer = with_identity(stored("kd", 2, 0.5), stages={"hint": 3})
    assert sizes(*framed(stored("kd", 1, 0.7), longer)) == [1, 1]


def test_runs_with_and_without_a_cache_are_never_averaged() -> None:
    rows = [stored("kd", 1, 0.7), stored("kd", 2, 0.5, precision="fp32-cached")]
    frame = only(*rows, stored("kd", 3, 0.4, precision="fp32-cached16"))
    assert sizes(frame) == [1, 1, 1]
    assert len(frame.labels) == 3
