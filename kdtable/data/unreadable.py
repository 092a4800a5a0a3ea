"""Find the unreadable images of a streamed set, once, before training.

Memory banks and caches have a row per training image, so an image cannot be left out during training. All images are
decoded in advance. The result is kept in the set's folder, if that is writable, until names, sizes or labels change.
"""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final

from kdtable.data.listing import Listing, read_bytes
from kdtable.data.pixels import decode_image
from kdtable.data.spec import OnProgress
from kdtable.errors import BadRequest, several
from kdtable.files.atomic import written_whole
from kdtable.hardware import available_cores

#: File in the set's folder; may be deleted.
KEPT: Final = ".kdtable-unreadable.json"

#: Images between two progress calls, and in the thread pool's queue at a time.
_STEP: Final = 1000


def find(root: Path, listing: Listing, on_progress: OnProgress | None = None) -> tuple[str, ...]:
    """Names of the unreadable images in order, training images first."""
    if (kept := _kept(root, listing)) is not None:
        return kept
    names: list[bytes] = [*listing.train.names.tolist(), *listing.test.names.tolist()]
    found: list[str] = []
    with ThreadPoolExecutor(available_cores()) as pool:  # Pillow releases the GIL while it decodes
        for start in range(0, len(names), _STEP):
            if on_progress is not None:
                on_progress(start, len(names))
            chunk = names[start : start + _STEP]
            bad = pool.map(lambda name: _is_unreadable(root, name), chunk)
            found += [os.fsdecode(name) for name, is_bad in zip(chunk, bad, strict=True) if is_bad]
    if on_progress is not None:
        on_progress(len(names), len(names))
    about = {"what": "Images that kdtable could not read. May be deleted.", "listing": listing.sha256, "names": found}
    with suppress(OSError), written_whole(root / KEPT) as file:  # on failure they are searched again next time
        file.write(json.dumps(about, indent=1).encode())
    return tuple(found)


def notes(skipped: Sequence[str]) -> tuple[str, ...]:
    """A sentence for the user about skipped images, if there are any."""
    if not skipped:
        return ()
    count = len(skipped)
    what = "1 image that cannot be read is" if count == 1 else f"{count} images that cannot be read are"
    return (f"{what} left out: {several(skipped)}",)


def _kept(root: Path, listing: Listing) -> tuple[str, ...] | None:
    try:
        about = json.loads((root / KEPT).read_bytes())
        if about["listing"] != listing.sha256:
            return None
        return tuple(str(name) for name in about["names"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _is_unreadable(root: Path, name: bytes) -> bool:
    try:
        decode_image(*read_bytes(root, name))
    except BadRequest:
        return True
    return False
