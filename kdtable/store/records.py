"""Typed records that the store reads and writes.

Metrics are as measured (for classification, fractions in [0, 1]). Times are UTC in ISO 8601, durations are seconds.
"""

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from pydantic_core import from_json

from kdtable.recipes.metrics import VALIDATED, VALIDATION, Metric
from kdtable.recipes.record import EpochRecord, validated

#: The number of an epoch, and its metrics.
Chosen = tuple[int, Mapping[str, float]]

#: Packages, besides torch, whose versions can change a result: they decode, resize and normalise images, or give
#: networks.
LIBRARIES: Final = ("pillow", "numpy", "torchvision", "timm")

#: Prefixes of stored metrics that are not of the test images.
_NOT_TESTED: Final = (VALIDATION, "train-")

#: zlib level: the fastest already removes most of the repetition in JSON.
_LEVEL: Final = 1

#: How an epoch begins in that JSON, and nothing else in it: all inner values are numbers.
_BEGINS: Final = b'{"stage": "'


def single_teachers(reference: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """What an identity says of each network in one of its references, ``teacher`` or ``start``.

    Several teachers are listed under ``teachers``; a single network is described by the reference itself.
    """
    if not reference:
        return []
    several: list[Mapping[str, Any]] = reference.get("teachers", [reference])
    return several


@dataclass(frozen=True, slots=True)
class Protocol:
    """What the seeds of a run share.

    Attributes:
        id: hash of the identity.
        text: the identity without the seed, as JSON.
        task: name of the task.
        metrics: the task's; the first is the main one.
    """

    id: str
    text: str
    task: str
    metrics: tuple[Metric, ...]

    @property
    def identity(self) -> Mapping[str, Any]:
        """The identity, parsed at each call: holding very many of them is slow."""
        identity: Mapping[str, Any] = json.loads(self.text)
        return identity

    @property
    def validated(self) -> bool:
        """Whether held-out training images choose the epoch that tables show."""
        return f'"{VALIDATED}":' in self.text and bool(self.identity["data"].get(VALIDATED))

    @property
    def main(self) -> Metric:
        """The metric that chooses the best epoch and that tables show."""
        return self.metrics[0]

    @property
    def metrics_text(self) -> str:
        """The metrics as stored: a JSON list of mappings."""
        return json.dumps([asdict(metric) for metric in self.metrics])


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a result came from.

    Attributes:
        origins: canonical JSON, in order; several if the run was continued under another origin.
        sources: distinct source hashes of the code.
        numerics: distinct numerics, each as canonical JSON.
        skipped: distinct counts of images left out as unreadable.
        libraries: distinct versions of the packages in :data:`LIBRARIES`, each as canonical JSON.
        teacher_data: distinct keys of the data set that its cohort's teacher was trained on, where it is another.
    """

    origins: tuple[str, ...]
    sources: tuple[str, ...]
    numerics: tuple[str, ...]
    skipped: tuple[int, ...]
    libraries: tuple[str, ...]
    teacher_data: tuple[str, ...]

    @classmethod
    def of(cls, origins: Iterable[str]) -> "Provenance":
        """Collect the provenance from origins, each as JSON."""
        texts = tuple(origins)
        entries = [json.loads(text) for text in texts]
        sources = dict.fromkeys(entry["source"] for entry in entries)
        numerics = dict.fromkeys(json.dumps(entry["numerics"], sort_keys=True) for entry in entries)
        skipped = dict.fromkeys(entry["skipped"] for entry in entries if "skipped" in entry)
        libraries = dict.fromkeys(_libraries(entry["packages"]) for entry in entries)
        others = dict.fromkeys(entry["teacher_data"] for entry in entries if "teacher_data" in entry)
        return cls(texts, tuple(sources), tuple(numerics), tuple(skipped), tuple(libraries), tuple(others))


def _libraries(packages: Mapping[str, str]) -> str:
    return json.dumps({name: packages[name] for name in LIBRARIES if name in packages})


#: Provenance of a run that was never claimed.
UNCLAIMED: Final = Provenance((), (), (), (), (), ())


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a run under one version of the code.

    Attributes:
        code: source hash of the code that began it, or last continued it.
        provenance: code, packages, devices and numerics it was made with.
        started: time of the first claim.
        finished: time of completion; ``None`` until then.
        chosen: main-stage epochs that tables show, as `choose` names them; and under ``probes`` the number of the last
            epoch, with what linear probes of the student measured (`kdtable.recipes.metrics.TRANSFER`).
        parameters: number of parameters of the measured network; ``None`` if not known yet.
        method_parameters: number of parameters of the method's own networks, such as adaptors, in training.
        wall_seconds: total time of all epochs.
        waited_seconds: how much of it training waited for images.
        cpu_seconds: CPU time of all epochs for this run alone; ``None`` if it was not measured.
    """

    code: str
    provenance: Provenance
    started: str
    finished: str | None = None
    chosen: Mapping[str, Chosen] = field(default_factory=dict)
    parameters: int | None = None
    method_parameters: int | None = None
    wall_seconds: float = 0.0
    waited_seconds: float = 0.0
    cpu_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as the store knows it. The defaults are those of a run not stored yet.

        run = store.runs([run_id])[0]
        if run.done:
            top1 = run.metrics_of("last")["top1"]

    Attributes:
        id: hash of its identity and seed.
        protocol: what it shares with other seeds.
        paper: paper under which it was first requested.
        row: row of that paper.
        student: canonical network name.
        teacher: the pair's teacher; ``None`` if no term uses one.
        teacher_sha256: checksum of the teacher's file.
        data: key of the data set.
        test_images: number of images that its metrics are measured on.
        seed: of everything random.
        precision: of the networks, and of the teacher cache.
        epochs: number of epochs of the main stage.
        status: planned, running, done, failed or n/a.
        reason: why it failed, or why it is n/a.
        created: when it was planned.
        claimed_by: id of the worker that is training it.
        attempt: number of claims so far.
        kept: weights that a done run has on disk: all, last or none.
        result: the current one; ``None`` until it is claimed.
        key: primary key in the store; grows in the order of planning.
    """

    id: str
    protocol: Protocol
    paper: str
    row: str
    student: str
    teacher: str | None
    teacher_sha256: str | None
    data: str
    test_images: int | None
    seed: int
    precision: str
    epochs: int
    status: str = "planned"
    reason: str | None = None
    created: str = ""
    claimed_by: str | None = None
    attempt: int = 0
    kept: str | None = None
    result: Result | None = None
    key: int = 0

    @property
    def done(self) -> bool:
        """Whether it is done."""
        return self.status == "done"

    @property
    def provenance(self) -> Provenance:
        """Where its current result came from."""
        return UNCLAIMED if self.result is None else self.result.provenance

    def metrics_of(self, which: str) -> Mapping[str, float] | None:
        """Metrics of the epoch that `choose` calls ``which``, if there is one."""
        found = None if self.result is None else self.result.chosen.get(which)
        return None if found is None else found[1]

    @property
    def last_epoch(self) -> int:
        """Number of main-stage epochs trained so far."""
        found = None if self.result is None else self.result.chosen.get("last")
        return 0 if found is None else found[0]


@dataclass(frozen=True, slots=True)
class TeacherRecord:
    """A teacher's measured metrics on a data set.

    Attributes:
        sha256: checksum of its file, or the id of the run that trained it.
        data: key of the data set.
        network: canonical name.
        metrics: as measured.
        images: number of images they were measured on.
        claimed: the published main metric, in the unit that tables show.
    """

    sha256: str
    data: str
    network: str
    metrics: Mapping[str, float]
    images: int
    claimed: float | None = None


def choose(history: Iterable[EpochRecord], main: Metric) -> dict[str, Chosen]:
    """Select the main-stage epochs that tables show, from a history in order of training.

    These are ``last``; ``best``, the first epoch with the best main metric; and ``lowest-loss`` on the test images,
    where that was measured. Of runs with held-out images they are ``last``, without what the test set measured, and
    ``validation``: the epoch that held-out images choose, with what the test set measured with its weights.
    """
    stage = [record for record in history if record.stage == "main"]
    if (by_held_out := validated(stage, main)) is not None:
        tested = {name: value for name, value in stage[-1].metrics.items() if not name.startswith(_NOT_TESTED)}
        chosen = {"last": stage[-1], VALIDATED: by_held_out}
        own = {name: {k: v for k, v in record.metrics.items() if k not in tested} for name, record in chosen.items()}
        own[VALIDATED] |= tested
        return {name: (record.epoch, own[name]) for name, record in chosen.items()}
    found = {"last": stage[-1]} if stage else {}
    if measured := [record for record in stage if main.stored in record.metrics]:
        found["best"] = max(measured, key=lambda record: main.goodness(record.metrics[main.stored]))
    if losses := [(record.test_loss, record) for record in stage if record.test_loss is not None]:
        found["lowest-loss"] = min(losses, key=lambda pair: pair[0])[1]
    return {name: (record.epoch, record.metrics) for name, record in found.items()}


def measured(history: Iterable[EpochRecord]) -> list[EpochRecord]:
    """Reset the fields of a history that vary between equal trainings: durations and cohort size."""
    return [replace(record, seconds=0.0, waited=0.0, cpu_seconds=None, cohort_size=1) for record in history]


def packed(history: Sequence[EpochRecord]) -> bytes:
    """Pack the epochs of a result for the store: zlib-compressed JSON, a list of mappings.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return zlib.compress(json.dumps([asdict(record) for record in history], allow_nan=False).encode(), _LEVEL)


def unpacked(content: bytes) -> tuple[EpochRecord, ...]:
    """Undo :func:`packed`.

    Raises:
        ValueError: ``content`` cannot be read.
    """
    with _readable():
        return tuple(EpochRecord(**record) for record in from_json(zlib.decompress(content), cache_strings="keys"))


def newest(content: bytes) -> tuple[int, EpochRecord] | None:
    """The number of packed epochs, and the newest of them, without a look at the others; ``None`` if there are none.

    Raises:
        ValueError: ``content`` cannot be read.
    """
    with _readable():
        text = zlib.decompress(content)
        count = text.count(_BEGINS)
        return (count, EpochRecord(**from_json(text[text.rindex(_BEGINS) : -1]))) if count else None


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (zlib.error, TypeError) as error:
        raise ValueError(f"epochs that cannot be read ({error})") from error
