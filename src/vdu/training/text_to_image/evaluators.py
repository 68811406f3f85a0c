"""The judges of a miniature Stable Diffusion: one classifier for the style, one for the kind of object.

Both are tested on objects that they never saw in any style, so that neither can know a style by heart from its objects.
That of the style learns each picture twice, as it is and as the autoencoder gives it back: what it is to judge comes
out of its decoder, and a style must not be told by an edge that no decoder draws. Kinds of objects are told either way.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from vdu.corpora import Corpus
from vdu.corpora.emoji import KINDS, STYLES, Emoji
from vdu.detector.classifier import save_classifier
from vdu.training.classifier import refuse_other_judge, train_classifier
from vdu.training.text_to_image.recipe import Domain, TextRecipe

__all__ = ["CLASSES", "domain_corpus", "seen", "train_evaluator"]

CLASSES: dict[Domain, tuple[str, ...]] = {"style": STYLES, "object": tuple(KINDS)}
UNSEEN_SHARE = 0.15


def seen(thing: str) -> bool:
    """Whether the judges are trained on this object: by the hash of its name, the same in all styles."""
    return int.from_bytes(hashlib.sha256(thing.encode()).digest()[:4], "big") / 2**32 >= UNSEEN_SHARE


def domain_corpus(emoji: Emoji, domain: Domain, train: bool, decoded: Tensor | None = None) -> Corpus:
    """The pictures that a judge of ``domain`` (style or object) is trained on, or those it is tested on.

    ``decoded``: all pictures of ``emoji`` as the autoencoder gives them back, to be added.
    """
    names = CLASSES[domain]
    labels = emoji.styles if domain == "style" else emoji.kinds
    chosen = [i for i, thing in enumerate(emoji.objects) if labels[i] and seen(thing) == train]
    views = [emoji.images] if decoded is None else [emoji.images, decoded]
    return Corpus(
        images=torch.cat([view[chosen] for view in views]),
        labels=torch.tensor([names.index(labels[i]) for i in chosen]).repeat(len(views)),
        class_names=names,
        sha256=emoji.sha256,
        name="emoji",
        redistributable=False,
        mirror_keeps_class=True,
    )


def train_evaluator(recipe: TextRecipe, emoji: Emoji, decoded: Tensor, domain: Domain, out: Path) -> Path:
    """The folder ``out/{domain}-classifier``: a classifier with its calibrated reject; a finished one is kept.

    ``decoded``: as of `domain_corpus`, for the style. Accuracy and reject are those on real pictures. Raises `VduError`
    where the finished one is of another recipe or other pictures.
    """
    folder = out / f"{domain}-classifier"
    if folder.is_dir():
        refuse_other_judge(folder, recipe.judges[domain], emoji.sha256)
    else:
        view = decoded if domain == "style" else None
        parts = domain_corpus(emoji, domain, True, view), domain_corpus(emoji, domain, False)
        save_classifier(*train_classifier(*parts, recipe.judges[domain]), folder)
    return folder
