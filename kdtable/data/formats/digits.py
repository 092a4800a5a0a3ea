"""The built-in digits: 1,797 handwritten ones of 8 x 8 pixels, values from 0 to 16.

They are the test part of "Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak (UCI Machine Learning
Repository, doi:10.24432/C50P49, licence CC BY 4.0), which scikit-learn has as ``load_digits``; unchanged but for their
format. ``digits.npz`` holds ``images`` (N, 8, 8) and ``labels`` (N,), both uint8.
"""

from pathlib import Path

import numpy as np
import torch

from kdtable.data.contents import REQUIRED, Arrays


def read() -> Arrays:
    """The digits at 32 x 32, in three equal channels; every fourth is a test image."""
    with np.load(Path(__file__).with_name("digits.npz")) as raw:
        small, labels = torch.from_numpy(raw["images"]).double().unsqueeze(1), raw["labels"].astype(np.int64)
    # Weights and values are dyadic, so every product here is exact and rounds the same everywhere.
    large = torch.nn.functional.interpolate(small, size=32, mode="bilinear", align_corners=False)
    images = (large * 255 / 16).round().to(torch.uint8).expand(-1, 3, -1, -1).numpy()
    test = np.arange(len(labels)) % 4 == 3
    return dict(zip(REQUIRED, (images[~test], labels[~test], images[test], labels[test]), strict=True))
