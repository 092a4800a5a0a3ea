"""What the store gives and takes: typed rows, whose fields other packages read by name.

Metrics are as measured (for classification shares in [0, 1]), times are UTC in ISO 8601, durations are seconds.
"""

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from kdtable.recipes.metrics import Metric
from kdtable.recipes.record import EpochRecord

#: Metrics of an epoch, and its number.
Chosen = tuple[int, Mapping[str, float]]

#: Most of what JSON repeats is gone at the quickest level.
_LEVEL: Final = 1


@dataclass(frozen=True, slots=True)
class Protocol:
    """What all seeds of a run share.

    Attributes:
        id: hash of the identity.
        text: the identity without the seed, as JSON.
        task: name of the task.
        metrics: of the task; the first is the main one.
    """

    id: str
    text: str
    task: str
    metrics: tuple[Metric, ...]

    @property
    def identity(self) -> Mapping[str, Any]:
        """The identity, read anew at each call: very many of them are slow to hold."""
        identity: Mapping[str, Any] = json.loads(self.text)
        return identity

    @property
    def main(self) -> Metric:
        """The metric by which the best epoch is chosen, and which tables show."""
        return self.metrics[0]

    @property
    def metrics_text(self) -> str:
        """The metrics as they are stored."""
        return json.dumps([asdict(metric) for metric in self.metrics])


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where numbers came from.

    Attributes:
        origins: each as canonical JSON, in order; several where a run was continued under another one.
        sources: distinct hashes of the code.
        numerics: distinct numerics, each as canonical JSON.
        skipped: distinct numbers of images that were left out.
    """

    origins: tuple[str, ...]
    sources: tuple[str, ...]
    numerics: tuple[str, ...]
    skipped: tuple[int, ...]

    @classmethod
    def of(cls, origins: Iterable[str]) -> "Provenance":
        """What several origins, as JSON, amount to."""
        texts = tuple(origins)
        entries = [json.loads(text) for text in texts]
        sources = dict.fromkeys(entry["source"] for entry in entries)
        numerics = dict.fromkeys(json.dumps(entry["numerics"], sort_keys=True) for entry in entries)
        skipped = dict.fromkeys(entry["skipped"] for entry in entries if "skipped" in entry)
        return cls(texts, tuple(sources), tuple(numerics), tuple(skipped))


#: Of a run that nobody has claimed yet.
NOWHERE: Final = Provenance((), (), (), ())


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to under one state of the code.

    Attributes:
        code: hash of the code under which it was begun, or last continued.
        provenance: what it was made with.
        started: when.
        finished: when; ``None`` until training has ended.
        chosen: epochs of the main stage that tables show, by the names of :data:`kdtable.recipes.metrics.EPOCHS`.
        parameters: number of parameters of the student; ``None`` where it is not known yet.
        wall_seconds: of all epochs.
        waited_seconds: for how many of them training waited for images.
    """

    code: str
    provenance: Provenance
    started: str
    finished: str | None = None
    chosen: Mapping[str, Chosen] = field(default_factory=dict)
    parameters: int | None = None
    wall_seconds: float = 0.0
    waited_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run. One that is planned, and not stored yet, has the defaults.

    Attributes:
        id: its identity.
        protocol: what it shares with other seeds.
        paper: under whose name it was first asked for.
        row: likewise.
        student: canonical network name.
        teacher: of the pair; ``None`` where no term uses one.
        teacher_sha256: checksum of the teacher's file.
        data: key of the data set.
        test_images: on how many images its metrics are measured.
        seed: of everything random.
        precision: of the networks, with what the teacher's cache holds.
        epochs: of the main stage.
        status: planned, running, done, failed or n/a.
        reason: why it failed, or cannot be run.
        created: when it was planned.
        claimed_by: id of the worker that trains it.
        attempt: number of claims so far.
        kept: which weights a done run has on disk: all, last or none.
        result: the current one; ``None`` until it is claimed.
        key: its place in the store.
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
        """Whether it is finished."""
        return self.status == "done"

    @property
    def provenance(self) -> Provenance:
        """Where its numbers came from."""
        return NOWHERE if self.result is None else self.result.provenance

    def metrics_of(self, which: str) -> Mapping[str, float] | None:
        """Metrics of the epoch that counts by a rule of :data:`kdtable.recipes.metrics.EPOCHS`, if there is one."""
        found = None if self.result is None else self.result.chosen.get(which)
        return None if found is None else found[1]

    @property
    def last_epoch(self) -> int:
        """Epochs of the main stage that it has behind it."""
        found = None if self.result is None else self.result.chosen.get("last")
        return 0 if found is None else found[0]


@dataclass(frozen=True, slots=True)
class TeacherRecord:
    """What a teacher reached on a data set.

    Attributes:
        sha256: checksum of its file, or the id of the run that made it.
        data: key of the data set.
        network: canonical name.
        metrics: as measured.
        images: on how many.
        claimed: what its publication says of the main metric, as that is shown.
    """

    sha256: str
    data: str
    network: str
    metrics: Mapping[str, float]
    images: int
    claimed: float | None = None


def choose(history: Iterable[EpochRecord], main: Metric) -> dict[str, Chosen]:
    """The epochs of the main stage that tables show, of a history in order of training.

    These are the last one; the best, which is the first of the best main metric; and that of the lowest loss on the
    test images, where that was measured.
    """
    stage = [record for record in history if record.stage == "main"]
    found = {"last": stage[-1]} if stage else {}
    if measured := [record for record in stage if main.stored in record.metrics]:
        sign = 1 if main.higher_is_better == (main.scale > 0) else -1
        found["best"] = max(measured, key=lambda record: sign * record.metrics[main.stored])
    if judged := [(record.test_loss, record) for record in stage if record.test_loss is not None]:
        found["lowest-loss"] = min(judged, key=lambda pair: pair[0])[1]
    return {name: (record.epoch, record.metrics) for name, record in found.items()}


def measured(history: Iterable[EpochRecord]) -> list[EpochRecord]:
    """A history without what differs whenever the same is trained: how long it took, and alongside how many."""
    return [replace(record, seconds=0.0, waited=0.0, cohort_size=1) for record in history]


def packed(history: Sequence[EpochRecord]) -> bytes:
    """All epochs of a result as the store keeps them: zlib-compressed JSON, a list of mappings.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return zlib.compress(json.dumps([asdict(record) for record in history], allow_nan=False).encode(), _LEVEL)


def unpacked(content: bytes) -> tuple[EpochRecord, ...]:
    """What :func:`packed` was given.

    Raises:
        ValueError: it is something else.
    """
    try:
        return tuple(EpochRecord(**record) for record in json.loads(zlib.decompress(content)))
    except (zlib.error, TypeError) as error:
        raise ValueError(f"epochs that cannot be read ({error})") from error
