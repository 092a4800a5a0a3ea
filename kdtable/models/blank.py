"""Blank images, to read from a network what it gives."""

import torch
from torch import Tensor


def blank_images(count: int, image_size: int, like: Tensor | None = None) -> Tensor:
    """Black images, shape (count, 3, image_size, image_size), with the type and device of ``like``.

    Example: ``network(blank_images(1, 32)).logits.shape``
    """
    device, dtype = (None, None) if like is None else (like.device, like.dtype)
    return torch.zeros(count, 3, image_size, image_size, device=device, dtype=dtype)
