"""Detectors, from torchvision's modules."""
