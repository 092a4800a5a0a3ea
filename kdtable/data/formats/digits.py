"""The built-in digits: 1,797 handwritten digits of 8 x 8 pixels, values from 0 to 16.

They are the test part of "Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak (UCI Machine Learning
Repository, doi:10.24432/C50P49, licence CC BY 4.0), known as scikit-learn's ``load_digits``; only the format was
changed. ``digits.npz`` has ``images`` (N, 8, 8) and ``labels`` (N,), both uint8.
"""

from pathlib import Path

import numpy as np
import torch

from kdtable.data.contents import REQUIRED, Arrays


def read(size: int = 32) -> Arrays:
    """Read the digits, scaled to ``size`` x ``size`` in three equal channels; every fourth is a test image."""
    with np.load(Path(__file__).with_name("digits.npz")) as raw:
        small, labels = torch.from_numpy(raw["images"]).double().unsqueeze(1), raw["labels"].astype(np.int64)
    # Interpolation weights and values are dyadic, so every product is exact and rounds the same everywhere.
    large = torch.nn.functional.interpolate(small, size=size, mode="bilinear", align_corners=False)
    images = (large * 255 / 16).round().to(torch.uint8).expand(-1, 3, -1, -1).numpy()
    test = np.arange(len(labels)) % 4 == 3
    return dict(zip(REQUIRED, (images[~test], labels[~test], images[test], labels[test]), strict=True))


def few(digits: Arrays, each: int = 10) -> Arrays:
    """The set with the first ``each`` training images of every class alone; test images are the same."""
    labels = digits["train_labels"]
    kept = np.sort(np.concatenate([np.flatnonzero(labels == label)[:each] for label in np.unique(labels)]))
    return digits | {"train_images": digits["train_images"][kept], "train_labels": labels[kept]}
