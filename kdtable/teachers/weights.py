"""Reading files of weights without trusting them, in whatever form training scripts keep them."""

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from kdtable.checkpoints.student import Origin, constants, content_digest, origin_of
from kdtable.errors import BadRequest
from kdtable.files.tensor_file import MAX_BYTES, BadTensorFile, Inert, NeedsCode, TensorFile
from kdtable.teachers.fitting import fitting_networks
from kdtable.teachers.locations import BadTeacher
from kdtable.teachers.manifest import by_checksum, by_file_name

#: Under which training scripts keep the weights; what they know best first.
_KEYS: Final = ("model", "state_dict", "net", "model_state_dict", "network", "student", "teacher", "weights", "params")

#: What wrappers put before every name: data parallelism, compilation, Lightning, distillers.
_PREFIXES: Final = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "student.", "teacher.")

#: Wrappers within each other.
_DEEPEST: Final = 3

#: Counters that profilers add to networks.
_COUNTERS: Final = ("total_ops", "total_params")

#: Entries of a file, or networks, that a sentence names.
_NAMED: Final = 4


@dataclass(frozen=True, slots=True)
class FoundNetwork:
    """Tensors of a file that may be a network's.

    Attributes:
        where: keys of the dicts that lead to them.
        names: their names in the file by those that the network uses.
        described: their shapes and dtypes, by the latter: tensors on the meta device.
    """

    where: tuple[str, ...]
    names: Mapping[str, str]
    described: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class TeacherWeights:
    """A file of weights, of which no tensor has been read yet.

    Attributes:
        path: the file.
        sha256: its checksum, 64 hex digits.
        found: what may be a network in it.
        mean: of the input normalisation that it was trained with; ``None`` when the file does not say.
        std: likewise.
        origin: what it says of itself if a run of ours trained it, else ``None``.
        content: the :func:`content_digest` of what we wrote; ``None`` likewise.
        claimed_top1: the published accuracy, percent, when the file is recognised as a published one.
    """

    path: Path
    sha256: str
    found: tuple[FoundNetwork, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    origin: Origin | None = None
    content: str | None = None
    claimed_top1: float | None = None

    @property
    def run(self) -> str | None:
        """The id of our run that trained it."""
        return self.origin.run if self.origin else None

    @property
    def data(self) -> str | None:
        """The key of the data set that our run was trained on."""
        return self.origin.data if self.origin else None

    def tensors(self, network: FoundNetwork) -> dict[str, Tensor]:
        """A network's tensors, on the CPU; read from the file each time.

        Raises:
            BadRequest: the file has changed.
            BadTeacher: it is damaged.
        """
        with self.path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != self.sha256:
                raise BadRequest(f"{self.path} changed while it was in use: run the command again")
            try:
                inner = TensorFile(file).load()
            except BadTensorFile as error:
                raise BadTeacher(f"{self.path} {error}") from error
        for key in network.where:
            inner = inner[key]
        return {key: inner[name] for key, name in network.names.items()}


def read_weights(path: Path) -> TeacherWeights:
    """Read what a file of weights holds; no code in it is ever run.

    Accepted are safetensors (ours say where they come from), npz, and what ``torch.save`` wrote: a dict of tensors, or
    one that has such a dict under a usual key (``model``, ``state_dict``, ``net`` …), beside whatever else. Prefixes
    of wrappers (``module.``, ``_orig_mod.`` …) and profilers' counters are dropped.

    Raises:
        BadTeacher: the file is too large, damaged, of another format, without tensors, or would need code to be run.
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
        raise BadTeacher(
            f"{path} is refused: it {error}; a checkpoint of plain tensors is needed: load it where it was made, and "
            "save its network's state_dict()"
        ) from error
    except BadTensorFile as error:
        raise BadTeacher(f"{path} {error}") from error
    return _recognised(path, digest, content)


def _recognised(path: Path, digest: str, file: TensorFile) -> TeacherWeights:
    try:
        origin = origin_of(file.metadata)
        mean, std = (constants(file.metadata[name]) if name in file.metadata else None for name in ("mean", "std"))
    except ValueError as error:
        raise BadTeacher(f"{path} {error}") from error
    if mean and (std is None or len(mean) != len(std) or not all(map(math.isfinite, mean + std)) or min(std) <= 0):
        raise BadTeacher(f"{path} is damaged: its input normalisation is none")
    if origin is not None:
        whole = FoundNetwork((), {key: key for key in file.described}, file.described)
        return TeacherWeights(path, digest, (whole,), origin.mean, origin.std, origin, file.metadata["digest"])
    found = tuple(_networks(file.described, (), set()))
    if not found:
        raise BadTeacher(f"{path} is no checkpoint: it holds no network ({_entries(file.described)})")
    known = by_checksum(digest)
    if known is not None:
        return TeacherWeights(path, digest, found, known.mean, known.std, claimed_top1=known.claimed_top1)
    if (published := by_file_name(path.name)) is not None:
        raise BadTeacher(f"{path} bears the name of the published {published.name}, but its checksum is {digest}")
    return TeacherWeights(path, digest, found, mean, std if mean else None)


def _networks(content: object, where: tuple[str, ...], seen: set[int]) -> Iterator[FoundNetwork]:
    """What may be a network, the likeliest first."""
    if not isinstance(content, dict) or len(where) > _DEEPEST or id(content) in seen:
        return
    seen.add(id(content))
    for key in _KEYS:
        yield from _networks(content.get(key), (*where, key), seen)
    tensors = {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Tensor) and key.rpartition(".")[2] not in _COUNTERS
    }
    if tensors:
        for names in _without_prefixes({key: key for key in tensors}):
            yield FoundNetwork(where, names, {key: tensors[name] for key, name in names.items()})
    for key, inner in content.items():
        if isinstance(key, str):
            yield from _networks(inner, (*where, key), seen)


def _without_prefixes(names: Mapping[str, str], depth: int = 0) -> Iterator[Mapping[str, str]]:
    for prefix in _PREFIXES if depth <= _DEEPEST else ():
        found = {key.removeprefix(prefix): name for key, name in names.items() if key.startswith(prefix)}
        if found:
            yield from _without_prefixes(found, depth + 1)
    yield names


def _entries(content: object) -> str:
    if isinstance(content, Inert):
        return f"it is a {content!r} as a whole: save its state_dict()"
    if not isinstance(content, dict):
        return f"it is a {type(content).__name__}, not a dict"
    return f"its entries are {_some([repr(key)[:60] for key in content])}" if content else "it is empty"


def load_into(network: nn.Module, weights: TeacherWeights, *, name: str) -> None:
    """Copy the tensors into ``network`` (called ``name`` in errors), all of them or none.

    Names, shapes and types are compared before a tensor is read.

    Raises:
        BadTeacher: the file is of another architecture or of another number of classes, is one of ours that somebody
            has changed, or not all of its numbers are finite.
    """
    expected = network.state_dict()
    if weights.origin is not None and weights.origin.network != name:
        raise BadTeacher(f"{weights.path} is not a {name}: run {weights.run} trained a {weights.origin.network} in it")
    misfits = {position: _misfit(expected, found.described, name) for position, found in enumerate(weights.found)}
    fitting = next((weights.found[position] for position, misfit in misfits.items() if misfit is None), None)
    if fitting is None:
        raise _refusal(weights, expected, misfits)
    tensors = weights.tensors(fitting)
    # Runs know a teacher of ours by the run that trained it: other weights must not pass for that one's.
    if weights.content is not None and weights.content != content_digest(tensors):
        raise BadTeacher(
            f"{weights.path} holds other weights than kdtable wrote into it (to teach with them, save them without "
            "their metadata)"
        )
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise BadTeacher(f"{weights.path} cannot teach: its {key} holds numbers that are NaN or infinite")
    network.load_state_dict(tensors, strict=True)


def _misfit(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], name: str) -> str | None:
    """Why tensors are not those of a network, as the end of a sentence; ``None`` if they are."""
    # Files written before torch 0.4.1 have no such counters; batch-norm then keeps its own.
    lacking = [key for key in expected if key not in given and not key.endswith("num_batches_tracked")]
    surplus = [key for key in given if key not in expected]
    if lacking or surplus:
        facts = [f"{verb} {_first(keys)}" for verb, keys in (("lacks", lacking), ("has", surplus)) if keys]
        return f"is not a {name}: it {' and '.join(facts)}"
    shapes = [key for key in expected if key in given and given[key].shape != expected[key].shape]
    if shapes:
        return _wrong_shapes(shapes, expected, given, name)
    for key, value in given.items():
        if value.dtype.is_floating_point != expected[key].dtype.is_floating_point:
            return f"is not a {name}: its {key} holds {value.dtype}"
    return None


def _refusal(weights: TeacherWeights, expected: Mapping[str, Tensor], misfits: Mapping[int, str | None]) -> BadTeacher:
    """What is said of the tensors that are most like the network's, and of which network they are."""
    near = max(misfits, key=lambda position: len(weights.found[position].described.keys() & expected.keys()))
    others = [] if " classes" in str(misfits[near]) else fitting_networks(weights.found[near].described)
    known = f"; its tensors are those of {' or '.join(others)}" if others else ""
    return BadTeacher(f"{weights.path} {misfits[near]}{known}")


def _first(keys: list[str]) -> str:
    return keys[0][:100] if len(keys) == 1 else f"{keys[0][:100]} and {len(keys) - 1} more"


def _some(texts: list[str]) -> str:
    more = f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return ", ".join(texts[:_NAMED]) + more


def _wrong_shapes(keys: list[str], expected: Mapping[str, Tensor], given: Mapping[str, Tensor], name: str) -> str:
    classifier = [key for key, value in expected.items() if value.dim() == 2][-1:]
    there, here = given[keys[0]].shape, expected[keys[0]].shape
    # Nothing before the last 2-D weight differs.
    if keys[:1] == classifier and len(there) == 2 and there[1:] == here[1:]:
        return f"has {there[0]} classes, the data set has {here[0]}"
    return f"is not a {name}: its {keys[0]} is {_size(there)}, not {_size(here)}"


def _size(shape: Sequence[Any]) -> str:
    return "x".join(map(str, shape)) or "a single number"
