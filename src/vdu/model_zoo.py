"""Small trained models that come with the project, each a folder under ``zoo/`` with its provenance.

pipeline/                ordinary diffusers folder, EMA weights
posterior.safetensors    p(θ|D) from the training checkpoints
classifier/              detector and feature extractor
reference.safetensors    classifier features (N, D) and labels (N,) of real held-out images
forget/<class>/          images to forget, where the corpus may be passed on

A text-to-image model has, in place of classifier/ and the reference, a detector for each domain of its concepts:
style-classifier/, object-classifier/
prompts.csv              what it is judged by (`vdu.concept_prompts`)
neutral.txt              what it must go on making, one prompt a line
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vdu.concept_prompts import DOMAINS
from vdu.errors import VduError, nearest
from vdu.images.image_set import SUFFIXES
from vdu.prompts import Prompts, read_prompts

__all__ = ["ZooModel", "find_zoo_model", "named_model", "zoo_models"]

ZOO = Path(__file__).parent / "zoo"


@dataclass(frozen=True)
class ZooModel:
    """Paths of one shipped model, or of a user's own that is laid out alike.

    ``images``: where the user has those of its corpus, by class, if not shipped. Of a user's own: ``detector``, what
    judges it in place of classifier/, and the ``classes`` that this knows.
    """

    folder: Path
    images: Path | None = None
    detector: str | None = None
    classes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def shipped(self) -> bool:
        return self.folder.parent == ZOO

    @property
    def has_own_images(self) -> bool:
        """Whether its images are the user's, who may have too few of them or broken ones."""
        return self.images is not None or not self.shipped

    @property
    def source(self) -> str:
        """What `vdu.unlearn` knows it by."""
        return self.name if self.shipped else str(self.pipeline)

    @property
    def judge(self) -> str | Path:
        """What `vdu.detector` loads for it."""
        return self.detector or self.classifier

    @property
    def pipeline(self) -> Path:
        return self.folder / "pipeline"

    @property
    def posterior(self) -> Path:
        return self.folder / "posterior.safetensors"

    @property
    def shipped_posterior(self) -> Path | None:
        """The posterior's file; None for a model that comes without."""
        return self.posterior if self.posterior.is_file() else None

    @property
    def classifier(self) -> Path:
        return self.folder / "classifier"

    @property
    def reference(self) -> Path:
        return self.folder / "reference.safetensors"

    @property
    def shipped_reference(self) -> Path | None:
        """The reference's file; None for a model that comes without."""
        return self.reference if self.reference.is_file() else None

    @property
    def provenance(self) -> dict[str, Any]:
        """What made the weights: recipe, data hash, seed, quality."""
        provenance: dict[str, Any] = json.loads((self.folder / "provenance.json").read_text())
        return provenance

    @property
    def concept_classifiers(self) -> dict[str, Path]:
        """The classifiers of a text-to-image model by domain; empty for another."""
        folders = {domain: self.folder / f"{domain}-classifier" for domain in DOMAINS}
        return folders if all(folder.is_dir() for folder in folders.values()) else {}

    @property
    def concept_prompts(self) -> Path:
        return self.folder / "prompts.csv"

    @property
    def neutral_prompts(self) -> Path:
        return self.folder / "neutral.txt"

    @property
    def prompts(self) -> Prompts | None:
        """What a text-to-image model is asked with unless something else is said; None for another."""
        if not self.neutral_prompts.is_file():
            return None
        return Prompts(read_prompts(self.neutral_prompts), guidance_scale=self.provenance["guidance_scale"])

    @property
    def _names_by_domain(self) -> list[list[str]]:
        if self.classes:
            return [list(self.classes)]
        folders = self.concept_classifiers.values() or [self.classifier]
        return [json.loads((folder / "config.json").read_text())["class_names"] for folder in folders]

    @property
    def class_names(self) -> list[str]:
        """The classes that the model's classifiers tell apart."""
        return [name for names in self._names_by_domain for name in names]

    def classifier_of(self, class_name: str) -> Path:
        """The classifier that knows a class. Raises `VduError` with the nearest names where none does."""
        folders = list(self.concept_classifiers.values()) or [self.classifier]
        for folder, names in zip(folders, self._names_by_domain, strict=True):
            if class_name in names:
                return folder
        raise VduError(
            f"no detector of {self.name} has a class {class_name!r}: {nearest(class_name, self.class_names)}"
        )

    @property
    def forget_images(self) -> str:
        """Where the forget images are, or how to make them."""
        folder = self.folder / "forget"
        said: str = f"in {folder}" if folder.is_dir() else self.provenance["forget_images"]
        return said

    def forget(self, class_name: str) -> Path:
        """The folder of forget images of one class."""
        return (self.images or self.folder / "forget") / class_name

    def forget_files(self, class_name: str) -> list[Path]:
        """The images in that folder, by name; none where it is not there."""
        folder = self.forget(class_name)
        files = folder.iterdir() if folder.is_dir() else ()
        return sorted(p for p in files if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))

    def retain(self, class_name: str) -> list[Path]:
        """The images of all other classes: a small retain set for the methods that need one.

        Of the same domain where there are several: a fruit may be in the very style that is to go.
        """
        known = next((names for names in self._names_by_domain if class_name in names), [])
        return [image for name in sorted(known) if name != class_name for image in self.forget_files(name)]


def zoo_models() -> list[ZooModel]:
    """All shipped models, by name."""
    return [ZooModel(path.parent) for path in sorted(ZOO.glob("*/provenance.json"))]


def find_zoo_model(name: str) -> ZooModel | None:
    """The shipped model of that name, or None."""
    return next((model for model in zoo_models() if model.name == name), None)


def named_model(name: str) -> ZooModel | None:
    """The shipped model of that name, or None for a folder, a file or a hub id.

    Raises `VduError` with the nearest names where it can be none of them, and where it can be both.
    """
    zoo = find_zoo_model(name)
    if zoo is not None and (Path(name) / "model_index.json").is_file():
        raise VduError(f"{name!r} is a shipped model and a pipeline folder here: write ./{name} for the folder")
    if zoo is None and "/" not in name and not Path(name).exists():
        known = [model.name for model in zoo_models()]
        raise VduError(f"no model {name!r}: {nearest(name, known)}; or give a folder, a checkpoint file or a hub id")
    return zoo
