"""The students in training, as a table of the live display: where each is, its loss and its test metric."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Column, Table
from rich.text import Text

from kdtable import tasks
from kdtable.escaping import printable
from kdtable.planning.run import Run
from kdtable.recipes.record import EpochRecord


@dataclass(slots=True)
class Student:
    """A run in training: its stage and finished epochs, and what the last one measured."""

    run: Run
    stage: str = "main"
    epoch: int = 0
    loss: float | None = None
    measured: float | None = None

    def go_to(self, epochs: int) -> None:
        """Set its stage and epoch to those after so many epochs of all stages."""
        for stage, count in self.run.stage_epochs.items():
            if stage == "main" or epochs < count:
                self.stage, self.epoch = stage, epochs
                return
            epochs -= count

    def take(self, record: EpochRecord) -> None:
        """Note what an epoch measured."""
        self.stage, self.epoch, self.loss = record.stage, record.epoch, record.train_loss
        main = tasks.get(self.run.task).metrics[0]
        value = main.watched(record.metrics)
        self.measured = self.measured if value is None else main.shown(value)

    @property
    def done(self) -> bool:
        """Whether it has finished its last epoch."""
        return self.stage == "main" and self.epoch >= self.run.stage_epochs["main"]

    def place(self) -> str:
        """``epoch 3/240``, with the stage's name before it unless that is the main one."""
        total = self.run.stage_epochs[self.stage]
        return f"{'' if self.stage == 'main' else f'{self.stage} '}epoch {self.epoch}/{total}"


class Students:
    """The runs of the cohorts in training, in their order."""

    def __init__(self) -> None:
        self._students: dict[str, Student] = {}

    def __len__(self) -> int:
        return len(self._students)

    def begin(self, runs: Sequence[Run], images: Mapping[str, int]) -> None:
        """Add a cohort's runs, which have trained on so many ``images`` by run id; drop finished ones."""
        self._students = {run_id: student for run_id, student in self._students.items() if not student.done}
        for run in runs:
            self._students[run.id] = Student(run)
            self.reached(run.id, images[run.id])

    def of(self, run_id: str) -> Student:
        """One of the runs."""
        return self._students[run_id]

    def reached(self, run_id: str, images: int) -> Student | None:
        """Set a run's place by the images that it has trained on; ``None`` if it is not in training here."""
        if student := self._students.get(run_id):
            student.go_to(images // student.run.data.train_count)
        return student

    def finished(self, run: Run, record: EpochRecord) -> Student:
        """Note a finished epoch."""
        student = self._students.setdefault(run.id, Student(run))
        student.take(record)
        return student

    def drop(self, run_id: str) -> None:
        """Drop a run that failed."""
        self._students.pop(run_id, None)

    def table(self, height: int) -> Table:
        """At most ``height`` students, those in training first."""
        shown = sorted(self._students.values(), key=lambda student: student.done)
        found = Table(*_columns(shown), box=None, padding=(0, 1), show_edge=False)
        count = len(shown) if len(shown) <= height else max(height - 1, 0)
        for student in shown[:count]:
            found.add_row(*map(_text, _cells(student)))
        if len(shown) > count:
            found.add_row(_text(f"... and {len(shown) - count} more"))
        return found


def _columns(shown: list[Student]) -> list[Column]:
    main = tasks.get(shown[0].run.task).metrics[0]
    names = [Column(name, overflow="ellipsis") for name in ("student", "row")]
    numbers = ("seed", "epoch", "loss", f"{main.words} {main.unit}".rstrip())
    return [*names, *(Column(name, no_wrap=True, justify="right") for name in numbers)]


def _cells(student: Student) -> list[str]:
    loss = "" if student.loss is None else f"{student.loss:.4f}"
    reached = "" if student.measured is None else f"{student.measured:.2f}"
    at = "done" if student.done else student.place().replace("epoch ", "")
    return [student.run.student, student.run.row, str(student.run.seed), at, loss, reached]


def _text(text: str) -> Text:
    return Text(printable(text))
