"""What several commands share: arguments, a model by zoo name, folder or hub id."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch

    from vdu.backbone import Backbone
    from vdu.prompts import Prompts

__all__ = [
    "Config",
    "DetectorOption",
    "DeviceOption",
    "GuidanceScale",
    "Model",
    "Overwrite",
    "Precision",
    "PromptsFile",
    "Seed",
    "Target",
    "make_app",
    "make_prompts",
    "open_model",
]

Model = Annotated[str, typer.Argument(help="pipeline folder, .safetensors checkpoint, zoo name or hub id")]
Config = Annotated[
    Path | None,
    typer.Option(help="for a .safetensors checkpoint: diffusers folder of its base model; default: the hub's"),
]
DetectorOption = Annotated[
    str | None,
    typer.Option(
        help="classifier folder, .json of classes in words, nudenet, module:function; default: the shipped model's own"
    ),
]
Target = Annotated[str, typer.Option(help="the detector's class that was forgotten")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace the output if it exists")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="random seed")]
Precision = Annotated[str, typer.Option(help="bf16, fp32, or auto: bf16 where the device computes it")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, mps; default: the best there is")]
PromptsFile = Annotated[Path | None, typer.Option(help="text-to-image: what to ask samples with, one prompt a line")]
GuidanceScale = Annotated[
    float | None, typer.Option(help="text-to-image: guidance when sampling; default: 7.5, or the shipped model's own")
]


def make_app(help_: str) -> typer.Typer:
    """A group of commands; errors are ours to print."""
    return typer.Typer(
        help=help_, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None
    )


def make_prompts(model: str, prompt: str | None, neutral: Path | None, guidance_scale: float | None) -> Prompts | None:
    """What the options say, over what a shipped model is asked with; None where there is neither."""
    from dataclasses import replace

    from vdu.model_zoo import find_zoo_model
    from vdu.prompts import Prompts, read_prompts

    zoo = find_zoo_model(model)
    shipped = zoo.prompts if zoo else None
    said: dict[str, Any] = {}
    if prompt is not None:
        said["forget"] = (prompt,)
    if neutral is not None:
        said["neutral"] = read_prompts(neutral)
    if guidance_scale is not None:
        said["guidance_scale"] = guidance_scale
    return replace(shipped or Prompts(), **said) if said else shipped


def open_model(
    name: str, prompts: Prompts | None = None, config: Path | None = None, device: torch.device | None = None
) -> Backbone:
    """The backbone of a zoo name, pipeline folder, checkpoint file or hub id; its network on ``device``."""
    from vdu.backbone import load_backbone
    from vdu.quiet import quiet

    quiet()
    backbone = load_backbone(name, prompts, config)
    if device is not None:
        backbone.network.to(device)
    return backbone
