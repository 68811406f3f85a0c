"""A pipeline folder with float16 weights: half the size to ship, loaded as float32."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

__all__ = ["write_half_precision"]

# Of diffusers and transformers parts; a tokenizer's files hold what must stay as it is.
DESCRIPTIONS = ("model_index.json", "config.json")


def write_half_precision(source: Path, out: Path) -> None:
    """Write the pipeline in ``source`` to ``out``, all weights as float16, without paths of this machine."""
    pipeline = DiffusionPipeline.from_pretrained(source, use_safetensors=True).to(torch.float16)
    pipeline.save_pretrained(out)
    for path in out.rglob("*.json"):
        if path.name not in DESCRIPTIONS:
            continue
        description = json.loads(path.read_text())
        description.pop("_name_or_path", None)
        if "dtype" in description:  # transformers would load the text encoder as what is written here
            description["dtype"] = "float32"
        path.write_text(json.dumps(description, indent=2, sort_keys=True) + "\n")
