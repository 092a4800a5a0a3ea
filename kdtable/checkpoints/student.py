"""Weights that we trained: safetensors with their origin, so that a student can be a teacher later."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from kdtable.checkpoints.checkpoint import BadCheckpoint, NoAccess
from kdtable.files.atomic import written_whole
from kdtable.files.tensor_file import BadTensorFile, TensorFile, safetensors_bytes
from kdtable.recipes.record import EpochRecord
from kdtable.typed import read

#: Fields that differ each time that a run is trained; left out, so that the same network gives the same bytes.
_TIMES: Final = ("seconds", "waited", "cpu_seconds", "cohort_size")

#: Metadata that other libraries write with torch's tensors.
_FORMAT: Final = {"format": "pt"}


@dataclass(frozen=True, slots=True)
class Origin:
    """The metadata of a file of trained weights, under the same names.

    Attributes:
        network: canonical name.
        num_classes: of the data set.
        image_size: height and width of the images.
        mean: of the input normalisation, for images in [0, 1].
        std: of the same.
        data: key of the data set.
        run: id of the run that trained the weights.
        metrics: of the last epoch on the test set, by name.
        history: each epoch's record as fields by name, without times.
    """

    network: str
    num_classes: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    data: str
    run: str
    metrics: Mapping[str, float]
    history: Sequence[Mapping[str, Any]]


def save(path: Path, tensors: Mapping[str, Tensor], origin: Origin) -> None:
    """Write trained weights atomically: a temporary file, fsync, rename, fsync of the folder.

    Args:
        path: the file.
        tensors: the network's ``state_dict``, on any device.
        origin: metadata.
    """
    # Copied, because safetensors refuses tensors that share memory or are not contiguous.
    own = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    about = asdict(origin)
    about["history"] = [{key: e[key] for key in e if key not in _TIMES} for e in origin.history]
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
    texts = _FORMAT | texts | {"digest": content_digest(own)}
    content = safetensors_bytes(own, texts | {"checksum": _checksum(texts)})
    with written_whole(path) as file:
        file.write(content)


def load(path: Path) -> tuple[dict[str, Tensor], Origin]:
    """Read weights that :func:`save` wrote, on the CPU.

    Raises:
        BadCheckpoint: the file is damaged, was changed, or is not ours.
        NoAccess: it does not exist, or cannot be opened.
    """
    try:
        with path.open("rb") as file:
            content = TensorFile(file)
            origin = origin_of(content.metadata)
            tensors: dict[str, Tensor] = content.load()
    except (BadTensorFile, ValueError) as error:
        raise BadCheckpoint(f"{path} {error}") from error
    except OSError as error:
        raise NoAccess(f"{path} cannot be read ({error.strerror})") from error
    if origin is None:
        raise BadCheckpoint(f"{path} is not the student of a run")
    if content_digest(tensors) != content.metadata["digest"]:
        raise BadCheckpoint(f"{path} holds other weights than kdtable wrote into it")
    return tensors, origin


def record_of(epoch: Mapping[str, Any]) -> EpochRecord:
    """An epoch of an `Origin`'s history as a record, with 0 seconds."""
    return EpochRecord(**epoch, seconds=0.0, cohort_size=1)


def origin_of(metadata: Mapping[str, str]) -> Origin | None:
    """Parse a file's metadata; ``None`` if the file is not ours.

    Raises:
        ValueError: the metadata are ours, and damaged.
    """
    if "run" not in metadata or "digest" not in metadata:
        return None
    if metadata.get("checksum") != _checksum({key: text for key, text in metadata.items() if key != "checksum"}):
        raise ValueError("is damaged: what it says of its origin has changed")
    try:
        texts = {field.name: metadata[field.name] for field in fields(Origin)}
        plain = ("network", "data", "run")
        return read(Origin, {key: text if key in plain else json.loads(text) for key, text in texts.items()})
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError("is damaged: what it says of its origin cannot be read") from error


def _checksum(texts: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()


def constants(text: str) -> tuple[float, ...]:
    """Parse the constants of an input normalisation, a JSON list of numbers.

    Raises:
        ValueError: the text is not such a list.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, list) or not values or not all(type(value) in (int, float) for value in values):
        raise ValueError("is damaged: its input normalisation is not a list of numbers")
    return tuple(float(value) for value in values)


def content_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a network's tensors, 64 hex digits: of keys, dtypes, shapes and exact values."""
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(json.dumps([key, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
