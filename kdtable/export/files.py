"""Write a run's student in the format that a file's suffix names, with a model card beside it."""

import io
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO, Final

import torch
from torch import Tensor, nn

from kdtable.checkpoints import student
from kdtable.checkpoints.checkpoint import BadCheckpoint
from kdtable.checkpoints.student import Origin
from kdtable.errors import BadRequest, Trouble, unknown
from kdtable.export.card import model_card
from kdtable.files.atomic import written_whole
from kdtable.methods import MEASURED_WITH
from kdtable.models.network import Network
from kdtable.report.details import details
from kdtable.report.lookup import find_runs
from kdtable.store import RunRecord, Store
from kdtable.store.shared import bring_student
from kdtable.training.build import build_teacher


def export(store: Store, run: RunRecord, path: Path) -> Path:
    """Write a run's student to ``path``, whose suffix is the format, and a model card to ``path`` with ``.md`` added.

    Returns:
        The path of the model card.

    Raises:
        BadRequest: an unknown suffix, a run without a student, or a missing package.
        Trouble: the student's file is damaged.
        OSError: a file cannot be written; one that was there stays as it was.
    """
    if path.suffix not in FORMATS:
        raise unknown("format of a student", path.suffix or path.name, FORMATS)
    source = student_path(store, run)
    try:
        tensors, origin = student.load(source)
    except BadCheckpoint as error:
        raise Trouble(f"{error}: 'kdtable store check' says more") from error
    network = load_network(tensors, origin)
    card = path.with_name(f"{path.name}.md")
    with written_whole(path) as file:
        FORMATS[path.suffix](file, source, network, origin)
    with written_whole(card) as file:
        file.write(model_card(details(store, run.id), origin, inside=path.suffix == ".onnx").encode())
    return card


def named_student(text: str, results: Path, url: str | None = None) -> Path:
    """The file of a student that a user names by a run's id, a cell of one run, or a path.

    Raises:
        BadRequest: there is no such run, it has several, or its student was not kept.
    """
    return titled_student(text, results, url)[0]


def titled_student(text: str, results: Path, url: str | None = None) -> tuple[Path, str]:
    """The same file, with the method and the seed of its run ("" for a path).

    Raises:
        BadRequest: see :func:`named_student`.
    """
    path = Path(text).expanduser()
    if path.suffix == ".safetensors" and path.is_file():
        return path, ""
    store = Store(results, url, create=False)
    run = one_run(store, text)
    return student_path(store, run), f"{run.row}, seed {run.seed}"


def stored_run(text: str, results: Path, url: str | None = None) -> RunRecord | None:
    """The run that a user names; ``None`` if it is a student's file.

    Raises:
        BadRequest: there is no such run, or several.
    """
    if Path(text).suffix == ".safetensors" and Path(text).expanduser().is_file():
        return None
    return one_run(Store(results, url, create=False), text)


def one_run(store: Store, text: str) -> RunRecord:
    """The one run that a user means by an id or a cell.

    Raises:
        BadRequest: there is none, or several.
    """
    found = find_runs(store.runs(), text)
    if len(found) > 1:
        ids = ", ".join(run.id for run in found)
        raise BadRequest(f"{text} has {len(found)} runs, and one is needed: name one of {ids}")
    return found[0]


def student_path(store: Store, run: RunRecord) -> Path:
    """The file of a run's student in the store; one at a URL is fetched.

    Raises:
        BadRequest: the run is not done, its student was not kept, or it is measured with more than the student.
        Trouble: it is at a URL, and cannot be fetched.
    """
    if parts := MEASURED_WITH.get(run.row):
        raise BadRequest(
            f"run {run.id} ({run.row}) is measured with {parts}, which its file lacks: use a run of another method"
        )
    if not run.done:
        raise BadRequest(f"run {run.id} has no student yet: it is {run.status}; 'kdtable show {run.id}' says more")
    path = bring_student(store, run.id)
    if run.kept == "none" or not path.exists():
        raise BadRequest(f"the student of run {run.id} was not kept: there is no {path}")
    return path


def load_network(tensors: Mapping[str, Tensor], origin: Origin) -> Network:
    """A trained student in eval mode, which takes images in [0, 1]."""
    network = build_teacher(origin.network, origin.num_classes, origin.mean, origin.std, origin.image_size)
    network.load_state_dict(dict(tensors))
    return network


def _safetensors(file: BinaryIO, source: Path, network: Network, origin: Origin) -> None:
    """The store's own file: its metadata let kdtable use it as a teacher."""
    file.write(source.read_bytes())


def _state_dict(file: BinaryIO, source: Path, network: Network, origin: Origin) -> None:
    torch.save({key: value.contiguous() for key, value in network.state_dict().items()}, file)


def _onnx(file: BinaryIO, source: Path, network: Network, origin: Origin) -> None:
    if missing := [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]:
        raise BadRequest(f"ONNX needs {' and '.join(missing)}: pip install 'kdtable[onnx]'")
    classifier = _Classifier(network).eval()
    images = torch.rand(2, 3, origin.image_size, origin.image_size, generator=torch.Generator().manual_seed(0))
    written = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that sizes are constants, as they are; that the exporter is an old one
        torch.onnx.export(
            classifier,
            (images,),
            written,  # type: ignore[arg-type]  # only the newer exporter takes no buffer
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
            dynamo=False,  # the newer exporter needs onnxscript
        )
    file.write(written.getvalue())


class _Classifier(nn.Module):
    """A network whose only output is its logits."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images, frozenset()).logits
        return logits


#: Suffix to the function that writes a network.
FORMATS: Final[Mapping[str, Callable[[BinaryIO, Path, Network, Origin], None]]] = {
    ".safetensors": _safetensors,
    ".pt": _state_dict,
    ".onnx": _onnx,
}
