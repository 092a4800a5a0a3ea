"""Read untrusted weight files, in the layouts that training scripts write."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from kdtable.checkpoints.student import Origin, constants, content_digest, origin_of
from kdtable.errors import BadRequest, several
from kdtable.files.tensor_file import BadTensorFile, Inert, NeedsCode, TensorFile
from kdtable.teachers import coco
from kdtable.teachers.fitting import fitting_networks
from kdtable.teachers.locations import BadTeacher
from kdtable.teachers.manifest import Published, by_checksum, by_file_name

#: Keys under which training scripts save weights, the likeliest first.
_KEYS: Final = ("model", "state_dict", "net", "model_state_dict", "network", "student", "teacher", "weights", "params")

#: Prefixes that wrappers add to every name: data parallelism, compilation, Lightning, distillers; MoCo, to the encoder
#: that learned.
_PREFIXES: Final = (
    *("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "student.", "teacher."),
    "encoder_q.",
)

#: Limit of nested dicts and prefixes.
_DEEPEST: Final = 3

#: Counters that profilers add to networks.
_COUNTERS: Final = ("total_ops", "total_params")


@dataclass(frozen=True, slots=True)
class FoundNetwork:
    """Tensors in a file that may be a network's.

    Attributes:
        where: keys of the nested dicts that contain them.
        names: names in the file by the network's names.
        described: tensors on the meta device (shapes and dtypes) by the network's names.
    """

    where: tuple[str, ...]
    names: Mapping[str, str]
    described: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class TeacherWeights:
    """A weight file whose tensors have not been read yet.

    Attributes:
        path: the file.
        sha256: its checksum, 64 hex digits.
        found: candidates for the network, the likeliest first.
        mean: of the input normalisation in training; ``None`` if unknown.
        std: of the same.
        origin: metadata of a file that we trained, else ``None``.
        content: the :func:`content_digest` of a file that we trained, else ``None``.
        claimed_top1: the published accuracy in percent, if the file is a published one.
        convert: makes the tensors, by the file's names without prefixes, those of our network; ``None`` if they are.
    """

    path: Path
    sha256: str
    found: tuple[FoundNetwork, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    origin: Origin | None = None
    content: str | None = None
    claimed_top1: float | None = None
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None

    @property
    def run(self) -> str | None:
        """Id of our run that trained it, if one did."""
        return self.origin.run if self.origin else None

    @property
    def num_classes(self) -> int | None:
        """Number of classes, by the metadata or the last matrix; ``None`` if there is no matrix."""
        if self.origin:
            return self.origin.num_classes
        matrices = [tensor for tensor in self.found[0].described.values() if tensor.dim() == 2]
        return len(matrices[-1]) if matrices else None

    @property
    def data(self) -> str | None:
        """Key of the data set that our run was trained on."""
        return self.origin.data if self.origin else None

    def tensors(self, network: FoundNetwork) -> dict[str, Tensor]:
        """Read a network's tensors from the file, on the CPU.

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
        tensors = {key: inner[name] for key, name in network.names.items()}
        return self.convert(tensors) if self.convert else tensors


def read_weights(path: Path) -> TeacherWeights:
    """Inspect a weight file; never runs code from it.

    Supports safetensors, npz, and what ``torch.save`` wrote: a dict of tensors, or a dict that has one under a usual
    key (``model``, ``state_dict``, ``net`` …). Wrappers' prefixes (``module.``, ``_orig_mod.`` …) and profilers'
    counters are dropped.

    Example:
        load_into(network, read_weights(path), name="resnet56")

    Raises:
        BadTeacher: the file is too large, damaged, of another format, without tensors, or needs code to be run.
        BadRequest: the file cannot be opened.
    """
    try:
        with path.open("rb") as file:
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
        return _published(
            TeacherWeights(path, digest, found, known.mean, known.std, claimed_top1=known.claimed_top1), known
        )
    if (published := by_file_name(path.name)) is not None:
        raise BadTeacher(f"{path} bears the name of the published {published.name}, but its checksum is {digest}")
    return TeacherWeights(path, digest, found, mean, std if mean else None)


def _published(weights: TeacherWeights, published: Published) -> TeacherWeights:
    """A published file's weights; those of COCO are converted to its 80 categories."""
    if published.dataset != coco.DATASET:
        return weights
    found = tuple(replace(one, described=coco.converted(one.described)) for one in weights.found)
    return replace(weights, found=found, convert=coco.converted)


def _networks(content: object, where: tuple[str, ...], seen: set[int]) -> Iterator[FoundNetwork]:
    """Candidates for the network, the likeliest first."""
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
    return f"its entries are {several([repr(key)[:60] for key in content], 4)}" if content else "it is empty"


def load_into(network: nn.Module, weights: TeacherWeights, *, name: str) -> None:
    """Load the weights into ``network``, whose canonical name is ``name``; on an error nothing changes.

    Names, shapes and types are compared before a tensor is read.

    Raises:
        BadTeacher: the architecture or the number of classes differs, a file that we trained was changed, or a value
            is not finite.
    """
    expected = network.state_dict()
    if weights.origin is not None and weights.origin.network != name:
        raise BadTeacher(f"{weights.path} is not a {name}: run {weights.run} trained a {weights.origin.network} in it")
    misfits = {position: _misfit(expected, found.described, name) for position, found in enumerate(weights.found)}
    fitting = next((weights.found[position] for position, misfit in misfits.items() if misfit is None), None)
    if fitting is None:
        raise _refusal(weights, expected, misfits)
    tensors = weights.tensors(fitting)
    # The run that trained a teacher is its identity, so other weights must not pass for that run's.
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
    """Why tensors do not fit a network, as the end of a sentence; ``None`` if they do."""
    # Files from before torch 0.4.1 lack num_batches_tracked; batch-norm then keeps its own.
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
    """The error for the most similar candidate, with the networks that it does fit."""
    near = max(misfits, key=lambda position: len(weights.found[position].described.keys() & expected.keys()))
    others = [] if " classes" in str(misfits[near]) else fitting_networks(weights.found[near].described)
    known = f"; its tensors are those of {' or '.join(others)}" if others else ""
    return BadTeacher(f"{weights.path} {misfits[near]}{known}")


def _first(keys: list[str]) -> str:
    return keys[0][:100] if len(keys) == 1 else f"{keys[0][:100]} and {len(keys) - 1} more"


def _wrong_shapes(keys: list[str], expected: Mapping[str, Tensor], given: Mapping[str, Tensor], name: str) -> str:
    classifier = [key for key, value in expected.items() if value.dim() == 2][-1:]
    there, here = given[keys[0]].shape, expected[keys[0]].shape
    # Only the last 2-D weight differs.
    if keys[:1] == classifier and len(there) == 2 and there[1:] == here[1:]:
        return f"has {there[0]} classes, the data set has {here[0]}"
    return f"is not a {name}: its {keys[0]} is {_size(there)}, not {_size(here)}"


def _size(shape: Sequence[Any]) -> str:
    return "x".join(map(str, shape)) or "a single number"
