"""What one run of unlearning is given, read and checked before any work."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vdu.backbone import Backbone
from vdu.backbone.teacher import Teacher, load_teacher
from vdu.detector.contract import Detector, DetectorSource, load_detector, most_seen_class
from vdu.diffusion.noising import Clean
from vdu.errors import VduError
from vdu.images.image_set import ImageSet, image_sha256, load_image_set
from vdu.posterior import Posterior, load_posterior, refuse_other_model
from vdu.prompts import Prompts
from vdu.text.captions import forget_captions, retain_captions

__all__ = ["Given", "Inputs", "read_inputs"]


@dataclass(frozen=True)
class Given:
    """What a caller gave, as `vdu.unlearn` takes it; nothing of it is read yet."""

    forget: Any
    retain: Any = None
    teacher: Any = None
    posterior: str | Path | Posterior | None = None
    detector: DetectorSource | None = None
    target: str | int | None = None
    skip_unreadable: bool = False
    config: str | Path | None = None


@dataclass(frozen=True)
class Inputs:
    """D_f, D_r, a teacher, p(θ|D), and the guard's detector with the class it counts; None for what there is not.

    ``captions`` of D_f and D_r, and the ``prompts`` that a text-to-image model's samples are asked with.
    """

    forget: ImageSet
    retain: ImageSet | None
    teacher: Teacher | None
    posterior: Posterior | None
    judge: tuple[Detector, int] | None
    captions: tuple[tuple[str, ...], tuple[str, ...]]
    prompts: Prompts | None

    def undesired(self, backbone: Backbone) -> Clean:
        """D_f as ``backbone`` noises it."""
        return Clean(backbone.encode(self.forget.images), backbone.condition(self.captions[0]))

    def kept(self, backbone: Backbone) -> Clean | None:
        """D_r likewise."""
        if self.retain is None:
            return None
        return Clean(backbone.encode(self.retain.images), backbone.condition(self.captions[1]))

    def identity(self) -> dict[str, Any]:
        """Hashes of what changes the steps of a run, the posterior aside, and what was asked in words."""
        given = {"forget": self.forget, "retain": self.retain, "teacher": self.teacher}
        hashes: dict[str, Any] = {name: item.sha256 for name, item in given.items() if item is not None}
        if self.judge is not None:
            hashes["judge"] = [self.judge[0].record(), self.judge[1]]
        return hashes | ({"prompts": asdict(self.prompts), "captions": self.captions} if self.prompts else {})

    def record(self) -> dict[str, Any]:
        """What a result file says of it; the posterior is the method's to mention."""
        detector, target = self.judge or (None, 0)
        return {
            "forget": self.forget.record(),
            "retain": self.retain.record() if self.retain else None,
            "teacher": self.teacher.record() if self.teacher else None,
            "prompts": asdict(self.prompts) if self.prompts else None,
            "target": detector.class_names[target] if detector else None,
            "guard_judge": detector.name if detector else "label-free",
        }


def read_inputs(backbone: Backbone, given: Given) -> Inputs:
    """Read all that was ``given`` for ``backbone``. Raises `VduError` for the first thing that does not fit."""
    if given.target is not None and given.detector is None:
        raise VduError("target needs a detector that counts it: give detector too, or give target to evaluate()")
    skip = given.skip_unreadable
    undesired = load_image_set(given.forget, backbone.shape, skip_unreadable=skip)
    kept = None
    if given.retain is not None:
        kept = load_image_set(given.retain, backbone.shape, called="retain", skip_unreadable=skip)
        _refuse_overlap(undesired, kept)
    taught = load_teacher(given.teacher, backbone, given.config) if given.teacher is not None else None
    prior = _prior(given.posterior, backbone)
    judge = load_detector(given.detector) if given.detector is not None else None
    if judge:
        judge.check(backbone.shape)
    counted = None
    if judge:
        named = most_seen_class(judge, undesired) if given.target is None else given.target
        counted = judge, judge.class_index(named)
    said = forget_captions(backbone, given.forget, undesired)
    undesired, first = undesired.without_copies()
    captions = tuple(said[i] for i in first), retain_captions(backbone, given.retain, kept)
    return Inputs(undesired, kept, taught, prior, counted, captions, backbone.prompts)


def _refuse_overlap(forget: ImageSet, retain: ImageSet) -> None:
    undesired = {image_sha256(image) for image in forget.images}
    both = sum(image_sha256(image) in undesired for image in retain.images)
    if both:
        raise VduError(f"{both} of the images to keep are images to forget too: take them out of the --retain set")


def _prior(posterior: str | Path | Posterior | None, backbone: Backbone) -> Posterior | None:
    if posterior is None:
        return None
    if not isinstance(posterior, Posterior):
        return load_posterior(Path(posterior), backbone)
    refuse_other_model(posterior, backbone, "the posterior")
    return posterior
