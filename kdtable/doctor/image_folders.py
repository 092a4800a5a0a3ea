"""A folder of JPEG files, decoded by worker processes."""

import time
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image

from kdtable import data
from kdtable.data.stream import Batch
from kdtable.data.streamed import StreamedSet
from kdtable.doctor.check import Failure
from kdtable.recipes.recipe import Recipe

SIZE: Final = 64
IMAGES: Final = 96
WORKERS: Final = 2
RECIPE: Final = Recipe(epochs=1, batch_size=16, lr=0.1, milestones=())


def image_folders(device: torch.device, folder: Path) -> str:
    """Compare the batches of decoding processes with those of one process; say how fast they come."""
    draw = np.random.default_rng(0)
    for part, count in (("train", IMAGES), ("val", 8)):
        for number in range(count):
            file = folder / part / f"n{number % 2:02}" / f"{number:03}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8))
            coarse.resize((120, 90), Image.Resampling.BICUBIC).save(file)
    spec = data.resolve(f"imagenet:{folder}", SIZE)
    alone, _ = _epoch(StreamedSet.of(spec, 0), torch.device("cpu"))
    together = StreamedSet.of(spec, WORKERS)
    _epoch(together, device)  # the processes start
    batches, seconds = _epoch(together, device)
    for one, other in zip(alone, batches, strict=True):
        if other.images.device.type != device.type:
            raise Failure(f"a batch is on {other.images.device} instead of {device}")
        if not torch.equal(one.images, other.images.cpu()) or not torch.equal(one.labels, other.labels.cpu()):
            raise Failure("decoding processes give other batches than one process")
    return f"{IMAGES} JPEG files by {WORKERS} processes are those of one process, {IMAGES / seconds:.0f} images/s"


def _epoch(images: StreamedSet, device: torch.device) -> tuple[list[Batch], float]:
    started = time.perf_counter()
    batches = list(images.stream(RECIPE, device).epoch(1, "main", 1))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return batches, time.perf_counter() - started
