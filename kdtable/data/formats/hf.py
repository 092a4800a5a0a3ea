"""Read data sets of Hugging Face: saved by ``save_to_disk``, a folder that ``load_dataset`` reads, or of the hub.

The parts are "train", and "test" or else "validation". A set must have one column of images; its labels are the one
column of classes, or the one called "label". ``NAME#COLUMN`` chooses another. No code of a set is run.
"""

from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from kdtable.data import mapped
from kdtable.data.contents import Contents
from kdtable.data.formats import npz
from kdtable.errors import BadRequest, counted, several

#: Names of the test part; the first that exists is used.
TESTS: Final = ("test", "validation", "valid", "val")
#: Columns of labels and images, by name, where types leave a choice.
LABELS: Final = ("label", "labels", "fine_label")
IMAGES: Final = ("image", "img")


@lru_cache(maxsize=1)
def read(name: str, size: int | None = None) -> Contents:
    """Read and check a set; ``name`` is a folder or a name of the hub, with ``#COLUMN`` for the labels.

    Raises:
        BadRequest: the package is missing, the set cannot be loaded, or has no such parts and columns.
    """
    where, _, wanted = name.partition("#")
    parts = _loaded(where)
    test = next((part for part in TESTS if part in parts), None)
    if "train" not in parts or test is None:
        raise BadRequest(f"{where}: has the parts {', '.join(parts)}; expected train, and test or validation")
    columns = _columns(where, parts["train"].features, wanted)
    train, tests = (_Part(parts[part], *columns) for part in ("train", test))
    arrays, resized = mapped.read_arrays(where, train, tests, size)
    classes = getattr(parts["train"].features[columns[1]], "num_classes", None)
    content = npz.checked(where, arrays | ({} if classes is None else {"num_classes": _scalar(classes)}), "")
    notes = [f"{counted(resized, 'image')} of other sizes scaled and cropped to {size} x {size} pixels"] * bool(resized)
    notes += [f"its part '{test}' is the test set"] * (test != "test")
    sha256 = mapped.content_hash(content.arrays, content.num_classes)
    return replace(content, sha256=sha256, notes=(*content.notes, *notes), resized=resized > 0)


def _loaded(where: str) -> Any:
    if find_spec("datasets") is None:
        raise BadRequest("data sets of Hugging Face need a package that is not there: pip install 'kdtable[hf]'")
    import datasets

    datasets.disable_progress_bars()
    folder = Path(where)
    try:
        if (folder / "dataset_dict.json").is_file():
            return datasets.load_from_disk(where)
        if (folder / "state.json").is_file():
            raise BadRequest(f"{where}: is one part of a data set; expected a saved DatasetDict with train and test")
        return datasets.load_dataset(where)
    except BadRequest:
        raise
    except Exception as error:  # the package, its hub and their HTTP libraries raise dozens of kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise BadRequest(
            f"data set hf:{where} cannot be loaded ({reason}): name a folder or a set of the hub"
        ) from error


def _columns(where: str, features: Any, wanted: str) -> tuple[str, str]:
    """The columns of images and labels."""
    kinds = {column: type(feature).__name__ for column, feature in features.items()}
    images = [column for column, kind in kinds.items() if kind == "Image"]
    classes = [column for column, kind in kinds.items() if kind == "ClassLabel"]
    image = _one(images, IMAGES)
    if image is None:
        raise BadRequest(f"{where}: has {counted(len(images), 'column')} of images; expected one ({', '.join(kinds)})")
    if wanted and wanted not in kinds:
        raise BadRequest(f"{where}: has no column {wanted}; there are {several(list(kinds), 12)}")
    label = wanted or _one(classes, LABELS) or _one([column for column in LABELS if column in kinds], LABELS)
    if label is None:
        some = f" of {' and '.join(classes)}" if classes else f" of {several(list(kinds), 12)}"
        raise BadRequest(f"{where}: which column{some} has the labels? Write hf:{where}#COLUMN")
    return image, label


def _one(columns: list[str], usual: tuple[str, ...]) -> str | None:
    """The only column, else the first of the usual names among them."""
    return columns[0] if len(columns) == 1 else next((name for name in usual if name in columns), None)


def _scalar(number: int) -> Any:
    import numpy as np

    return np.array(number)


class _Part:
    """A part as a map-style data set."""

    def __init__(self, rows: Any, image: str, label: str) -> None:
        self._rows, self._image, self._label = rows.select_columns([image, label]), image, label

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        row = self._rows[index]
        return row[self._image], row[self._label]
