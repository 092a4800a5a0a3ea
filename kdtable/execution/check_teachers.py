"""Measure teachers on their test sets."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kdtable import data as data_sets
from kdtable import tasks
from kdtable.data.names import resolve
from kdtable.data.spec import BUILT_IN, DataSpec
from kdtable.errors import BadRequest
from kdtable.execution.load_teacher import load_teacher
from kdtable.models.names import known, task_of
from kdtable.models.sums import canonical_teacher, networks_of
from kdtable.numerics import precision
from kdtable.numerics.layout import fix_threads
from kdtable.papers import DEFAULT_PAPER, default_paper, load
from kdtable.planning.given import GivenWeights
from kdtable.planning.task_checks import check_network
from kdtable.planning.teacher_refs import FileTeacher, SeveralTeachers, TeacherRef
from kdtable.planning.teachers import published_data, read_present, read_teacher, trained_elsewhere
from kdtable.recipes.metrics import CLASSIFICATION
from kdtable.teachers.claimed import falls_short, standard_error
from kdtable.teachers.locations import SUFFIXES

#: Metrics that are shares of test images.
ACCURACIES: Final = frozenset(metric.name for metric in CLASSIFICATION)


@dataclass(frozen=True, slots=True)
class Checked:
    """A measured teacher; its task's main metric is in percent.

    ``metric`` names that: top-1 accuracy, or AP of a detector, which has no binomial standard error. ``whole`` is true
    if the images are the whole test set on which the claim was measured. ``path`` is ``None`` for several teachers
    together. ``notes`` are sentences for the user.
    """

    network: str
    data: str
    images: int
    whole: bool
    metric: str
    measured: float
    claimed: float | None
    path: Path | None
    notes: tuple[str, ...] = ()

    @property
    def standard_error(self) -> float | None:
        """The standard error of an accuracy, from the number of test images."""
        return standard_error(self.measured, self.images) if self.metric in ACCURACIES else None

    @property
    def shortfall(self) -> float | None:
        """Points below the claim, if that is significant: then the file or its use is wrong; else ``None``."""
        if self.claimed is None or not falls_short(self.measured, self.claimed, self.images, whole=self.whole):
            return None
        return self.claimed - self.measured


def check(
    names: Sequence[str],
    data: str | None,
    given: GivenWeights,
    folder: Path,
    data_root: Path,
    device: str,
) -> list[Checked]:
    """Measure the named files, or the teachers in ``folder``.

    Args:
        names: networks, or data set and network (``cifar10/resnet56_a``); several that teach together joined by ``+``;
            empty for all.
        data: their data set; by default that of the folder they lie in.
        given: files that the user named.
        folder: folder of fetched and trained teachers.
        data_root: folder of CIFAR.
        device: name of a device.

    Raises:
        BadRequest: there is nothing to check, or a file does not fit.
    """
    if given.teachers and names:
        raise BadRequest("name teachers of the folder or files with --teacher, not both")
    if bare := [name for name in (*names, *given.teachers) if _without_classifier(name.rpartition("/")[2])]:
        raise BadRequest(f"{bare[0]} has no classifier, so that it has no accuracy: 'kdtable run' probes its students")
    found = _named(given, data) if given.teachers else _in_folder(names, data, folder)
    chosen = precision.choose("fp32", precision.choose_device(device))
    fix_threads()
    return [_measure(ref, spec, data_root, chosen) for ref, spec in found]


def _named(given: GivenWeights, data: str | None) -> list[tuple[TeacherRef, DataSpec]]:
    spec = resolve(data or load(DEFAULT_PAPER).data)
    files = given.teachers.items()
    for network in given.teachers:
        check_network(network, spec)
    return [(read_teacher(path, network, spec, given.inputs.get(network)), spec) for network, path in files]


def _in_folder(names: Sequence[str], data: str | None, folder: Path) -> list[tuple[TeacherRef, DataSpec]]:
    wanted = {(dataset, canonical_teacher(network)) for dataset, _, network in (n.rpartition("/") for n in names)}
    specs = [resolve(data)] if data else list(BUILT_IN.values())
    found: list[tuple[TeacherRef, DataSpec]] = []
    for spec in specs:
        of_data = {network for key, network in wanted if key in ("", spec.key, published_data(spec))}
        present: dict[str, FileTeacher] = {}
        for path in _files(spec, folder):
            if not wanted or any(path.stem in networks_of(network) for network in of_data):
                present[path.stem] = read_present(path, path.stem, spec, folder)
        found += [(ref, spec) for ref in present.values()]
        for networks in map(networks_of, sorted(of_data)):
            if len(networks) > 1 and present.keys() >= set(networks):
                found.append((SeveralTeachers(tuple(present[network] for network in networks)), spec))
    together = {network for _, network in wanted if len(networks_of(network)) > 1}
    lacking = sorted(together - {ref.network for ref, _ in found})
    if lacking or not found:
        what = ", ".join(lacking or names) or "teachers"
        raise BadRequest(f"no {what} in {folder}: get them with 'kdtable fetch-teachers', or name --teacher NAME=FILE")
    return found


def _without_classifier(network: str) -> bool:
    return known(network) and task_of(network) == "self-supervised"


def _files(data: DataSpec, folder: Path) -> list[Path]:
    folders = [folder / key for key in dict.fromkeys((data.key, published_data(data)))]
    files = sorted(file for one in folders for file in one.glob("*"))
    return [file for file in files if file.suffix in SUFFIXES and not _without_classifier(file.stem)]


def _measure(ref: TeacherRef, spec: DataSpec, data_root: Path, chosen: precision.Precision) -> Checked:
    images = data_sets.load(spec, data_root)
    task = tasks.get(spec.task)(images, load(default_paper(spec.kind)).recipe, 0, chosen)
    measured = task.evaluate(load_teacher(ref, spec, chosen.device))
    metric = task.metrics[0]
    return Checked(
        network=ref.network,
        data=spec.name,
        images=spec.test_count,
        # Of COCO's 5,000 validation images, as they are measured for the claims.
        whole=spec.key in BUILT_IN or (spec.kind, spec.test_count, spec.image_size) == ("coco", 5_000, 800),
        metric=metric.name,
        measured=metric.shown(measured[metric.stored]),
        claimed=ref.claimed_top1 if isinstance(ref, FileTeacher) else None,
        path=ref.path if isinstance(ref, FileTeacher) else None,
        notes=tuple(trained_elsewhere([(ref, spec)])),
    )
