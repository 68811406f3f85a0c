"""A labelled set of images, and what is known of the corpora before their files are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from vdu.errors import VduError, nearest

__all__ = ["Corpus", "CorpusFacts", "FilesRead"]

RESIZED_AT_ONCE = 1000


@dataclass(frozen=True)
class CorpusFacts:
    """What holds for every copy of a corpus.

    ``class_names``: by label, or None where only the files know them. ``redistributable``: its images may be shipped
    with a model. ``mirror_keeps_class``: an image flipped left to right is still one of its class.
    """

    name: str
    shape: tuple[int, int, int]
    classes: int
    class_names: tuple[str, ...] | None
    redistributable: bool
    mirror_keeps_class: bool


class FilesRead(NamedTuple):
    """What a reader found: images ``(N, C, H, W)`` uint8, labels ``(N,)`` int64, class names, SHA-256 of the files."""

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class Corpus:
    """Images ``(N, C, H, W)`` uint8, labels ``(N,)`` int64, class names, and the SHA-256 of the files read.

    ``redistributable`` and ``mirror_keeps_class`` are as in `CorpusFacts`.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    sha256: str
    name: str
    redistributable: bool
    mirror_keeps_class: bool

    @classmethod
    def checked(cls, facts: CorpusFacts, read: FilesRead) -> Corpus:
        """Join both. Raises `VduError` where classes or labels are not those of the corpus."""
        names = read.class_names
        if len(names) != facts.classes:
            raise VduError(
                f"these files have {len(names)} classes and {facts.name} has {facts.classes}: give its files"
            )
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise VduError(f"these files name the class {twice[0]!r} twice: give every class its own name")
        if read.images.dim() != 4 or read.labels.dim() != 1:
            found = f"{tuple(read.images.shape)} as images and {tuple(read.labels.shape)} as labels"
            raise VduError(f"these files hold {found}: give those of {facts.name}, each under its own name")
        if len(read.images) != len(read.labels):
            raise VduError(f"{len(read.images)} images and {len(read.labels)} labels: give the files of one split")
        wrong = (read.labels < 0) | (read.labels >= len(names))
        if wrong.any():
            first = int(wrong.nonzero()[0])
            raise VduError(f"image {first} has label {int(read.labels[first])}: labels are 0 to {len(names) - 1}")
        return cls(*read, facts.name, facts.redistributable, facts.mirror_keeps_class)

    def of_class(self, class_name: str) -> Tensor:
        """Numbers ``(M,)`` of the images of a class, in order. Raises `VduError` with the nearest names."""
        if class_name not in self.class_names:
            raise VduError(f"{self.name} has no class {class_name!r}: {nearest(class_name, self.class_names)}")
        return (self.labels == self.class_names.index(class_name)).nonzero().flatten()

    def without(self, class_names: Collection[str]) -> Corpus:
        """All images but those of ``class_names``; labels keep their meaning. Raises `VduError` as `of_class` does."""
        if not class_names:
            return self
        kept = torch.ones(len(self.labels), dtype=torch.bool)
        for name in class_names:
            kept[self.of_class(name)] = False
        if not kept.any():
            raise VduError(f"no image of {self.name} is left: leave at least one class in")
        return replace(self, images=self.images[kept], labels=self.labels[kept])

    def resized(self, size: int) -> Corpus:
        """Images of ``size`` × ``size``: each pixel the mean of an area; ``size`` must divide the old one."""
        height, width = self.images.shape[2:]
        if (height, width) == (size, size):
            return self
        if size < 1 or height != width or height % size:
            raise VduError(
                f"{self.name} is {width}x{height} and cannot be made {size}x{size}: give a size that divides it"
            )
        parts = [avg_pool2d(part.float(), height // size) for part in self.images.split(RESIZED_AT_ONCE)]
        return replace(self, images=torch.cat([part.round().to(torch.uint8) for part in parts]))
