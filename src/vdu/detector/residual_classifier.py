"""A nine-layer residual network for small colour images: the layout of Page's DAWNBench entry (2018), with Adam.

conv w → [conv 2w, halve] → residual 2w → [conv 4w, halve] → [conv 8w, halve] → residual 8w → mean → features → head
"""

from __future__ import annotations

from torch import Tensor, nn

from vdu.detector.feature_classifier import FeatureClassifier

__all__ = ["ResidualClassifier"]


def _convolution(into: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(into, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU())


class _Residual(nn.Module):
    """``x + f(x)``, f two convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_convolution(channels, channels), _convolution(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


class ResidualClassifier(FeatureClassifier):
    """First layer of ``width`` channels, last of 8 × ``width``; ``feature_dimensions`` features; a linear head."""

    def __init__(self, channels: int, classes: int, width: int, feature_dimensions: int) -> None:
        body = nn.Sequential(
            _convolution(channels, width),
            *(_convolution(width, 2 * width), nn.MaxPool2d(2), _Residual(2 * width)),
            *(_convolution(2 * width, 4 * width), nn.MaxPool2d(2)),
            *(_convolution(4 * width, 8 * width), nn.MaxPool2d(2), _Residual(8 * width)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        super().__init__(body, 8 * width, feature_dimensions, classes)
