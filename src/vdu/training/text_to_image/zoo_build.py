"""What a zoo folder of a text-to-image recipe holds: pipeline, judges, prompts, forget images.

Quality is measured on the way: how often the judges agree with what a prompt of a seen pair asked for.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

from PIL import Image

from vdu.backbone import load_backbone
from vdu.concept_prompts import of_kind, read_concept_prompts
from vdu.corpora.emoji import KINDS, LICENCES, STYLES, Emoji, read_emoji
from vdu.detector.contract import load_detector
from vdu.evaluation.concept_sampling import ConceptJudge, ConceptSampler
from vdu.settings_file import checked
from vdu.training.denoiser import refuse_other_data
from vdu.training.half_precision import write_half_precision
from vdu.training.text_to_image.evaluators import CLASSES
from vdu.training.text_to_image.prompt_set import judged_objects, write_prompts
from vdu.training.text_to_image.recipe import TextRecipe

__all__ = ["fill_text_to_image_zoo"]

FORGET_IMAGES = 50
SHARE_ALIKE = "openmoji"
GUIDANCE_SCALE = 3.0


def _spread(emoji: Emoji, mine: list[int]) -> list[int]:
    """`FORGET_IMAGES` of the pictures ``mine``: objects evenly through the corpus, each in the next of its styles."""
    of_object: defaultdict[str, list[int]] = defaultdict(list)
    for i in mine:
        of_object[emoji.objects[i]].append(i)
    objects = list(of_object.values())[:: max(1, len(of_object) // FORGET_IMAGES)][:FORGET_IMAGES]
    turns = (styles[(k + turn) % len(styles)] for turn in range(len(STYLES)) for k, styles in enumerate(objects))
    return list(dict.fromkeys(turns))[:FORGET_IMAGES]


def _write_forget_images(emoji: Emoji, folder: Path) -> None:
    """Some of each style and kind that are in no judged prompt, without the style that may not be shipped."""
    judged = {thing for things in judged_objects(emoji).values() for thing in things}
    free = [i for i, thing in enumerate(emoji.objects) if thing not in judged and emoji.styles[i] != SHARE_ALIKE]
    for labels, names in ((emoji.styles, STYLES), (emoji.kinds, tuple(KINDS))):
        for name in names:
            for i in _spread(emoji, [i for i in free if labels[i] == name]):
                (folder / name).mkdir(parents=True, exist_ok=True)
                file = emoji.files[i].replace("/", "-")
                Image.fromarray(emoji.images[i].permute(1, 2, 0).numpy()).save(folder / name / file, optimize=True)


def _quality(folder: Path, steps: int) -> dict[str, Any]:
    """Agreement of each judge with the plain prompts, two samples each, in percent."""
    judge = ConceptJudge({domain: load_detector(folder / f"{domain}-classifier") for domain in CLASSES})
    known = {domain: detector.class_names for domain, detector in judge.detectors.items()}
    prompts = of_kind(read_concept_prompts(folder / "prompts.csv", known), "plain")
    sampler = ConceptSampler(per_prompt=2, steps=steps, guidance_scale=GUIDANCE_SCALE, seed=1)
    drawn = judge.draw(load_backbone(folder / "pipeline"), prompts, sampler)
    quality: dict[str, Any] = {"samples": len(drawn.pictures), "steps": steps}
    quality |= {"guidance_scale": GUIDANCE_SCALE, "seed": sampler.seed}
    for domain, seen in drawn.seen.items():
        quality[f"{domain}_agreement_percent"] = 100 * float((seen == judge.asked(drawn, domain)).double().mean())
        quality[f"{domain}_none_percent"] = 100 * float((seen < 0).double().mean())
    return quality


def fill_text_to_image_zoo(given: dict[str, Any], run: Path, data: Path, folder: Path) -> dict[str, Any]:
    """Write everything but the provenance; returns what that says of it. ``given``: the run's provenance."""
    recipe = checked("recipe of", str(run), TextRecipe, given["recipe"])
    emoji = read_emoji(data, recipe.size)
    refuse_other_data(run, given, data, emoji.sha256)
    write_half_precision(run / "pipeline", folder / "pipeline")
    for name in ("autoencoder-log.jsonl", "log.jsonl"):
        shutil.copy(run / name, folder / f"training-{name}")
    for domain in CLASSES:
        shutil.copytree(run / f"{domain}-classifier", folder / f"{domain}-classifier")
    write_prompts(emoji, folder)
    _write_forget_images(emoji, folder / "forget")
    shipped = f"at most {FORGET_IMAGES} of each style and kind, kinds in all styles but {SHARE_ALIKE} (share-alike)"
    return {
        "judges": {d: json.loads((folder / f"{d}-classifier" / "config.json").read_text()) for d in CLASSES},
        "forget_images": shipped,
        "guidance_scale": GUIDANCE_SCALE,
        "licences": LICENCES,
        "quality": [_quality(folder, steps) for steps in (12, 25)],
    }
