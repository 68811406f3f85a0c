"""What every classifier here ends in: ``body → features h = ReLU(W b) → dropout → linear head``."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["FeatureClassifier"]


class FeatureClassifier(nn.Module):
    """``body`` maps images to ``(B, body_dimensions)``; the features are what u-FID is measured in."""

    def __init__(self, body: nn.Module, body_dimensions: int, feature_dimensions: int, classes: int) -> None:
        super().__init__()
        self.body = body
        self.features = nn.Sequential(nn.Linear(body_dimensions, feature_dimensions), nn.ReLU())
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(feature_dimensions, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(B, K)`` and features ``(B, D)`` of images ``(B, C, H, W)`` in [-1, 1]."""
        features = self.features(self.body(x))
        return self.head(self.dropout(features)), features
