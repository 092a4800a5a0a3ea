"""Reading checkpoints without trusting them, and writing our own."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from kdtable.atomic import written_whole
from kdtable.errors import BadRequest
from kdtable.teachers.manifest import by_checksum
from kdtable.teachers.places import MAX_BYTES, home, sha256_of, teacher_path

__all__ = [
    "TeacherWeights",
    "home",
    "load_into",
    "read_weights",
    "save_weights",
    "sha256_of",
    "teacher_path",
]

#: Raised whenever a file of ours changes in a way that an older reader would misread.
FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class TeacherWeights:
    """A checkpoint's content.

    Attributes:
        path: the file.
        sha256: its checksum, 64 hex digits.
        state_dict: the network's tensors, on the CPU.
        mean: of the input normalisation that it was trained with; ``None`` when the file is not recognised.
        std: likewise.
        run: the id of the run that trained it; ``None`` when that was not ours.
        claimed_top1: the published accuracy, percent, when the file is recognised as a published one.
    """

    path: Path
    sha256: str
    state_dict: dict[str, Tensor]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    run: str | None
    claimed_top1: float | None


def read_weights(path: Path) -> TeacherWeights:
    """Read a checkpoint; no code in it is ever run.

    Accepted are our own files, ``{"model": tensors, ...}`` (the CRD benchmark's), ``{"state_dict": tensors,
    ...}`` and a plain dict of tensors; a ``module.`` before every key is dropped.

    Raises:
        BadRequest: the file cannot be read, is too large, is no checkpoint, or would need code to be run.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise BadRequest(f"{path} cannot be read: {error.strerror}") from error
    if size > MAX_BYTES:
        raise BadRequest(f"{path} is refused: {size} bytes, more than any teacher here ({MAX_BYTES})")
    content = _safe_load(path)
    state_dict = _tensors(content, path)
    digest = sha256_of(path)
    if "kdtable" in content:
        mean, std, run = _own(content["kdtable"], path)
        return TeacherWeights(path, digest, state_dict, mean, std, run, None)
    known = by_checksum(digest)
    if known is None:
        return TeacherWeights(path, digest, state_dict, None, None, None, None)
    return TeacherWeights(path, digest, state_dict, known.mean, known.std, None, known.claimed_top1)


def _safe_load(path: Path) -> dict[Any, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise BadRequest(
                f"{path} is refused: it holds objects that only running code from the file could restore; "
                "a checkpoint of plain tensors is needed"
            ) from error
        raise BadRequest(f"{path} is no checkpoint of plain tensors") from error
    except Exception as error:  # a damaged file makes the reader fail in a dozen ways, OSError and KeyError among them
        raise BadRequest(f"{path} is truncated, damaged or no checkpoint ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise BadRequest(f"{path} is no checkpoint: it holds a {type(content).__name__}, not a dict")
    return content


def _tensors(content: dict[Any, Any], path: Path) -> dict[str, Tensor]:
    inner = next((content[key] for key in ("model", "state_dict") if key in content), content)
    if not isinstance(inner, dict) or not inner:
        raise BadRequest(f"{path} is no checkpoint: it holds no network")
    wrong = [key for key, value in inner.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if wrong:
        raise BadRequest(f"{path} is no checkpoint: its entry {wrong[0]!r} is not a tensor")
    # Written from inside DataParallel when every key has the prefix.
    prefix = "module." if all(key.startswith("module.") for key in inner) else ""
    return {key.removeprefix(prefix): value.detach() for key, value in inner.items()}


def _own(about: object, path: Path) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None, str | None]:
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise BadRequest(f"{path} was written by another version of kdtable, in a format that is not known here")
    run = about.get("run")
    if run is not None and not isinstance(run, str):
        raise BadRequest(f"{path} is damaged: its run is not an id")
    return _constants(about.get("mean"), path), _constants(about.get("std"), path), run


def _constants(values: object, path: Path) -> tuple[float, ...] | None:
    if values is None:
        return None
    if not isinstance(values, list | tuple) or not all(isinstance(value, float) for value in values):
        raise BadRequest(f"{path} is damaged: its input normalisation is not a list of numbers")
    return tuple(values)


def load_into(network: nn.Module, weights: TeacherWeights, *, name: str) -> None:
    """Copy the tensors into ``network`` (called ``name`` in errors), all of them or none.

    Raises:
        BadRequest: the file is of another architecture, or of another number of classes.
    """
    expected = network.state_dict()
    given = weights.state_dict
    # Files written before torch 0.4.1 have no such counters; batch-norm then keeps its own.
    lacking = [key for key in expected if key not in given and not key.endswith("num_batches_tracked")]
    surplus = [key for key in given if key not in expected]
    if lacking or surplus:
        facts = [f"{verb} {_some(keys)}" for verb, keys in (("lacks", lacking), ("has", surplus)) if keys]
        raise BadRequest(f"{weights.path} is not a {name}: it {' and '.join(facts)}")
    shapes = [key for key in expected if key in given and given[key].shape != expected[key].shape]
    if shapes:
        raise _wrong_shapes(shapes, expected, weights, name)
    network.load_state_dict(given, strict=True)


def _some(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0]} and {len(keys) - 1} more"


def _wrong_shapes(keys: list[str], expected: Mapping[str, Tensor], weights: TeacherWeights, name: str) -> BadRequest:
    given = weights.state_dict
    classifier = [key for key, value in expected.items() if value.dim() == 2][-1:]
    if keys[:1] == classifier:  # nothing before the last 2-D weight differs
        there, here = given[keys[0]].shape, expected[keys[0]].shape
        if len(there) == 2 and there[1:] == here[1:]:
            return BadRequest(f"{weights.path} has {there[0]} classes, the data set has {here[0]}")
    there, here = given[keys[0]].shape, expected[keys[0]].shape
    return BadRequest(f"{weights.path} is not a {name}: its {keys[0]} is {_size(there)}, not {_size(here)}")


def _size(shape: torch.Size) -> str:
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
    with written_whole(path) as file:
        torch.save({"model": model, "kdtable": about}, file)
