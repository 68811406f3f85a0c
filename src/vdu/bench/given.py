"""What a suite's runs are given: forget images, images to keep, checkpoints; checked before the first run.

A shipped model brings its own images; a suite's ``forget`` holds the user's, a folder for each class.
"""

from __future__ import annotations

from pathlib import Path

from vdu.bench.suite import Run, Suite, zoo_model
from vdu.errors import VduError
from vdu.methods import find_method
from vdu.model_zoo import ZooModel

__all__ = ["given_images", "require_inputs"]


def require_inputs(suite: Suite) -> None:
    """Raises `VduError` where images or checkpoints lack, are too few or cannot be read, and says what to do."""
    zoo = zoo_model(suite)
    _require_checkpoints(suite, zoo)
    _require_retained(suite, zoo)
    most = max(arm.forget_images or 1 for arm in suite.methods.values())
    for target in suite.targets:
        count = len(zoo.forget_files(target))
        if not count:
            raise VduError(f"suite {suite.name}: no forget images of class {target}: {_where(zoo, target)}")
        if count < most:
            how = f"give --forget FORGET, which vdu data prepare makes with --count {most}"
            raise VduError(f"suite {suite.name} takes {most} forget images of class {target}, there are {count}: {how}")
    _require_readable(suite, zoo)


def _require_retained(suite: Suite, zoo: ZooModel) -> None:
    """Of the user's own images, methods that see images to keep need those of every other class."""
    if not zoo.has_own_images or not _takes_retained(suite):
        return
    for name in zoo.class_names:
        if not zoo.forget_files(name):
            raise VduError(f"suite {suite.name}: images to keep are those of all other classes: {_where(zoo, name)}")


def _takes_retained(suite: Suite) -> bool:
    return any("retain" in find_method(arm.method).settings.needs for arm in suite.methods.values())


def _require_readable(suite: Suite, zoo: ZooModel) -> None:
    """Of the user's own images; shipped ones are known to be whole."""
    if not zoo.has_own_images:
        return
    from vdu.backbone import load_backbone
    from vdu.images.image_set import load_image_set

    shape = load_backbone(zoo.pipeline).shape
    for name in zoo.class_names if _takes_retained(suite) else suite.targets:
        load_image_set(zoo.forget_files(name), shape)


def _require_checkpoints(suite: Suite, zoo: ZooModel) -> None:
    """Those that are asked for must be there and be the model's own, before a run is refused for good."""
    wanted = max(arm.checkpoints or 0 for arm in suite.methods.values())
    if suite.checkpoints is not None and not wanted:
        raise VduError(f"no method of suite {suite.name} makes its posterior of checkpoints: leave --checkpoints out")
    if wanted:
        from vdu.backbone import load_backbone
        from vdu.posterior import from_checkpoints

        from_checkpoints(load_backbone(zoo.pipeline), suite.last_checkpoints(wanted))


def _where(zoo: ZooModel, class_name: str) -> str:
    """How to come by forget images."""
    if zoo.has_own_images:
        return f"there is no image in {zoo.forget(class_name)}"
    every_class = zoo.forget_images.replace(" --class NAME", "")
    return f"they are {every_class}; then give --forget FORGET"


def given_images(suite: Suite, run: Run) -> tuple[list[Path], list[Path] | None]:
    """Forget images of one run, and the images to keep where its method needs some."""
    zoo = zoo_model(suite)
    retain = zoo.retain(run.target) if "retain" in find_method(run.arm.method).settings.needs else None
    return zoo.forget_files(run.target)[: run.arm.forget_images], retain
