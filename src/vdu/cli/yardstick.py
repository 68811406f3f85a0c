"""What a result will be measured with: a detector, the class that it counts, and real images for distances."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer

from vdu.errors import VduError

if TYPE_CHECKING:
    from vdu.backbone import Backbone
    from vdu.detector.contract import Detector
    from vdu.evaluation.reference import Reference

__all__ = ["Yardstick", "open_yardstick"]


class Yardstick(NamedTuple):
    """What the result will be measured with; None for what there is not."""

    detector: Detector | None
    target: str | None
    reference: Reference | None


def open_yardstick(
    model: str,
    backbone: Backbone,
    forget: Path,
    detector: str | None,
    target: str | None,
    reference: Path | None,
    skip_unreadable: bool,
) -> Yardstick:
    """Load the means of measuring; a shipped model brings its own classifier and features."""
    from vdu.detector.contract import load_detector, most_seen_class
    from vdu.evaluation.reference import load_reference
    from vdu.images.image_set import load_image_set
    from vdu.model_zoo import find_zoo_model
    from vdu.result import shipped_detector

    zoo = find_zoo_model(model)
    images = load_image_set(forget, backbone.shape, skip_unreadable=skip_unreadable)
    for notice in images.notices:
        typer.echo(f"notice: {notice}")
    judge = load_detector(detector) if detector else (shipped_detector(zoo, images, target) if zoo else None)
    if judge is None:
        for name, value in (("--target", target), ("--reference", reference)):
            if value is not None:
                raise VduError(f"{name} needs a detector: give --detector too")
        return Yardstick(None, None, None)
    judge.check(backbone.shape)
    if target is not None:
        found = int((judge(images.images).predicted == judge.class_index(target)).sum())
        if 2 * found < len(images):
            typer.echo(f"notice: the detector sees class {target} in {found} of the {len(images)} forget images only")
    name = most_seen_class(judge, images) if target is None else target
    path = reference or (zoo.shipped_reference if zoo and not detector else None)
    real = load_reference(path, judge, backbone.shape, skip_unreadable=skip_unreadable) if path else None
    return Yardstick(judge, name, real)
