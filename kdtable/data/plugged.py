"""Data sets of plug-ins: functions that return arrays, as an npz file holds them, or two map-style data sets."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

import numpy as np

from kdtable.data.contents import REQUIRED, Arrays, Contents
from kdtable.data.formats import npz
from kdtable.data.mapped import read_arrays
from kdtable.data.names import reserved
from kdtable.data.spec import BUILT_IN, DataSpec
from kdtable.errors import BadRequest
from kdtable.plugins import FORGET, BadPlugin, Declaration


def dataset(one: Declaration) -> Callable[[], DataSpec]:
    """Check a data set's declaration; its function is called when the set is asked for.

    Raises:
        BadRequest: it is no function, or its name is another's in other letters.
    """
    if not callable(one.target):
        raise BadRequest("is no function that returns arrays")
    if known := reserved(one.name):
        raise BadRequest(f"is how {known} can be written: choose another name")
    return lambda: _described(one.name, **one.settings)


def read(name: str) -> Contents:
    """The contents of a plug-in's data set; its function is called once in a process.

    Raises:
        BadPlugin: the function fails.
        BadRequest: it returns something else than arrays of the documented layout.
    """
    return _read(name)


@cache
def _read(name: str) -> Contents:
    function = BUILT_IN.declared(name)
    where = f"data set {name}"
    try:
        arrays = function()
    except Exception as error:
        bad = BadPlugin(f"{where} cannot be made ({type(error).__name__}: {error}): mend its plug-in, and call again")
        bad.file = BUILT_IN.file(name) or bad.file
        raise bad from error
    if isinstance(arrays, tuple) and len(arrays) == 2:
        arrays, _ = read_arrays(where, *arrays)
    if not isinstance(arrays, Mapping):
        expected = "expected arrays by name, or (train, test), two map-style data sets"
        raise BadRequest(f"{where}: its function returns {type(arrays).__name__}; {expected}")
    found: Arrays = {str(key): np.asarray(array) for key, array in arrays.items()}
    if missing := [each for each in REQUIRED if each not in found]:
        raise BadRequest(f"{where}: has no array {', '.join(missing)}; expected {', '.join(REQUIRED)}")
    contents = npz.checked(where, found, "")
    return replace(contents, sha256=_sha256(contents.arrays))


def _sha256(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name in REQUIRED:
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode() + array.tobytes())
    return digest.hexdigest()


def _described(name: str, *, flip: bool) -> DataSpec:
    content = read(name)
    train, test = content.arrays["train_images"], content.arrays["test_images"]
    return DataSpec(
        name=name,
        key=f"{name}-{content.sha256[:8]}",
        kind=name,
        path=None,
        sha256=content.sha256,
        num_classes=content.num_classes,
        mean=content.mean,
        std=content.std,
        image_size=train.shape[-1],
        train_count=len(train),
        test_count=len(test),
        flip=flip,
        notes=content.notes,
    )


FORGET.append(_read.cache_clear)
