"""Make a zoo folder from a finished run of a text-to-image recipe: pipeline, judges, prompts, forget images.

Quality is measured on the way: how often the judges agree with what a prompt of a seen pair asked for.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from vdu.backbone import load_backbone, weights_sha256
from vdu.checkpoint import replacing
from vdu.corpora.emoji import KINDS, LICENCES, STYLES, Emoji, read_emoji
from vdu.detector import load_detector
from vdu.evaluation import Sampler
from vdu.prompts import Prompts
from vdu.provenance import package_versions
from vdu.text_to_image.evaluators import DOMAINS, train_evaluator
from vdu.text_to_image.prompt_set import judged_objects, write_prompts
from vdu.text_to_image.recipe import TextRecipe

__all__ = ["build_text_to_image_zoo"]

FORGET_IMAGES = 50
SHARE_ALIKE = "openmoji"
GUIDANCE_SCALE = 3.0


def _write_half_precision(source: Path, out: Path) -> None:
    """All weights as float16, half the size to ship; loaded as float32, as diffusers does of itself."""
    pipeline = StableDiffusionPipeline.from_pretrained(source, use_safetensors=True).to(torch.float16)
    pipeline.save_pretrained(out)
    for path in out.rglob("*.json"):
        if path.name not in ("model_index.json", "config.json"):
            continue
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)  # the builder's own folder
        if "dtype" in config:  # transformers would load the text encoder as what is written here
            config["dtype"] = "float32"
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _write_forget_images(emoji: Emoji, folder: Path) -> None:
    """The first of each style and kind that are in no judged prompt, without the style that may not be shipped."""
    judged = {thing for things in judged_objects(emoji).values() for thing in things}
    free = [i for i, thing in enumerate(emoji.objects) if thing not in judged and emoji.styles[i] != SHARE_ALIKE]
    for labels, names in ((emoji.styles, STYLES), (emoji.kinds, tuple(KINDS))):
        for name in names:
            mine = [i for i in free if labels[i] == name]
            # Evenly through the corpus, which is in the order of the emoji standard.
            for i in mine[:: max(1, len(mine) // FORGET_IMAGES)][:FORGET_IMAGES]:
                (folder / name).mkdir(parents=True, exist_ok=True)
                file = emoji.files[i].replace("/", "-")
                Image.fromarray(emoji.images[i].permute(1, 2, 0).numpy()).save(folder / name / file, optimize=True)


def _quality(folder: Path, steps: int) -> dict[str, Any]:
    """Agreement of each judge with the plain prompts, two samples each, in percent."""
    with (folder / "prompts.csv").open(newline="", encoding="utf-8") as f:
        rows = [row for row in csv.DictReader(f) if row["kind"] == "plain"] * 2
    asked = Prompts(tuple(row["prompt"] for row in rows), (), GUIDANCE_SCALE)
    images = Sampler(steps=steps, seed=1, count=len(rows)).draw(load_backbone(folder / "pipeline", asked))
    quality: dict[str, Any] = {"samples": len(rows), "steps": steps, "guidance_scale": GUIDANCE_SCALE, "seed": 1}
    for domain, names in DOMAINS.items():
        predicted = load_detector(folder / f"{domain}-classifier")(images).predicted
        wanted = torch.tensor([names.index(row[domain]) for row in rows])
        quality[f"{domain}_agreement_percent"] = 100 * float((predicted == wanted).double().mean())
        quality[f"{domain}_none_percent"] = 100 * float((predicted < 0).double().mean())
    return quality


def build_text_to_image_zoo(run: Path, data: Path, out: Path, provenance: dict[str, Any]) -> dict[str, Any]:
    """Write the folder ``out`` (replaced as a whole); returns the provenance."""
    recipe = TextRecipe.model_validate(provenance["recipe"])
    emoji = read_emoji(data, recipe.size)
    with replacing(out) as beside:
        beside.mkdir(parents=True)
        _write_half_precision(run / "pipeline", beside / "pipeline")
        for name in ("autoencoder-log.jsonl", "log.jsonl"):
            shutil.copy(run / name, beside / f"training-{name}")
        for domain in DOMAINS:
            shutil.copytree(train_evaluator(recipe, emoji, domain, run), beside / f"{domain}-classifier")
        write_prompts(emoji, beside)
        _write_forget_images(emoji, beside / "forget")
        cards = {d: json.loads((beside / f"{d}-classifier" / "config.json").read_text()) for d in DOMAINS}
        provenance |= {
            "build_command": "vdu zoo build --run RUN --data DATA --out OUT",
            "model_sha256": weights_sha256(load_backbone(beside / "pipeline").network),
            "judges": cards,
            "forget_images": f"at most {FORGET_IMAGES} of each style and kind, none of {SHARE_ALIKE} (share-alike)",
            "guidance_scale": GUIDANCE_SCALE,
            "licences": LICENCES,
            "quality": [_quality(beside, steps) for steps in (12, 25)],
            "versions": package_versions(),
        }
        (beside / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
    return provenance
