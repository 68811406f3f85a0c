"""Make a zoo folder from a finished training run: pipeline, posterior, classifier, reference features, forget images.

Quality is measured on the way and written to ``provenance.json``: share of samples that pass the classifier's reject,
share of every class, classifier accuracy.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from vdu.backbone import load_backbone, weights_sha256
from vdu.corpora import Corpus
from vdu.corpora.forget_folder import FORGET_IMAGES, write_class_images
from vdu.detector.classifier import save_classifier
from vdu.detector.contract import load_detector
from vdu.diffusion.sampling import SAMPLER
from vdu.errors import VduError
from vdu.evaluation.comparison import Sampler
from vdu.evaluation.metrics import class_shares
from vdu.evaluation.reference import Reference
from vdu.output import replacing
from vdu.posterior import from_checkpoints
from vdu.provenance import package_versions
from vdu.records import read_record
from vdu.settings_file import checked
from vdu.training.classifier import refuse_other_judge, train_classifier
from vdu.training.denoiser import checkpoint_path, refuse_other_data
from vdu.training.half_precision import write_half_precision
from vdu.training.recipe import Recipe
from vdu.training.text_to_image.zoo_build import fill_text_to_image_zoo

__all__ = ["build_zoo_model"]


def _forget_images(corpus: Corpus, folder: Path) -> str:
    """Write those that may be shipped; returns what the provenance says of them."""
    if not corpus.redistributable:
        size = corpus.images.shape[-1]
        return (
            f"not shipped, {corpus.name} may not be passed on; make them from your own copy: vdu data prepare "
            f"{corpus.name} --data DATA --class NAME --count {FORGET_IMAGES} --size {size} --out FORGET"
        )
    for name in corpus.class_names:
        write_class_images(corpus, name, FORGET_IMAGES, folder / name)
    return f"the first {FORGET_IMAGES} training images of each class; the name is the image's number"


def _classifier(recipe: Recipe, train: Corpus, test: Corpus, run: Path) -> Path:
    """The judge's folder in the run folder; trained where it is not there yet."""
    folder = run / "classifier"
    if folder.is_dir():
        refuse_other_judge(folder, recipe.classifier, train.sha256)
    else:
        save_classifier(*train_classifier(train, test, recipe.classifier), folder)
    return folder


def _quality(folder: Path, sampler: Sampler) -> dict[str, Any]:
    backbone, detector = load_backbone(folder / "pipeline"), load_detector(folder / "classifier")
    images = sampler.draw(backbone)
    shares = class_shares(detector(images).predicted, len(detector.class_names))
    nearest_class = class_shares(detector.judge(images)[0].argmax(1), len(detector.class_names))
    return {
        "samples": sampler.count,
        "sampler": {"name": SAMPLER, "steps": sampler.steps, "seed": sampler.seed},
        "accepted_percent": 100 - shares[-1],
        "class_percent_of_all": dict(zip(detector.class_names, shares[:-1], strict=True)),
        "class_percent_without_reject": dict(zip(detector.class_names, nearest_class[:-1], strict=True)),
    }


def _write_reference(folder: Path, test: Corpus) -> None:
    detector = load_detector(folder / "classifier")
    features = detector(test.images.float() / 127.5 - 1).features
    assert features is not None
    Reference(features, test.labels).save(folder / "reference.safetensors", detector)


def _fill(given: dict[str, Any], run: Path, data: Path, folder: Path) -> dict[str, Any]:
    """Write everything but the provenance; returns what that says of it. ``given``: the run's."""
    recipe = checked("recipe of", str(run), Recipe, given["recipe"])
    train, test = recipe.load_corpus(data), recipe.load_corpus(data, "test")
    refuse_other_data(run, given, data, train.sha256)
    write_half_precision(run / "pipeline", folder / "pipeline")
    shutil.copy(run / "log.jsonl", folder / "training-log.jsonl")
    backbone = load_backbone(folder / "pipeline")
    # Those of the whole recipe only: a run that was gone on with has older ones, and may have passed some unwritten.
    wanted = [checkpoint_path(run, step) for step in sorted(recipe.training.checkpoint_steps())]
    posterior = from_checkpoints(backbone, [path for path in wanted if path.is_file()])
    posterior.save(folder / "posterior.safetensors", torch.bfloat16)
    shutil.copytree(_classifier(recipe, train, test, run), folder / "classifier")
    _write_reference(folder, test)
    return {
        "parameters": sum(p.numel() for p in backbone.network.parameters()),
        "posterior_checkpoints": posterior.count,
        "classifier": json.loads((folder / "classifier" / "config.json").read_text()),
        "forget_images": _forget_images(train, folder / "forget"),
        "quality": [_quality(folder, Sampler(steps=steps)) for steps in (12, 25)],
    }


def build_zoo_model(run: Path, data: Path, out: Path) -> dict[str, Any]:
    """Write the folder ``out`` (replaced as a whole) from the run folder of `train`; returns the provenance."""
    provenance = read_record(run / "provenance.json", "finish `vdu train` into this folder first")
    recipe = provenance.get("recipe")
    if not isinstance(recipe, dict):
        raise VduError(f"{run} has no provenance.json of a recipe: finish `vdu train` into it first")
    fill = fill_text_to_image_zoo if "text_encoder" in recipe else _fill
    with replacing(out) as beside:
        beside.mkdir()
        measured = fill(provenance, run, data, beside)
        provenance |= {
            "build_command": "vdu zoo build --run RUN --data DATA --out OUT",
            "model_sha256": weights_sha256(load_backbone(beside / "pipeline").network),
            **measured,
            "versions": package_versions(),
        }
        (beside / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
    return provenance
