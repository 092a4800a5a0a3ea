"""Time the making of training batches: kdtable's stream against torchvision's transforms in a DataLoader.

Both crop, mirror and scale the same synthetic images of CIFAR's size on one thread; they alternate in one process.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from kdtable.data.stream import Stream

COUNT = 10_000
BATCH_SIZE = 64
TURNS = 6


class Pictures(Dataset):
    """Images (N, H, W, 3) uint8, decoded, cropped and mirrored one by one."""

    def __init__(self, images: np.ndarray, labels: list[int]) -> None:
        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def stream_batches(images: torch.Tensor, labels: torch.Tensor) -> Iterator[torch.Tensor]:
    stream = Stream(images, labels, batch_size=BATCH_SIZE)
    epoch = 0
    while True:
        epoch += 1
        for batch in stream.epoch(0, "bench", epoch):
            yield batch.images


def loader_batches(images: torch.Tensor, labels: torch.Tensor) -> Iterator[torch.Tensor]:
    pictures = Pictures(images.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist())
    loader = DataLoader(pictures, batch_size=BATCH_SIZE, shuffle=True, num_workers=0)
    while True:
        for pixels, _ in loader:
            yield pixels


def images_per_second(batches: Iterator[torch.Tensor], seconds: float) -> float:
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        count += len(next(batches))
    return count / spent


def layout(images: torch.Tensor) -> str:
    order = "channels-last" if images.is_contiguous(memory_format=torch.channels_last) else "channels-first"
    return f"{order} {str(images.dtype).removeprefix('torch.')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each of the two (default 3)")
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (COUNT, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, 100, (COUNT,))
    contenders = {"kdtable": stream_batches(images, labels), "torchvision": loader_batches(images, labels)}
    layouts = {name: layout(next(batches)) for name, batches in contenders.items()}
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(TURNS):
        for name, batches in contenders.items():
            rates[name].append(images_per_second(batches, seconds / TURNS))
    median = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{COUNT:,} images of 3 x 32 x 32, batch {BATCH_SIZE}, 1 thread; images/s over {TURNS} turns each")
    print(f"{'':12} {'median':>9} {'least':>9} {'most':>9}  batches")
    for name, values in rates.items():
        print(f"{name:12} {median[name]:9,.0f} {min(values):9,.0f} {max(values):9,.0f}  {layouts[name]}")
    ratio = median["kdtable"] / median["torchvision"]
    print(f"kdtable is {ratio:.1f} times as fast")
    result = {name: {"median": round(median[name]), "turns": [round(rate) for rate in rates[name]]} for name in rates}
    about = {
        "batch_size": BATCH_SIZE,
        "threads": 1,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    print(
        json.dumps(
            {
                "bench": "data",
                "images_per_second": result,
                "ratio": round(ratio, 2),
                "layout": layouts,
                **about,
            }
        )
    )


if __name__ == "__main__":
    main()
