"""Colour changes of a batch of images, each image by its own amount.

torchvision's functions for float images (``adjust_brightness`` and so on, ``rgb_to_grayscale``, ``gaussian_blur``),
which take one amount for a batch. Images are (B, 3, H, W) in [0, 1], amounts (B,).
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def grey(images: Tensor) -> Tensor:
    """The luminance, (B, 1, H, W)."""
    red, green, blue = images.unbind(dim=1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply by the factor."""
    return (images * _of_images(factor)).clamp(0, 1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Move away from the mean luminance by the factor, or towards it below 1."""
    mean = grey(images).mean(dim=(1, 2, 3), keepdim=True)
    return _blended(images, mean, factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Move away from the luminance by the factor, or towards it below 1."""
    return _blended(images, grey(images), factor)


def hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by the shift, in turns of the circle."""
    red, green, blue = images.unbind(dim=1)
    high, low = images.amax(dim=1), images.amin(dim=1)
    chroma = high - low
    flat = chroma == 0
    safe = torch.where(flat, torch.ones_like(chroma), chroma)
    sector = torch.where(
        high == red,
        (green - blue) / safe,
        torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    turned = torch.where(flat, torch.zeros_like(sector), sector / 6) + shift.to(images).view(-1, 1, 1)
    # the channel n = 5, 3, 1 of a hue h in turns: value - chroma * clamp(min(k, 4 - k), 0, 1), with k = (n + 6 h) mod 6
    place = (torch.tensor([5.0, 3.0, 1.0]).to(images).view(1, 3, 1, 1) + 6 * turned.unsqueeze(1)) % 6
    return high.unsqueeze(1) - chroma.unsqueeze(1) * torch.minimum(place, 4 - place).clamp(0, 1)


def blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Convolve with a Gaussian of deviation ``sigma`` pixels, cut off at ``radius``; edges are mirrored."""
    count, channels, height, width = images.shape
    steps = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    weights = torch.exp(-0.5 * (steps / sigma.to(images).view(-1, 1)).square())
    kernels = (weights / weights.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    x = F.pad(images, (radius,) * 4, mode="reflect").reshape(1, count * channels, height + 2 * radius, -1)
    x = F.conv2d(x, kernels.view(count * channels, 1, 1, -1), groups=count * channels)
    x = F.conv2d(x, kernels.view(count * channels, 1, -1, 1), groups=count * channels)
    return x.view(count, channels, height, width)


def _of_images(amount: Tensor) -> Tensor:
    return amount.view(-1, 1, 1, 1)


def _blended(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    share = _of_images(factor).to(images)
    return (share * images + (1 - share) * other).clamp(0, 1)
