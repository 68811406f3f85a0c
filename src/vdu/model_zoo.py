"""Small trained models that come with the project, each a folder under ``zoo/`` with its provenance.

pipeline/                ordinary diffusers folder, EMA weights
posterior.safetensors    p(θ|D) from the training checkpoints
classifier/              detector and feature extractor
reference.safetensors    classifier features (N, D) and labels (N,) of real held-out images
forget/<class>/*.png     images to forget, where the corpus may be passed on
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ZooModel", "find_zoo_model", "zoo_models"]

ZOO = Path(__file__).parent / "zoo"


@dataclass(frozen=True)
class ZooModel:
    """Paths of one shipped model."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def pipeline(self) -> Path:
        return self.folder / "pipeline"

    @property
    def posterior(self) -> Path:
        return self.folder / "posterior.safetensors"

    @property
    def classifier(self) -> Path:
        return self.folder / "classifier"

    @property
    def reference(self) -> Path:
        return self.folder / "reference.safetensors"

    @property
    def provenance(self) -> dict[str, Any]:
        """What made the weights: recipe, data hash, seed, quality."""
        provenance: dict[str, Any] = json.loads((self.folder / "provenance.json").read_text())
        return provenance

    @property
    def class_names(self) -> list[str]:
        """The classes that the model's classifier tells apart."""
        names: list[str] = json.loads((self.classifier / "config.json").read_text())["class_names"]
        return names

    @property
    def forget_images(self) -> str:
        """Where the forget images are, or how to make them."""
        folder = self.folder / "forget"
        said: str = f"in {folder}" if folder.is_dir() else self.provenance["forget_images"]
        return said

    def forget(self, class_name: str) -> Path:
        """The folder of shipped forget images of one class."""
        return self.folder / "forget" / class_name

    def retain(self, class_name: str) -> list[Path]:
        """The shipped images of all other classes: a small retain set for the methods that need one."""
        others = (p for p in sorted((self.folder / "forget").iterdir()) if p.is_dir() and p.name != class_name)
        return [image for folder in others for image in sorted(folder.glob("*.png"))]


def zoo_models() -> list[ZooModel]:
    """All shipped models, by name."""
    return [ZooModel(path.parent) for path in sorted(ZOO.glob("*/provenance.json"))]


def find_zoo_model(name: str) -> ZooModel | None:
    """The shipped model of that name, or None."""
    return next((model for model in zoo_models() if model.name == name), None)
