"""Chooses the architecture by the pipeline's class, after reading it from a folder, a checkpoint file or the hub."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import diffusers
import torch

from vdu.backbone.acceptance import check_schedule, check_weights
from vdu.backbone.contract import Backbone
from vdu.backbone.ddpm import DDPMBackbone
from vdu.backbone.single_file import is_single_file, read_single_file
from vdu.backbone.stable_diffusion import StableDiffusionBackbone
from vdu.backbone.stable_diffusion_xl import StableDiffusionXLBackbone
from vdu.errors import VduError, in_one_line, nearest
from vdu.model_zoo import named_model
from vdu.prompts import Prompts

__all__ = ["load_backbone", "source_of"]

SUPPORTED: dict[str, type[Backbone]] = {
    "DDPMPipeline": DDPMBackbone,
    "DDIMPipeline": DDPMBackbone,
    "StableDiffusionPipeline": StableDiffusionBackbone,
    "StableDiffusionXLPipeline": StableDiffusionXLBackbone,
}


def _refuse_unsupported(name: str) -> None:
    if name not in SUPPORTED:
        raise VduError(f"pipeline class {name!r} is not supported: {nearest(name, SUPPORTED)}")


def _index(path: str) -> dict[str, Any]:
    """The class and the parts of the pipeline in a folder or on the hub."""
    folder = Path(path)
    if not folder.exists():
        if path.startswith((".", "/", "~")) or path.count("/") != 1:
            raise VduError(f"no folder {path}: give a diffusers pipeline folder, or a hub id, owner/name")
        return dict(diffusers.DiffusionPipeline.load_config(path))
    index = folder / "model_index.json"
    if not index.is_file():
        raise VduError(f"{path} has no model_index.json: give a folder that diffusers' save_pretrained wrote")
    try:
        return dict(json.loads(index.read_text()).items())
    except (ValueError, AttributeError) as error:
        raise VduError(f"{index} is not valid JSON: write the pipeline again with save_pretrained") from error


def _variant(folder: Path) -> str | None:
    """``fp16`` for a folder that has its U-Net in that variant only."""
    names = [file.name for file in (folder / "unet").glob("*.safetensors*")]
    plain = any(".fp16." not in name for name in names)
    return "fp16" if names and not plain else None


def _refuse_pickle(folder: Path, parts: Iterable[str]) -> None:
    """Raises `VduError` for one of a pipeline's ``parts`` whose weights are in ``folder`` as pickle only."""
    for part in (folder / name for name in parts):
        if any(part.glob("*.bin")) and not any(part.glob("*.safetensors")):
            raise VduError(f"{part} has its weights as .bin, which may hold code and is not read: save as safetensors")


def _read_pipeline(name: str, config: Path | None) -> Any:
    zoo = named_model(name)
    path = str(zoo.pipeline) if zoo else name
    if is_single_file(path):
        return read_single_file(Path(path), config)
    if config is not None:
        raise VduError(f"--config goes with a single-file checkpoint only, and {path} is none: leave it out")
    try:
        index = _index(path)
        name = str(index.get("_class_name", ""))
        _refuse_unsupported(name)
        _refuse_pickle(Path(path), index)
        # Without a precision transformers takes each part's own and diffusers float32, which do not work together.
        how = {"use_safetensors": True, "variant": _variant(Path(path)), "torch_dtype": torch.float32}
        return getattr(diffusers, name).from_pretrained(path, **how)
    except VduError:
        raise
    except ImportError as error:
        raise VduError(f"{path} needs the transformers package: pip install transformers") from error
    except Exception as error:
        said = in_one_line(error)
        if not Path(path).exists():
            raise VduError(
                f"there is no {path} here, and no model of that name on the hub or no way there ({said})"
            ) from error
        wanted = "it must be whole, with its weights as safetensors"
        raise VduError(f"cannot load {path} as a diffusers pipeline ({said}): {wanted}") from error


def source_of(model: Any) -> str:
    """What a record calls ``model``: as it was given; of a pipeline object, the folder or hub id that it was read from.

    Its class where it was put together in Python.
    """
    if isinstance(model, (str, Path)):
        return str(model)
    return str(model.config.get("_name_or_path") or type(model).__name__)


def load_backbone(model: Any, prompts: Prompts | None = None, config: str | Path | None = None) -> Backbone:
    """A `Backbone` from a diffusers pipeline object, a zoo name, a pipeline folder, a checkpoint file, or a hub id.

    ``prompts``: what a text-to-image model's samples are asked with; default: the empty prompt. ``config``: for a
    checkpoint file, a diffusers folder of its base model; default: that on the hub. Raises `VduError` for
    a pipeline class, network, prediction type or noise schedule that is not supported, and for prompts that the model
    cannot take.
    """
    folder = None if config is None else Path(config)
    pipeline = _read_pipeline(str(model), folder) if isinstance(model, (str, Path)) else model
    name = type(pipeline).__name__
    _refuse_unsupported(name)
    SUPPORTED[name].check(pipeline)
    check_schedule(pipeline)
    check_weights(pipeline)
    backbone = SUPPORTED[name](pipeline)
    if prompts is not None:
        backbone.sample_from(prompts)
    return backbone
