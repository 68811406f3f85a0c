"""A detector from words: CLIP says which of some descriptions a picture is nearest to.

    w_k = normalised mean of the normalised text embeddings of class k's descriptions
    p(k | x) = softmax_k(s ⟨v(x), w_k⟩),   v(x): normalised picture embedding, s: CLIP's learned scale

Radford et al., arXiv 2103.00020. The file that asks for it is JSON:

    {"clip": FOLDER or hub id, "threshold": 0.6,
     "classes": {"church": "a photo of a church", "house": "a photo of a house", "other": ["a photo", "a landscape"]}}

A relative FOLDER is looked for beside the file first. Under the threshold (0.5 where none is given) a picture is none.

Pictures' embeddings are the features, so u-FID can be measured in them. CLIP sees what its descriptions leave room for:
without a class for "anything else" every picture is one of those named.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import normalize

from vdu.backbone import weights_sha256
from vdu.detector.contract import DEFAULT_THRESHOLD, Detector
from vdu.errors import VduError, in_one_line
from vdu.images.image_set import to_bytes

__all__ = ["load_zero_shot"]

BATCH = 64


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")
    clip: str
    classes: dict[str, str | list[str]] = Field(min_length=2)
    threshold: float = Field(DEFAULT_THRESHOLD, ge=0, lt=1)

    def descriptions(self) -> dict[str, list[str]]:
        return {name: [texts] if isinstance(texts, str) else texts for name, texts in self.classes.items()}


def _read(path: Path) -> _Asked:
    try:
        asked = _Asked.model_validate(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        said = in_one_line(error)
        wanted = '{"clip": FOLDER, "classes": {NAME: DESCRIPTION, …}}'
        raise VduError(f"{path} does not describe a detector, give {wanted} ({said})") from error
    for name, texts in asked.descriptions().items():
        if not texts or not all(text.strip() for text in texts):
            raise VduError(f"{path}: class {name!r} has no description, or an empty one")
    if asked.threshold <= 1 / len(asked.classes):
        least = f"1/{len(asked.classes)}, under which no largest probability is: give a threshold above it"
        raise VduError(f"{path}: a threshold of {asked.threshold} is not over {least}, or more classes")
    return asked


def _open(source: str) -> tuple[Any, Any, Any]:
    try:
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel
    except ImportError as error:
        raise VduError("a detector from words needs transformers: pip install transformers") from error
    try:
        model, loaded = CLIPModel.from_pretrained(source, use_safetensors=True, output_loading_info=True)
        parts = AutoTokenizer.from_pretrained(source), AutoImageProcessor.from_pretrained(source)
    except Exception as error:
        said = in_one_line(error)
        raise VduError(f"cannot load {source} as a CLIP model with tokenizer and image processor ({said})") from error
    if absent := sorted(loaded["missing_keys"]):
        raise VduError(f"{source} is not a whole CLIP model: it lacks {absent[0]!r} and {len(absent) - 1} more weights")
    return model.eval().requires_grad_(False), *parts


def _embedded(model: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    """One direction ``(D,)`` for all descriptions of a class."""
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    pooled = model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
    return normalize(normalize(model.text_projection(pooled), dim=-1).mean(0), dim=-1)


def load_zero_shot(path: Path) -> Detector:
    """The detector that a JSON file describes. Raises `VduError` where file or model cannot be read."""
    asked = _read(path)
    beside = path.parent / asked.clip
    model, tokenizer, processor = _open(str(beside) if beside.is_dir() else asked.clip)
    descriptions = asked.descriptions()
    classes = torch.stack([_embedded(model, tokenizer, texts) for texts in descriptions.values()])
    scale = model.logit_scale.exp()

    @torch.inference_mode()
    def judge(images: Tensor) -> tuple[Tensor, Tensor | None]:
        pictures = (processor(list(batch), return_tensors="pt").pixel_values for batch in to_bytes(images).split(BATCH))
        pooled = torch.cat([model.vision_model(pixel_values=p).pooler_output for p in pictures])
        features = normalize(model.visual_projection(pooled), dim=-1)
        return (scale * features @ classes.T).softmax(1), features

    digest = hashlib.sha256((weights_sha256(model) + json.dumps(descriptions)).encode()).hexdigest()
    return Detector(path.name, digest, tuple(descriptions), asked.threshold, judge)
