"""Single-file checkpoints of Stable Diffusion 1.x, 2.x and XL, as other programs than diffusers keep them.

    model.diffusion_model.*  U-Net    first_stage_model.*  VAE    cond_stage_model.* or conditioner.*  text encoders

The layout of the latent-diffusion code (Rombach et al., arXiv 2112.10752). What a file is, is read from the names in
its safetensors header before any weight; diffusers' ``from_single_file`` converts. The file has neither configs nor a
tokenizer: those are from a diffusers folder of the same base model, given or fetched from the hub. Pickles are never
opened, and no weights are taken from that folder: it could hold pickles.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError, safe_open

from vdu.errors import VduError, in_one_line

__all__ = ["is_single_file", "read_single_file"]

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
UNET, FIRST_CONVOLUTION = "model.diffusion_model.", "model.diffusion_model.input_blocks.0.0.weight"
VAE = ("first_stage_model.", "vae.")
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
NOT_IN_FILE = ("safety_checker", "feature_extractor", "image_encoder")  # without them the pipelines work as with them
OTHERS = (
    *((mark, "a LoRA") for mark in ("lora_", ".lora", "lycoris_", ".hada_", ".lokr_")),
    *((mark, "a ControlNet") for mark in ("control_model.", "controlnet_cond_embedding.")),
    *((mark, "a motion module") for mark in ("motion_modules.",)),
    *((mark, "a Stable Diffusion 3 model") for mark in ("joint_blocks.",)),
    *((mark, "a diffusion transformer such as Flux") for mark in ("double_blocks.", "single_stream_modulation.")),
    *((mark, "an EDM model such as Playground 2.5") for mark in ("edm_mean", "edm_vpred.")),
    *((mark, "a textual inversion") for mark in ("emb_params", "string_to_param", "clip_g")),
)


@dataclass(frozen=True)
class _Family:
    """How a kind of checkpoint is told, the pipeline that it makes, and where its configs are on the hub."""

    name: str
    text: tuple[str, ...]
    pipeline: str
    configs: str | None


FAMILIES = (
    _Family(
        "Stable Diffusion 1.x",
        ("cond_stage_model.transformer.text_model.",),
        "StableDiffusionPipeline",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ),
    _Family("Stable Diffusion 2.x", ("cond_stage_model.model.",), "StableDiffusionPipeline", None),
    _Family(
        "Stable Diffusion XL",
        ("conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."),
        "StableDiffusionXLPipeline",
        "stabilityai/stable-diffusion-xl-base-1.0",
    ),
)


def is_single_file(path: str) -> bool:
    """Whether ``path`` means one file, there or not, rather than a folder or a hub id."""
    return Path(path).is_file() or (Path(path).suffix.lower() in (".safetensors", *PICKLES) and not Path(path).is_dir())


def read_single_file(path: Path, config: Path | None = None) -> Any:
    """The pipeline in a checkpoint file, in the precision of its U-Net, without a safety checker.

    ``config``: a diffusers folder of the same base model; default: from the hub's cache or the hub. Raises `VduError`
    for what is not a whole Stable Diffusion checkpoint, and where there are no configs for it.
    """
    if path.suffix.lower() in PICKLES:
        raise VduError(f"{path} is a pickle, which can run code when it is read: convert it to safetensors")
    if not path.is_file():
        raise VduError(f"no file {path}: give a checkpoint, a diffusers pipeline folder, a zoo name, or a hub id")
    if path.suffix.lower() != ".safetensors":
        raise VduError(f"{path} is not a .safetensors file: give one, or a diffusers pipeline folder")
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            family = _family(path, names, lambda name: file.get_slice(name).get_shape())
            dtype = _dtype(path, {file.get_slice(n).get_dtype() for n in names if n.startswith(UNET)})
    except SafetensorError as error:
        raise VduError(f"{path} is not a valid safetensors file: fetch it again") from error
    pipeline = _converted(path, family, _checked(config, family) if config else _fetched(path, family), dtype)
    return _as_v_prediction(pipeline, names) if "v_pred" in names else pipeline


def _has(names: Iterable[str], start: str | tuple[str, ...]) -> bool:
    return any(name.startswith(start) for name in names)


def _family(path: Path, names: list[str], shape: Callable[[str], list[int]]) -> _Family:
    """Told from tensor names. Raises `VduError` with what the file is instead."""
    for mark, kind in OTHERS:
        if any(mark in name for name in names):
            raise VduError(f"{path} is {kind}: give a whole checkpoint of Stable Diffusion 1.x, 2.x or XL")
    if FIRST_CONVOLUTION not in names:
        raise VduError(f"{path} is {_part(names)}: give a whole checkpoint of Stable Diffusion 1.x, 2.x or XL")
    channels = shape(FIRST_CONVOLUTION)[1]
    if channels != 4:
        raise VduError(f"{path} takes {channels} channels, not 4: inpainting and editing models are not supported")
    if _has(names, "conditioner.embedders.0.model."):
        raise VduError(f"{path} is an SDXL refiner, which is not supported: give the base model")
    family = next((f for f in FAMILIES if all(_has(names, text) for text in f.text)), None)
    if family is None or not _has(names, VAE):
        lacks = "text encoder of a known kind" if family is None else "VAE"
        raise VduError(f"{path} has a U-Net but no {lacks}: give a whole checkpoint of Stable Diffusion 1.x, 2.x or XL")
    return family


def _part(names: list[str]) -> str:
    """What a file without a U-Net is."""
    if _has(names, ("down_blocks.", "conv_in.", "encoder.down_blocks.")):
        return "one part of a diffusers folder, not the whole"
    if _has(names, ("encoder.", "decoder.", *VAE)):
        return "a VAE only"
    text = ("text_model.", "cond_stage_model.", "conditioner.", "transformer.resblocks.")
    return "a text encoder only" if _has(names, text) else "of an unknown kind"


def _dtype(path: Path, found: set[str]) -> torch.dtype:
    if not found <= DTYPES.keys():
        kinds = ", ".join(sorted(found - DTYPES.keys()))
        raise VduError(f"{path} holds {kinds} weights: give the checkpoint in float16, bfloat16 or float32")
    return DTYPES[found.pop()] if len(found) == 1 else torch.float32


def _checked(config: Path, family: _Family) -> Path:
    try:
        name = json.loads((config / "model_index.json").read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VduError(f"--config {config} is no diffusers pipeline folder: it needs a model_index.json") from error
    if name != family.pipeline:
        raise VduError(f"--config {config} is for a {name}, the checkpoint is of {family.name}: give its base model's")
    return config


def _fetched(path: Path, family: _Family) -> Path:
    """Configs and tokenizers without weights, from the hub or its cache."""
    from huggingface_hub import snapshot_download

    if family.configs is None:
        said = f"{path} is of {family.name}, whose files do not say if they predict ε or v"
        raise VduError(f"{said}: give --config FOLDER, a diffusers folder of its base model")
    try:
        return Path(snapshot_download(family.configs, allow_patterns=["*.json", "*.txt"]))
    except Exception as error:
        said = f"{path} is of {family.name}, but its configs ({family.configs}) are not here and cannot be fetched"
        raise VduError(f"{said}: go online once, or give --config FOLDER, a diffusers folder of that model") from error


def _converted(path: Path, family: _Family, config: Path, dtype: torch.dtype) -> Any:
    cls = getattr(diffusers, family.pipeline)
    options: dict[str, Any] = {name: None for name in NOT_IN_FILE if name in cls._get_signature_types()}
    if "safety_checker" in options:
        options["requires_safety_checker"] = False
    misfit = f"{path} does not fit the configs in {config}: give --config FOLDER, a diffusers folder of its base model"
    try:
        pipeline = cls.from_single_file(
            str(path), config=str(config), local_files_only=True, torch_dtype=dtype, **options
        )
    except ImportError as error:
        raise VduError(f"{path} needs the transformers package: pip install transformers") from error
    except Exception as error:
        raise VduError(f"{misfit} ({in_one_line(error)})") from error
    networks = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    absent = [f"{name}.{key}" for name, part in networks.items() for key, w in part.named_parameters() if w.is_meta]
    if absent:
        raise VduError(f"{misfit} (it lacks {absent[0]} and {len(absent) - 1} more)")
    return pipeline


def _as_v_prediction(pipeline: Any, names: list[str]) -> Any:
    """By the marks ``v_pred`` and ``ztsnr`` that trainers of SDXL leave: its configs on the hub say ε."""
    changed = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": "ztsnr" in names}
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **changed)
    return pipeline
