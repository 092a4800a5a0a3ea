"""Find the weight files of a plan's teachers."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from kdtable.data.spec import IMAGENET, PART_OF, DataSpec
from kdtable.errors import BadRequest, counted
from kdtable.files.atomic import set_aside
from kdtable.models.foreign import is_foreign, own_normalisation
from kdtable.planning.given import GivenWeights, Normalisation
from kdtable.planning.request import FindStart, FindTeacher
from kdtable.planning.run import Run
from kdtable.planning.teacher_refs import FileTeacher, MissingTeacher, TeacherRef, single_refs
from kdtable.teachers.locations import BadTeacher, teacher_path
from kdtable.teachers.manifest import lookup
from kdtable.teachers.present import check_digest

#: Number of COCO's categories; only a set with as many can have these.
COCO_CLASSES: Final = 80


def teacher_finder(folder: Path, given: GivenWeights, *, allow_missing: bool = False) -> FindTeacher:
    """Make the function that finds a plan's teachers: files that the user named, then those fetched or trained.

    Args:
        folder: folder of fetched and trained teachers.
        given: files that the user named.
        allow_missing: return `MissingTeacher` instead of raising (for a dry run).
    """
    found: dict[tuple[str, str], FileTeacher | MissingTeacher] = {}

    def find(network: str, data: DataSpec) -> FileTeacher | MissingTeacher:
        key = (network, data.key)
        if key not in found:
            found[key] = _find_teacher(network, data, folder, given, allow_missing)
        return found[key]

    return find


def _find_teacher(
    network: str, data: DataSpec, folder: Path, given: GivenWeights, allow_missing: bool
) -> FileTeacher | MissingTeacher:
    if network in given.teachers:
        return read_teacher(given.teachers[network], network, data, given.inputs.get(network))
    path = teacher_path(folder, data.key, network)
    if path is None:  # whatever the name of the user's folder
        path = teacher_path(folder, published_data(data), network)
    if path is not None:
        try:
            return read_present(path, network, data, folder)
        except BadTeacher as error:
            if allow_missing:  # a dry run, which moves nothing
                raise
            moved = f"it was set aside as {set_aside(path).name}"
            raise BadRequest(f"{error}; {moved}: get it again with '{_command(network, data)}'") from error
    if allow_missing:
        return MissingTeacher(network, data.mean, data.std)
    raise BadRequest(
        f"there is no teacher {network} for {data.name} in {folder}: get it with '{_command(network, data)}', "
        f"or name a file with --teacher {network}=FILE"
    )


def start_finder(given: GivenWeights) -> FindStart:
    """Make the function that finds the weights that the user wants students to start from."""
    found: dict[tuple[str, str], FileTeacher | None] = {}

    def find(network: str, data: DataSpec) -> FileTeacher | None:
        key = (network, data.key)
        if key not in found:
            path = given.starts.get(network)
            found[key] = None if path is None else _start(path, network, data, given.inputs.get(network))
        return found[key]

    return find


def _start(path: Path, network: str, data: DataSpec, inputs: Normalisation | None) -> FileTeacher:
    """Weights to start from, which may have been trained for another number of classes."""
    from kdtable.teachers.weights import read_weights

    classes = read_weights(path).num_classes or data.num_classes
    ref = read_teacher(path, network, replace(data, num_classes=classes), inputs)
    return replace(ref, given=True, classes=None if classes == data.num_classes else classes)


def is_imagenet(data: DataSpec) -> bool:
    """Whether a data set has ImageNet's classes, so that networks published for ImageNet can teach on it."""
    return data.kind == "imagenet" and data.num_classes == IMAGENET.num_classes


def published_data(data: DataSpec) -> str:
    """Key of the data set whose published networks can teach on a set: ImageNet's or COCO's for a folder of it."""
    if is_imagenet(data):
        return data.kind
    if data.kind == "coco" and len(data.classes) == COCO_CLASSES:
        from kdtable.teachers import coco

        return coco.DATASET if data.classes == tuple(coco.categories().values()) else data.key
    return data.key


def _command(network: str, data: DataSpec) -> str:
    """The command that gets a teacher."""
    published = lookup(published_data(data), network)
    if published is not None:
        return f"kdtable fetch-teachers {published.name}"
    if is_foreign(network) and is_imagenet(data):
        return f"kdtable fetch-teachers {network}"
    name = f"{data.kind}:{data.path}" if data.path else data.name
    size = f" --image-size {data.image_size}" if data.resized else ""
    return f"kdtable train-teachers {network} --data {name}{size}"


def read_teacher(path: Path, network: str, data: DataSpec, inputs: Normalisation | None = None) -> FileTeacher:
    """Make a reference to a weight file, checked against the network's shapes and the data set's classes.

    Published files, kdtable's own, and those with ``mean`` and ``std`` in their metadata say how their inputs were
    normalised; others take ``inputs``, by default the data set's constants, for a network of timm or torchvision those
    of its own pretrained weights.

    Raises:
        BadTeacher: damaged, not a checkpoint, of another architecture, or of another number of classes.
        BadRequest: the file says another normalisation than ``inputs``.
    """
    from kdtable.teachers.weights import load_into, read_weights
    from kdtable.training.build import build_teacher

    weights = read_weights(path)
    usual = own_normalisation(network) or (data.mean, data.std)
    mean, std = _normalisation(weights.mean, weights.std, inputs, path) or usual
    load_into(build_teacher(network, data.num_classes, mean, std, data.image_size), weights, name=network)
    claim, trained_on = weights.claimed_top1, weights.data
    return FileTeacher(network, mean, std, weights.sha256, path, weights.run, claim, trained_on=trained_on)


def _normalisation(
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None, inputs: Normalisation | None, path: Path
) -> Normalisation | None:
    """What the file says, else what the user says; ``None`` if neither does."""
    if mean is None or std is None:
        return inputs
    if inputs not in (None, (mean, std)):
        said = ",".join(map(str, mean)), ",".join(map(str, std))
        raise BadRequest(
            f"{path} was trained with mean {said[0]} and std {said[1]}: leave --input-mean and --input-std out"
        )
    return mean, std


def read_present(path: Path, network: str, data: DataSpec, folder: Path) -> FileTeacher:
    """Like :func:`read_teacher`, for a teacher's own path in ``folder``; the file must be that teacher.

    Raises:
        BadTeacher: as there; or the file changed since it was fetched, or was trained by kdtable on other data.
        BadRequest: it is not the published file, and may be the user's own.
    """
    ref = read_teacher(path, network, data)
    if ref.trained_on is not None:
        if ref.trained_on != data.key:
            raise BadTeacher(
                f"{path} was trained on {ref.trained_on}, and stands in the place of a teacher for {data.key}"
            )
        return ref
    published = lookup(published_data(data), network)
    if published is None:
        return ref
    check_digest(path, ref.sha256, folder, published)
    # It is the published file, or no checksum is known: then measuring it against the claim will show.
    return replace(ref, claimed_top1=published.claimed_top1)


def trained_elsewhere(refs: Iterable[tuple[TeacherRef | None, DataSpec]]) -> list[str]:
    """Notes on kdtable's own teachers that were trained on another data set than their student's."""
    found = [
        f"{ref.path} was trained on {other}, not on {data.key}: its classes may be others"
        for several, data in refs
        for ref in single_refs(several)
        if isinstance(ref, FileTeacher) and (other := other_data(ref, data)) is not None
    ]
    return list(dict.fromkeys(found))


def other_data(ref: TeacherRef | None, data: DataSpec) -> str | None:
    """Key of the data set that a teacher of kdtable's own was trained on, if it is another than ``data``.

    Of several teachers, the keys of all that were.
    """
    trained_on = [one.trained_on for one in single_refs(ref) if isinstance(one, FileTeacher)]
    others = [key for key in trained_on if key not in (None, data.key, PART_OF.get(data.key))]
    return ", ".join(dict.fromkeys(map(str, others))) or None


def changed_teachers(runs: Iterable[Run], trained: Mapping[str, str | None]) -> list[str]:
    """Notes on stored runs whose teacher was another file than the present one.

    The identity of a teacher that kdtable trained is its run, which may have been repeated, or its file changed.

    Args:
        runs: the plan's runs.
        trained: for each run with at least one epoch, the checksum of its teacher's file, by run id.

    Returns:
        A sentence for each pair of files.
    """
    counts: Counter[tuple[str, str, str]] = Counter()
    for run_id, ref in {run.id: run.teacher for run in runs}.items():
        used = trained.get(run_id)
        files = [str(one.path) for one in single_refs(ref) if isinstance(one, FileTeacher)]
        if ref is not None and files and ref.sha256 is not None and used not in (None, ref.sha256):
            counts[" + ".join(files), str(used), ref.sha256] += 1
    return [
        f"{files} is not the teacher of {counted(count, 'run')} of the store (checksum {now[:8]}, theirs is "
        f"{then[:8]}): their numbers are that one's"
        for (files, then, now), count in counts.items()
    ]
