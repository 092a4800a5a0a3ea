"""Small folders of photographs in the layouts of ImageNet and CUB-200-2011, and what they hold."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

#: Pixels of the views in tests; photographs are somewhat larger.
SIZE = 16


def photo(seed: int, width: int = 24, height: int = 20) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    photo(seed).save(buffer, "JPEG")
    return buffer.getvalue()


def png(width: int, height: int) -> bytes:
    """The head of a PNG file of that size, without pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">L", len(content)) + name + content + struct.pack(">L", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


#: Training images of the classes n01 and n02, then test images, as they are listed.
TRAIN = ("n01/a.JPEG", "n01/b.jpg", "n01/c.png", "n02/a.JPEG", "n02/d.jpeg")
VAL = ("n01/x.JPEG", "n02/x.JPEG", "n02/y.JPEG")


def image_folder(root: Path) -> Path:
    """In the layout of ImageNet: ``TRAIN`` and ``VAL``, photographs of seeds from 0."""
    for seed, name in enumerate([*(f"train/{name}" for name in TRAIN), *(f"val/{name}" for name in VAL)]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        photo(seed).save(root / name)
    return root


def cub_files() -> dict[str, bytes]:
    """Contents by name below ``CUB_200_2011``: three classes, five training and four test images."""
    names = [f"{1 + number % 3:03}.Bird_{number % 3}/Bird_{number}.jpg" for number in range(9)]
    numbered = list(enumerate(names, start=1))
    index = {
        "images.txt": [f"{number} {name}" for number, name in numbered],
        "image_class_labels.txt": [f"{number} {int(name[:3])}" for number, name in numbered],
        "train_test_split.txt": [f"{number} {int(number <= 5)}" for number, _ in numbered],
        "classes.txt": [f"{number} {number:03}.Bird_{number - 1}" for number in (1, 2, 3)],
    }
    texts = {name: "\n".join(lines).encode() + b"\n" for name, lines in index.items()}
    return texts | {f"images/{name}": jpeg(number) for number, name in numbered}


def cub_folder(root: Path) -> Path:
    for name, content in cub_files().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root
