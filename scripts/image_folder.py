"""Make an image folder in ImageNet's layout from a set of small images, to test training on image folders.

    .venv/bin/python scripts/image_folder.py cifar10_excerpt.npz images --train 40 --test 20 --size 96

takes the first images of each class, enlarges them, and writes ``images/train/CLASS/*.jpg`` and ``val/CLASS``.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image


def write(images: np.ndarray, labels: np.ndarray, folder: Path, count: int, size: int) -> None:
    """Write the first ``count`` images (N, 3, H, W) of each class as JPEG files of ``size`` pixels."""
    for label in np.unique(labels):
        class_folder = folder / f"class{label:03d}"
        class_folder.mkdir(parents=True)
        for number, image in enumerate(images[labels == label][:count]):
            large = Image.fromarray(image.transpose(1, 2, 0)).resize((size, size), Image.Resampling.BICUBIC)
            large.save(class_folder / f"{number:05d}.jpg", quality=95)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="an npz file as --data npz: takes it")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=40, help="training images of each class")
    parser.add_argument("--test", type=int, default=20, help="test images of each class")
    parser.add_argument("--size", type=int, default=96, help="height and width of the files")
    options = parser.parse_args()
    source = np.load(options.source)
    write(source["train_images"], source["train_labels"], options.folder / "train", options.train, options.size)
    write(source["test_images"], source["test_labels"], options.folder / "val", options.test, options.size)


if __name__ == "__main__":
    main()
