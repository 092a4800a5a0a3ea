"""Reading checkpoints without trusting them, and writing our own."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from kdtable.errors import BadRequest
from kdtable.files.atomic import written_whole
from kdtable.files.tensor_file import (
    MAX_BYTES,
    BadTensorFile,
    NeedsCode,
    Stored,
    TensorFile,
)
from kdtable.teachers.locations import (
    BadTeacher,
    home,
    sha256_of,
    teacher_path,
)
from kdtable.teachers.manifest import by_checksum, by_file_name

__all__ = [
    "TeacherWeights",
    "content_digest",
    "home",
    "load_into",
    "read_weights",
    "save_weights",
    "sha256_of",
    "teacher_path",
]

#: Raised whenever a file of ours changes in a way that an older reader would misread.
FORMAT: Final = 1

#: Weights in float64 take twice the memory; small tensors may lie in a larger storage that others have a part of.
MOST_PADDING: Final = 8


@dataclass(frozen=True, slots=True)
class TeacherWeights:
    """A checkpoint's content, of which no tensor has been read yet.

    Attributes:
        path: the file.
        sha256: its checksum, 64 hex digits.
        described: the network's tensors by key: their shapes and dtypes.
        mean: of the input normalisation that it was trained with; ``None`` when the file is not recognised.
        std: likewise.
        run: the id of the run that trained it; ``None`` when that was not ours.
        data: the key of the data set that our run was trained on; ``None`` likewise.
        content: the :func:`content_digest` of what we wrote; ``None`` when the file is not ours, or from before we
            noted it.
        claimed_top1: the published accuracy, percent, when the file is recognised as a published one.
    """

    path: Path
    sha256: str
    described: Mapping[str, Stored]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    run: str | None
    data: str | None
    content: str | None
    claimed_top1: float | None

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """The network's tensors, on the CPU; read from the file each time.

        Raises:
            BadRequest: the file has changed.
        """
        with self.path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != self.sha256:
                raise BadRequest(f"{self.path} changed while it was in use: run the command again")
            content = TensorFile(file)
            return {key: content.tensor(stored) for key, stored in self.described.items()}


def read_weights(path: Path) -> TeacherWeights:
    """Read what a checkpoint holds; no code in it is ever run.

    Accepted are our own files, ``{"model": tensors, ...}`` (the CRD benchmark's), ``{"state_dict": tensors,
    ...}`` and a plain dict of tensors; a ``module.`` before every key is dropped.

    Raises:
        BadTeacher: the file is too large, damaged, no checkpoint, or would need code to be run.
        BadRequest: the file cannot be opened.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise BadTeacher(f"{path} is refused: {size} bytes, more than any teacher here ({MAX_BYTES})")
            content = TensorFile(file)
            content.check()
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadRequest(f"{path} cannot be read: {error.strerror}") from error
    except NeedsCode as error:
        raise BadTeacher(f"{path} is refused: it {error}; a checkpoint of plain tensors is needed") from error
    except BadTensorFile as error:
        raise BadTeacher(f"{path} {error}") from error
    return _recognised(path, digest, content.described)


def _recognised(path: Path, digest: str, content: Any) -> TeacherWeights:
    if not isinstance(content, dict):
        raise BadTeacher(f"{path} is no checkpoint: it holds a {type(content).__name__}, not a dict")
    tensors = _tensors(content, path)
    if "kdtable" in content:
        about = _own(content["kdtable"], path)
        return TeacherWeights(path, digest, tensors, **about, claimed_top1=None)
    known = by_checksum(digest)
    if known is not None:
        return TeacherWeights(path, digest, tensors, known.mean, known.std, None, None, None, known.claimed_top1)
    if (published := by_file_name(path.name)) is not None:
        raise BadTeacher(f"{path} bears the name of the published {published.name}, but its checksum is {digest}")
    return TeacherWeights(path, digest, tensors, None, None, None, None, None, None)


def _tensors(content: dict[Any, Any], path: Path) -> dict[str, Stored]:
    inner = next((content[key] for key in ("model", "state_dict") if key in content), content)
    if not isinstance(inner, dict) or not inner:
        raise BadTeacher(f"{path} is no checkpoint: it holds no network")
    wrong = [key for key, value in inner.items() if not isinstance(key, str) or not isinstance(value, Stored)]
    if wrong:
        raise BadTeacher(f"{path} is no checkpoint: its entry {wrong[0]!r} is not a tensor")
    # Written from inside DataParallel when every key has the prefix.
    prefix = "module." if all(key.startswith("module.") for key in inner) else ""
    return {key.removeprefix(prefix): value for key, value in inner.items()}


def _own(about: object, path: Path) -> dict[str, Any]:
    """What a file of ours says about itself: ``mean``, ``std``, ``run``, ``data`` and ``content``."""
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise BadTeacher(f"{path} was written by another version of kdtable, in a format that is not known here")
    names = {key: about.get(key) for key in ("run", "data", "content")}
    if not all(isinstance(name, str | None) for name in names.values()):
        raise BadTeacher(f"{path} is damaged: its run is not an id, its data set has no name, or its digest is none")
    return names | {key: _constants(about.get(key), path) for key in ("mean", "std")}


def _constants(values: object, path: Path) -> tuple[float, ...] | None:
    if values is None:
        return None
    if not isinstance(values, list | tuple) or not all(isinstance(value, float) for value in values):
        raise BadTeacher(f"{path} is damaged: its input normalisation is not a list of numbers")
    return tuple(values)


def load_into(network: nn.Module, weights: TeacherWeights, *, name: str) -> None:
    """Copy the tensors into ``network`` (called ``name`` in errors), all of them or none.

    Keys, shapes and types are compared before a tensor is read.

    Raises:
        BadTeacher: the file is of another architecture or of another number of classes, is one of ours that somebody
            has changed, or not all of its numbers are finite.
    """
    expected, given = network.state_dict(), weights.described
    # Files written before torch 0.4.1 have no such counters; batch-norm then keeps its own.
    lacking = [key for key in expected if key not in given and not key.endswith("num_batches_tracked")]
    surplus = [key for key in given if key not in expected]
    if lacking or surplus:
        facts = [f"{verb} {_some(keys)}" for verb, keys in (("lacks", lacking), ("has", surplus)) if keys]
        raise BadTeacher(f"{weights.path} is not a {name}: it {' and '.join(facts)}")
    shapes = [key for key in expected if key in given and given[key].shape != tuple(expected[key].shape)]
    if shapes:
        raise _wrong_shapes(shapes, expected, weights, name)
    for key, stored in given.items():
        if stored.dtype.is_floating_point != expected[key].dtype.is_floating_point:
            raise BadTeacher(f"{weights.path} is not a {name}: its {key} holds {stored.dtype}")
    taken = sum(storage.nbytes for storage in {stored.storage for stored in given.values()})
    if taken > MOST_PADDING * sum(value.nbytes for value in expected.values()):
        raise BadTeacher(f"{weights.path} is not a {name}: what it holds takes {taken} bytes of memory")
    tensors = weights.state_dict
    # Runs know a teacher of ours by the run that trained it: other weights must not pass for that one's.
    if weights.content is not None and weights.content != content_digest(tensors):
        raise BadTeacher(
            f"{weights.path} holds other weights than kdtable wrote into it (to teach with them, save them without "
            "the entry 'kdtable')"
        )
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise BadTeacher(f"{weights.path} cannot teach: its {key} holds numbers that are NaN or infinite")
    network.load_state_dict(tensors, strict=True)


def content_digest(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of a network's tensors, 64 hex digits: of their keys, dtypes, shapes and numbers to the bit."""
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(json.dumps([key, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _some(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0]} and {len(keys) - 1} more"


def _wrong_shapes(keys: list[str], expected: Mapping[str, Tensor], weights: TeacherWeights, name: str) -> BadTeacher:
    given = weights.described
    classifier = [key for key, value in expected.items() if value.dim() == 2][-1:]
    if keys[:1] == classifier:  # nothing before the last 2-D weight differs
        there, here = given[keys[0]].shape, expected[keys[0]].shape
        if len(there) == 2 and there[1:] == here[1:]:
            return BadTeacher(f"{weights.path} has {there[0]} classes, the data set has {here[0]}")
    there, here = given[keys[0]].shape, expected[keys[0]].shape
    return BadTeacher(f"{weights.path} is not a {name}: its {keys[0]} is {_size(there)}, not {_size(here)}")


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a single number"


def save_weights(
    path: Path,
    network_state: Mapping[str, Tensor],
    *,
    network: str,
    num_classes: int,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    run: str | None,
    data: str,
) -> None:
    """Write a checkpoint of our own, which appears whole or not at all; ``read_weights`` reads it.

    A lock keeps all others from writing this file.

    Args:
        path: the file; its folder is made when it is missing.
        network_state: the network's ``state_dict``, on any device.
        network: canonical name.
        num_classes: of the data set.
        mean: of the input normalisation, for images in [0, 1]; ``None`` for the data set's.
        std: likewise.
        run: the id of the run that trained it.
        data: the data set's identity.
    """
    about = {"format": FORMAT, "network": network, "num_classes": num_classes, "run": run, "data": data}
    about["mean"] = None if mean is None else [float(value) for value in mean]
    about["std"] = None if std is None else [float(value) for value in std]
    # Cloned, because a tensor that is a view would take the whole storage beneath it into the file.
    model = {key: value.detach().cpu().clone() for key, value in network_state.items()}
    about["content"] = content_digest(model)
    with written_whole(path, alone=True) as file:
        torch.save({"model": model, "kdtable": about}, file)
